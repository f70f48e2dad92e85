"""What drives a training run, and what it suffers from: diagnostics of losses, critics and weights."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_edp.diffusion import add_noise, approximate_action, clip
from torchrl_edp.objectives.common import EDPLoss
from torchrl_edp.objectives.functional import WeightFunction, WeightNormalization, advantage_weight


def guidance_share_by_step(loss: EDPLoss, tensordict: TensorDictBase, num_bins: int = 10) -> Tensor:
    """Share of the guidance gradient that comes from each range of diffusion steps.

    The gradient is taken at the noise network's output, per sample, with the loss's own weights by step. An
    approximated action divides by sqrt(abar), so that without such weights a few samples at high noise can carry
    nearly all of it.

    Args:
        loss: an EDP loss with ``guidance_start="data"`` and one approximation step.
        tensordict: a batch [*B], as for the loss; the larger, the smoother the result.
        num_bins: ranges of diffusion steps, of equal width.

    Returns:
        Shares [num_bins] that sum to 1, from the least to the most noise; all 0 where there is no gradient.

    Raises:
        ValueError: if the guidance does not come from one network call at one diffusion step.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl_edp import EDPActor, EDPTD3Loss
        >>> from torchrl_edp.modules import NoisePredictionMLP, QValueNetwork
        >>> qvalue = ValueOperator(QValueNetwork(11, 3), in_keys=["observation", "action"])
        >>> loss = EDPTD3Loss(EDPActor(NoisePredictionMLP(11, 3)), qvalue)
        >>> data = TensorDict({"observation": torch.randn(64, 11), "action": torch.rand(64, 3)}, [64])
        >>> guidance_share_by_step(loss, data).shape
        torch.Size([10])
    """
    if loss.guidance_start != "data" or loss.approximation_steps not in (None, 1):
        raise ValueError("guidance_share_by_step needs guidance_start='data' and a single approximation step.")
    with torch.enable_grad():
        terms = loss._diffuse(tensordict)
        guidance, _ = loss._guidance(tensordict, terms)
        weighted = loss._step_weight(terms) * guidance
        (gradient,) = torch.autograd.grad(weighted.sum(), terms.predicted_noise)
    shares, _ = _sums_by_step(loss, tensordict, terms.diffusion_step, gradient.norm(dim=-1), num_bins)
    return shares / shares.sum().clamp_min(torch.finfo(shares.dtype).tiny)


@torch.no_grad()
def clipped_share_by_step(loss: EDPLoss, tensordict: TensorDictBase, num_bins: int = 10) -> Tensor:
    """Share of the approximated actions' entries outside the bounds, by ranges of diffusion steps.

    Clipping takes such an entry's gradient away (``clip_approximation=True``), or the critics are asked about an action
    that does not exist. The more noise, the larger the share; it falls as the noise network learns.

    Args:
        loss: an EDP loss with ``guidance_start="data"``. With several approximation steps, the first action counts.
        tensordict: a batch [*B], as for the loss; the larger, the smoother the result.
        num_bins: ranges of diffusion steps, of equal width.

    Returns:
        Shares [num_bins] in [0, 1], from the least to the most noise; NaN for a range without a sample.

    Raises:
        ValueError: if the action is not approximated from the data's, or if there are no bounds.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl_edp import EDPActor, EDPTD3Loss
        >>> from torchrl_edp.modules import NoisePredictionMLP, QValueNetwork
        >>> qvalue = ValueOperator(QValueNetwork(11, 3), in_keys=["observation", "action"])
        >>> loss = EDPTD3Loss(EDPActor(NoisePredictionMLP(11, 3)), qvalue)
        >>> data = TensorDict({"observation": torch.randn(64, 11), "action": torch.rand(64, 3)}, [64])
        >>> clipped_share_by_step(loss, data).shape
        torch.Size([10])
    """
    if loss.guidance_start != "data" or loss._bounds is None:
        raise ValueError("clipped_share_by_step needs guidance_start='data' and an actor with action bounds.")
    tensordict, noise_key = tensordict.copy(), loss.tensor_keys.diffusion_noise  # shallow: the input stays as it is
    if tensordict.get(noise_key, None) is None:
        tensordict.set(noise_key, torch.randn_like(tensordict[loss.tensor_keys.action]))
    terms, schedule = loss._diffuse(tensordict), loss._sampler.schedule
    noisy = add_noise(terms.action, tensordict[noise_key], terms.diffusion_step, schedule)
    action = approximate_action(noisy, terms.predicted_noise, terms.diffusion_step, schedule)
    outside = (clip(action, loss._bounds) != action).to(action.dtype).mean(-1)
    sums, counts = _sums_by_step(loss, tensordict, terms.diffusion_step, outside, num_bins)
    return sums / counts


def _sums_by_step(
    loss: EDPLoss, tensordict: TensorDictBase, diffusion_step: Tensor, values: Tensor, num_bins: int
) -> tuple[Tensor, Tensor]:
    """Sums of ``values`` [*B] and numbers of samples by ranges of diffusion steps [num_bins]; masked ones left out."""
    mask = loss._mask(tensordict, values)
    counted = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    values = values if mask is None else torch.where(mask, values, 0.0)
    bins = diffusion_step.flatten() * num_bins // loss.actor_network.module.num_steps
    zeros = values.new_zeros(num_bins)
    return zeros.index_add(0, bins, values.flatten()), zeros.index_add(0, bins, counted.flatten())


def qvalue_spread(qvalues: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of Q, its deviation over a batch, and the deviation among critics.

    Critics that disagree about the policy's actions more than about the data's are guessing: there are no data there.

    Args:
        qvalues: [E, *B], of E critics.

    Returns:
        Scalars: the mean; the deviation over the batch of the critics' mean; the deviation over critics, averaged over
        the batch. Both deviations are the population's, so that one sample or one critic has 0.

    Examples:
        >>> qvalue_spread(torch.tensor([[1.0, 4.0], [3.0, 6.0]]))
        (tensor(3.5000), tensor(1.5000), tensor(1.))
    """
    deviation, disagreement = qvalues.mean(0).std(unbiased=False), qvalues.std(0, unbiased=False).mean()
    return qvalues.mean(), deviation, disagreement


