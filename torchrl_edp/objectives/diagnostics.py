"""What drives a policy's training: diagnostics of the EDP losses."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_edp.objectives.common import EDPLoss


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
    sizes = gradient.norm(dim=-1)
    mask = loss._mask(tensordict, sizes)
    sizes = (sizes if mask is None else torch.where(mask, sizes, 0.0)).flatten()
    num_steps = loss.actor_network.module.num_steps
    bins = terms.diffusion_step.flatten() * num_bins // num_steps
    shares = torch.zeros(num_bins, dtype=sizes.dtype, device=sizes.device).index_add(0, bins, sizes)
    return shares / shares.sum().clamp_min(torch.finfo(sizes.dtype).tiny)
