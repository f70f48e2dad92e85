"""EDPTD3Loss: direct policy optimisation (TD3+BC) with a diffusion policy."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.objectives.utils import _GAMMA_LMBDA_DEPREC_ERROR

from torchrl_edp.diffusion import Bounds, check_interval
from torchrl_edp.diffusion.process import check_bounds
from torchrl_edp.modules.actor import spec_bounds
from torchrl_edp.modules.parameters import parameters_in
from torchrl_edp.objectives.common import ActionReduction, DiffusionTerms, GuidanceStart
from torchrl_edp.objectives.ensemble import check_choice, is_plain
from torchrl_edp.objectives.functional import Aggregation, LossFunction, StepWeighting
from torchrl_edp.objectives.sampled_target import SampledTargetLoss

GuidanceQValue = Literal["random", "mean", "min"]
Normalization = Literal["same", "other"]


class EDPTD3Loss(SampledTargetLoss):
    """TD3 with behaviour cloning whose policy is a diffusion model, trained with one network call.

    The policy minimises L_diff - guidance_weight * alpha * E[w Q(s, approximated action)] / mean |Q|, w the weight of
    the diffusion step. The critics minimise the TD error to r + gamma min_j Q'_j(s', a'), a' drawn from the target
    policy. With ``guidance_start="noise"`` and an actor that samples by DDPM it is Diffusion-QL.

    Args:
        actor_network: an :class:`~torchrl_edp.modules.EDPActor`, or a ``torchrl.modules.DiffusionActor``.
        qvalue_network: Q(s, a); one module (copied ``num_qvalue_nets`` times, each copy initialised anew) or a list.

    Keyword Args:
        action_spec: bounded action spec (or a Composite with it); its bounds clip actions. Default: the actor's bounds.
        bounds: (low, high) in place of ``action_spec``.
        num_qvalue_nets: number of critics E. Default 2.
        loss_function: distance of the TD error, ``"l2"`` (default, the paper), ``"l1"`` or ``"smooth_l1"``.
        alpha: factor of the normalised Q (reference code: 2).
        guidance_qvalue: which critic guides: ``"random"`` (default, the paper): one, drawn at every call; ``"mean"`` or
            ``"min"`` of all.
        qvalue_normalization: whose mean |Q| over the batch divides the guidance: ``"same"`` as guides (default,
            reference code), ``"other"``: the next critic's (Diffusion-QL), or None: no division.
        num_backup_actions: actions drawn at the next state; 10 is the max-Q backup of antmaze. Default 1.
        backup_top_k: which of their values is used, per critic: the k-th largest. Default 1.
        guidance_weight: lambda; 0 is plain diffusion cloning. Default 5 (examples/reproduce; paper: 1 in locomotion).
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
    ``lmbd`` (alpha / mean |Q|), ``state_action_value_actor``, ``pred_value``, ``next_state_value``, ``target_value``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_edp.modules import EDPActor, NoisePredictionMLP, QValueNetwork
        >>> actor = EDPActor(NoisePredictionMLP(11, 3))
        >>> qvalue = ValueOperator(QValueNetwork(11, 3), in_keys=["observation", "action"])
        >>> loss = EDPTD3Loss(actor, qvalue, bounds=(-1.0, 1.0))
        >>> targets = SoftUpdate(loss, tau=0.005)
        >>> data = TensorDict({
        ...     "observation": torch.randn(4, 11), "action": torch.rand(4, 3),
        ...     "next": {"observation": torch.randn(4, 11), "reward": torch.randn(4, 1),
        ...              "done": torch.zeros(4, 1, dtype=torch.bool),
        ...              "terminated": torch.zeros(4, 1, dtype=torch.bool)}}, [4])
        >>> loss(data)["loss_actor"].backward()

    Source: Eq. 10, 14 and App. A.1 of https://arxiv.org/abs/2305.20081; https://arxiv.org/abs/2106.06860;
    Diffusion-QL: https://arxiv.org/abs/2208.06193.
    """

    out_keys = [
        "loss_actor",
        "loss_qvalue",
        "diffusion_error",
        "guidance",
        "lmbd",
        "state_action_value_actor",
        "pred_value",
        "next_state_value",
        "target_value",
    ]

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        action_spec: TensorSpec | None = None,
        bounds: tuple[float, float] | tuple[Tensor, Tensor] | None = None,
        num_qvalue_nets: int = 2,
        loss_function: LossFunction = "l2",
        alpha: float = 2.0,
        guidance_qvalue: GuidanceQValue = "random",
        qvalue_normalization: Normalization | None = "same",
        num_backup_actions: int = 1,
        backup_top_k: int = 1,
        guidance_weight: float = 5.0,
        guidance_weighting: StepWeighting = "alpha_bar",
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
        check_choice("guidance_qvalue", guidance_qvalue, get_args(GuidanceQValue))
        check_choice("qvalue_normalization", qvalue_normalization, (None, *get_args(Normalization)))
        if qvalue_normalization == "other" and (guidance_qvalue != "random" or num_qvalue_nets < 2):
            raise ValueError("qvalue_normalization='other' needs guidance_qvalue='random' and at least two critics.")
        check_interval("alpha", alpha, "[0, inf)")
        self.alpha = alpha
        self.guidance_qvalue = guidance_qvalue
        self.qvalue_normalization = qvalue_normalization
        self._set_actor(actor_network, delay_actor)
        self._set_bounds(action_spec, bounds)
        self._set_backup(num_backup_actions, backup_top_k)
        shared = list(actor_network.parameters()) if separate_losses else None
        self._set_qvalue(qvalue_network, num_qvalue_nets, delay_qvalue, shared)

    def _set_bounds(self, action_spec: TensorSpec | None, bounds: Bounds | None) -> None:
        if action_spec is not None and bounds is not None:
            raise ValueError("Give 'bounds' or 'action_spec', but not both.")
        if isinstance(action_spec, Composite):
            action_spec = action_spec[self.tensor_keys.action]
        if action_spec is not None:
            if not isinstance(action_spec, Bounded):
                raise ValueError(f"action_spec must be Bounded, got {type(action_spec).__name__}.")
            bounds = spec_bounds(action_spec)
        if bounds is not None:
            self._bounds = check_bounds(bounds, self._sampler.action_size)

    def _guidance(self, tensordict: TensorDictBase, terms: DiffusionTerms) -> tuple[Tensor, dict[str, Tensor]]:
        action = terms.approximated_action
        if self.guidance_qvalue == "random":
            head = torch.randint(self.num_qvalue_nets, (1,), device=action.device)
            qvalue = self._qvalue(tensordict, head, action)
        else:
            qvalues = self._qvalues(tensordict, self._frozen_qvalue_params(), action)
            qvalue = qvalues.mean(0) if self.guidance_qvalue == "mean" else qvalues.amin(0)
        scale_source = qvalue.detach()
        if self.qvalue_normalization == "other":
            scale_source = self._qvalue(tensordict, (head + 1) % self.num_qvalue_nets, action.detach())
        scale = torch.full_like(scale_source, self.alpha)
        if self.qvalue_normalization is not None:
            size = self._reduce_loss(scale_source.abs(), tensordict=tensordict, reduction="mean")
            scale = scale / size.clamp_min(torch.finfo(size.dtype).eps)  # critics that are 0 everywhere guide nowhere
        return -scale * qvalue, {"lmbd": scale, "state_action_value_actor": qvalue.detach()}

    def _qvalue(self, tensordict: TensorDictBase, head: Tensor, action: Tensor) -> Tensor:
        """Values [*B] of ``action`` [*B, A] under critic ``head`` [1], which gets no gradient."""
        if is_plain(self.qvalue_network, self.tensor_keys.state_action_value):
            is_number = not head.is_cuda and not torch._C._are_functorch_transforms_active()
            frozen = slice(int(head), int(head) + 1) if is_number else head  # a view, where that is no sync
            return self._plain_qvalues(tensordict, self.qvalue_network_params, action, frozen).squeeze(0)
        inputs = self._critic_inputs(tensordict, action)
        params = self._frozen_qvalue_params()[head].squeeze(0)
        with parameters_in(self.qvalue_network, params):  # oneDNN copies what vmap stacks
            return self.qvalue_network(inputs).get(self.tensor_keys.state_action_value).squeeze(-1)

    def _frozen_qvalue_params(self) -> TensorDictBase:
        # A module's tensordict remembers what detach() gave, and a cast or a move of the loss would leave that behind;
        # that of a MultiSeedLoss is mapped over seeds, where tensors have no data.
        params = self.qvalue_network_params
        return params.data if isinstance(params, TensorDictParams) else params.detach()

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as ``qvalue_loss``, under the name that TorchRL's TD3 trainer calls."""
        return self.qvalue_loss(tensordict)