def weight_saturation(
    advantage: Tensor,
    temperature: float = 1.0,
    cap: float | None = 100.0,
    normalization: WeightNormalization | None = None,
    function: WeightFunction = "exp",
) -> tuple[Tensor, Tensor]:
    """How many advantage weights are at their cap, and how many samples the weighted batch amounts to.

    Many at the cap: the weights no longer tell good actions from better ones. A small effective share: a few samples
    carry the batch. Either way a lower ``temperature`` helps, or a smaller scale of Q.

    Args:
        advantage: Q - V, any shape.
        temperature: as of :func:`~torchrl_edp.objectives.functional.advantage_weight`, like all that follow.
        cap: largest weight; None for none.
        normalization: None, ``"mean"``, or ``"softmax"``, which has no cap.
        function: ``"exp"``, or ``"step"``, which has no cap.

    Returns:
        Scalars in [0, 1]: the share of the samples at the cap, 0 if there is none; Kish's effective sample size
        (sum w)^2 / sum w^2 as a share of the samples, 0 if all weights are 0.

    Examples:
        >>> weight_saturation(torch.tensor([0.0, 0.0, 9.0, 9.0]), cap=3.0)
        (tensor(0.5000), tensor(0.8000))
    """
    weight = advantage_weight(advantage, temperature, cap, normalization, function=function).double()
    limit = math.log(cap) if cap is not None and normalization != "softmax" and function == "exp" else math.inf
    at_cap = (temperature * advantage >= limit).to(advantage.dtype).mean()
    effective = weight.sum().square() / (weight.numel() * weight.square().sum()).clamp_min(torch.finfo().tiny)
    return at_cap, effective.to(advantage.dtype)


def qvalue_bound(reward: Tensor, gamma: float, steps: Tensor | int = 1) -> float:
    """The largest |Q| that targets of these rewards allow, max |r| / (1 - gamma^n); infinite for gamma = 1.

    With n = 1 no policy can be worth more. With larger n, r being a discounted sum of n rewards, a policy that is not
    the data's can, but critics cannot say so: n steps of every target are the data's own.

    Args:
        reward: all rewards of the data, as the critics see them; any shape.
        gamma: discount in [0, 1].
        steps: n, how many steps of the data each reward sums up (``steps_to_next_obs``), of its shape; 1 by default.

    Examples:
        >>> qvalue_bound(torch.tensor([-2.0, 1.0]), 0.5)
        4.0
    """
    if gamma == 1:
        return math.inf
    return float((reward.double().abs() / (1 - gamma ** torch.as_tensor(steps).double())).max())
