"""EDPCRRLoss: critic-regularised regression with a diffusion policy."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.utils import _GAMMA_LMBDA_DEPREC_ERROR

from torchrl_edp.diffusion import check_interval, clip
from torchrl_edp.objectives.common import ActionReduction, DiffusionTerms, GuidanceStart
from torchrl_edp.objectives.ensemble import check_choice
from torchrl_edp.objectives.functional import (
    Aggregation,
    LossFunction,
    StepWeighting,
    WeightFunction,
    WeightNormalization,
)
from torchrl_edp.objectives.likelihood import Deviation, Likelihood, LikelihoodLoss
from torchrl_edp.objectives.sampled_target import SampledTargetLoss

Baseline = Literal["mean", "max"]
SampleFrom = Literal["policy", "approximation"]


class EDPCRRLoss(LikelihoodLoss, SampledTargetLoss):
    """Critic-regularised regression whose policy is a diffusion model, trained through one network call.

    The policy minimises L_diff + guidance_weight * E[w f * likelihood term], f = exp(temperature * A) and w the weight
    of the diffusion step. The advantage A = Q(s, a) - mean_i Q(s, a_i) compares the data-set action with
    ``num_action_samples`` actions of the policy (CRR), or around the approximated one (Eq. 21). The critics minimise
    the TD error to r + gamma min_j Q'_j(s', a'), a' drawn from the target policy.

    Args:
        actor_network: an :class:`~torchrl_edp.modules.EDPActor`, or a ``torchrl.modules.DiffusionActor``.
        qvalue_network: Q(s, a); one module (copied ``num_qvalue_nets`` times, each copy initialised anew) or a list.

    Keyword Args:
        num_qvalue_nets: number of critics E. Default 2.
        loss_function: distance of the TD error, ``"l2"`` (default, the paper), ``"l1"`` or ``"smooth_l1"``.
        temperature: multiplies the advantage: the inverse of CRR's beta (paper: 1).
        weight_function: ``"exp"`` (default, the paper), or ``"step"``: 1 for a positive advantage, else 0.
        baseline: what the sampled actions' values become: ``"mean"`` (default, the paper) or ``"max"``.
        num_action_samples: actions a_i per state. Default 2 (examples/results; paper: 10).
        sample_from: where the a_i come from: ``"policy"`` (default, as CRR has it) samples them by the actor's solver,
            all its calls for every a_i, from noise drawn or given as the actor's ``initial_noise_key``;
            ``"approximation"`` (paper) from N(approximated action, sample_deviation^2), which needs no network call
            but is worse than the policy by far where its deviation is large.
        sample_deviation: of ``sample_from="approximation"`` (paper: 1).
        clip_samples: clip these to the actor's bounds, where the critics know more (reference code: False); samples
            of the policy are clipped as its actions are.
        num_backup_actions: actions drawn at the next state; 10 is the max-Q backup of antmaze. Default 1.
        backup_top_k: which of their values is used, per critic: the k-th largest. Default 1.
        weight_cap: largest advantage weight (reference code: 20); None for no cap (paper).
        weight_normalization: None (paper), ``"mean"`` (weights of mean 1) or ``"softmax"`` over the batch.
        likelihood: the likelihood term, squared errors reduced over action dimensions by ``action_reduction``:
            ``"noise"``: the noise error of the diffusion loss, weight 1;
            ``"elbo"``: Eq. 12, the noise error with the weight of the variational bound, ``"beta_elbo"`` with reverse
            variance b, ``"normalized_elbo"`` the latter rescaled to mean 1 (reference code);
            ``"approximation"``: Eq. 13, squared distance of the data-set action to the approximated action;
            ``"log_prob"``: -log N(a; approximated action, deviation^2), summed over dimensions (reference code);
            ``"sampled_mse"``: squared distance to one sample of N(approximated action, deviation^2).
        deviation: of the Gaussian, a float (default 1, the paper) or ``"learned"``: one trained value per dimension,
            the parameter ``log_deviation`` of this module, not of the actor.
        guidance_weight: lambda; 0 is plain diffusion cloning. Default 5 (README; the paper: 1 in locomotion).
        guidance_weighting: weight of the guidance by diffusion step: ``"uniform"`` (paper), ``"alpha_bar"``, ``"snr"``.
        guidance_steps: (first, last) diffusion steps in 0..K-1 that are guided; None for all.
        guidance_start: where the approximated action comes from: ``"data"``, the corrupted data-set action (EDP), or
            ``"noise"``, pure noise through the actor's own solver (Diffusion-QL), without weights by step.
        approximation_steps: network calls from there to the action, all differentiated. None (default): 1 for
            ``"data"``, shared with the diffusion loss, and the actor's ``num_calls`` for ``"noise"``.
        clip_approximation: clip the approximated action to the bounds (reference code: True); chains from pure noise
            are clipped as the actor's samples are.
        action_reduction: ``"mean"`` (default, reference code) or ``"sum"`` (paper) over action dimensions.
        qvalue_aggregation: how the critics' values become one: ``"min"`` (default, the paper), ``"mean"``, or
            ``"lcb"``, the mean less ``pessimism`` deviations.
        pessimism: of ``"lcb"``. Default 1.
        delay_actor: keep averaged actor parameters in ``target_actor_network_params``. Default True.
        delay_qvalue: keep averaged critics; False uses the critics themselves. Default True.
        separate_losses: critics do not train parameters they share with the actor. Default False. Cast and move such
            networks before: as in TorchRL's losses, a cast of the loss unties them.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        scalar_output_mode: with ``reduction="none"``: None returns metrics per sample, ``"exclude"`` leaves them out,
            ``"non_tensor"`` returns their means as non-tensor data.
        deactivate_vmap: loop over critics instead of vmap.
        use_prioritized_weights: use importance weights when present ("auto"), always (True) or never (False).

    Returns (``forward``): ``loss_actor``, ``loss_qvalue``, and the detached metrics ``diffusion_error``, ``guidance``,
    ``advantage``, ``advantage_weight``, ``pred_value``, ``next_state_value``, ``target_value``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_edp.modules import EDPActor, NoisePredictionMLP, QValueNetwork
        >>> actor = EDPActor(NoisePredictionMLP(11, 3))
        >>> qvalue = ValueOperator(QValueNetwork(11, 3), in_keys=["observation", "action"])
        >>> loss = EDPCRRLoss(actor, qvalue)
        >>> targets = SoftUpdate(loss, tau=0.005)
        >>> data = TensorDict({
        ...     "observation": torch.randn(4, 11), "action": torch.rand(4, 3),
        ...     "next": {"observation": torch.randn(4, 11), "reward": torch.randn(4, 1),
        ...              "done": torch.zeros(4, 1, dtype=torch.bool),
        ...              "terminated": torch.zeros(4, 1, dtype=torch.bool)}}, [4])
        >>> loss(data)["loss_actor"].backward()

    Source: Eq. 21 and App. A.2 of https://arxiv.org/abs/2305.20081; https://arxiv.org/abs/2006.15134.
    """

    out_keys = [
        "loss_actor",
        "loss_qvalue",
        "diffusion_error",
        "guidance",
        "advantage",
        "advantage_weight",
        "pred_value",
        "next_state_value",
        "target_value",
    ]

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        num_qvalue_nets: int = 2,
        loss_function: LossFunction = "l2",
        temperature: float = 1.0,
        weight_function: WeightFunction = "exp",
        baseline: Baseline = "mean",
        num_action_samples: int = 2,
        sample_from: SampleFrom = "policy",
        sample_deviation: float = 1.0,
        clip_samples: bool = True,
        num_backup_actions: int = 1,
        backup_top_k: int = 1,
        weight_cap: float | None = 20.0,
        weight_normalization: WeightNormalization | None = "mean",
        likelihood: Likelihood = "noise",
        deviation: Deviation = 1.0,
        guidance_weight: float = 5.0,
        guidance_weighting: StepWeighting = "uniform",
        guidance_steps: tuple[int, int] | None = None,
        guidance_start: GuidanceStart = "data",
        approximation_steps: int | None = None,
        clip_approximation: bool = True,
        action_reduction: ActionReduction = "mean",
        qvalue_aggregation: Aggregation = "min",
        pessimism: float = 1.0,
        gamma: float | None = None,
        priority_key: str | None = None,
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        separate_losses: bool = False,
        reduction: str | None = None,
        scalar_output_mode: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        if gamma is not None:
            raise TypeError(_GAMMA_LMBDA_DEPREC_ERROR)
        super().__init__(
            guidance_weight=guidance_weight,
            guidance_weighting=guidance_weighting,
            guidance_steps=guidance_steps,
            guidance_start=guidance_start,
            approximation_steps=approximation_steps,
            clip_approximation=clip_approximation,
            action_reduction=action_reduction,
            qvalue_aggregation=qvalue_aggregation,
            pessimism=pessimism,
            loss_function=loss_function,
            reduction=reduction,
            scalar_output_mode=scalar_output_mode,
            deactivate_vmap=deactivate_vmap,
            use_prioritized_weights=use_prioritized_weights,
        )
        self._set_deprecated_ctor_keys(priority=priority_key)
        check_choice("weight_function", weight_function, get_args(WeightFunction))
        check_choice("baseline", baseline, get_args(Baseline))
        check_choice("sample_from", sample_from, get_args(SampleFrom))
        check_interval("num_action_samples", num_action_samples, "[1, inf)")
        check_interval("sample_deviation", sample_deviation, "[0, inf)")
        if sample_from == "policy" and sample_deviation != 1:
            raise ValueError("sample_deviation has no effect on samples of the policy: see sample_from.")
        self.weight_function = weight_function
        self.baseline = baseline
        self.num_action_samples = num_action_samples
        self.sample_from = sample_from
        self.sample_deviation = sample_deviation
        self.clip_samples = clip_samples
        self._set_actor(actor_network, delay_actor)
        self._set_likelihood(temperature, weight_cap, weight_normalization, likelihood, deviation)
        self._set_backup(num_backup_actions, backup_top_k)
        shared = list(actor_network.parameters()) if separate_losses else None
        self._set_qvalue(qvalue_network, num_qvalue_nets, delay_qvalue, shared)

    def _noise_keys(self) -> list[NestedKey]:
        own = [self.actor_network.initial_noise_key] if self.sample_from == "policy" else []
        return [*super()._noise_keys(), *own]

    def _advantage(self, tensordict: TensorDictBase, terms: DiffusionTerms) -> Tensor:
        if self.sample_from == "policy":
            samples = self._policy_actions(tensordict, self.actor_network_params, self.num_action_samples)
        else:
            samples = self._around(terms.approximated_action)
        # The data-set action goes along as one more candidate: a single call of the critics.
        actions = torch.cat([terms.action.unsqueeze(0), samples])
        values = self._aggregate(self._qvalues_of_several(tensordict, self.qvalue_network_params, actions))
        others = values[1:]
        return values[0] - (others.mean(0) if self.baseline == "mean" else others.amax(0))

    def _around(self, center: Tensor) -> Tensor:
        """``num_action_samples`` actions [N, *B, A] of N(center, sample_deviation^2)."""
        noise = torch.randn((self.num_action_samples, *center.shape), dtype=center.dtype, device=center.device)
        samples = center + self.sample_deviation * noise
        return clip(samples, self._bounds) if self.clip_samples and self._bounds is not None else samples
