"""EDPIQLLoss: implicit Q-learning with a diffusion policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.utils import _GAMMA_LMBDA_DEPREC_ERROR

from torchrl_edp.diffusion import check_interval
from torchrl_edp.modules.parameters import parameters_in
from torchrl_edp.objectives.common import ActionReduction, DiffusionTerms, EDPLoss, GuidanceStart
from torchrl_edp.objectives.ensemble import check_modules
from torchrl_edp.objectives.functional import (
    Aggregation,
    LossFunction,
    StepWeighting,
    WeightNormalization,
    expectile_loss,
)
from torchrl_edp.objectives.likelihood import Deviation, Likelihood, LikelihoodLoss


class EDPIQLLoss(LikelihoodLoss):
    """Implicit Q-learning whose policy is a diffusion model, trained with one network call.

    The policy minimises L_diff + guidance_weight * E[w f * likelihood term], f = exp(temperature * (Q - V)) and w the
    weight of the diffusion step; the critics minimise the TD error to r + gamma V(s'), V the expectile of Q.

    Args:
        actor_network: an :class:`~torchrl_edp.modules.EDPActor`, or a ``torchrl.modules.DiffusionActor``.
        qvalue_network: Q(s, a); one module (copied ``num_qvalue_nets`` times, each copy initialised anew) or a list.
        value_network: V(s).

    Keyword Args:
        num_qvalue_nets: number of critics E. Default 2.
        loss_function: distance of the TD error, ``"l2"`` (default, the paper), ``"l1"`` or ``"smooth_l1"``.
        temperature: multiplies the advantage (paper: 1; reference code: 3).
        expectile: of the value loss (paper: 0.7, 0.9 on antmaze).
        weight_cap: largest advantage weight (reference code: 100); None for no cap (paper).
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
        guidance_weight: lambda; 0 is plain diffusion cloning.
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

    Returns (``forward``): ``loss_actor``, ``loss_qvalue``, ``loss_value``, and the detached metrics
    ``diffusion_error``, ``guidance``, ``advantage``, ``advantage_weight``, ``pred_value``, ``state_value``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_edp.modules import EDPActor, NoisePredictionMLP, QValueNetwork, ValueNetwork
        >>> actor = EDPActor(NoisePredictionMLP(11, 3))
        >>> qvalue = ValueOperator(QValueNetwork(11, 3), in_keys=["observation", "action"])
        >>> loss = EDPIQLLoss(actor, qvalue, ValueOperator(ValueNetwork(11)))
        >>> targets = SoftUpdate(loss, tau=0.005)
        >>> data = TensorDict({
        ...     "observation": torch.randn(4, 11), "action": torch.rand(4, 3),
        ...     "next": {"observation": torch.randn(4, 11), "reward": torch.randn(4, 1),
        ...              "done": torch.zeros(4, 1, dtype=torch.bool),
        ...              "terminated": torch.zeros(4, 1, dtype=torch.bool)}}, [4])
        >>> loss(data)["loss_actor"].backward()

    Source: Sec. 4.3 and App. A.3 of https://arxiv.org/abs/2305.20081; https://arxiv.org/abs/2110.06169.
    """

    @dataclass
    class _AcceptedKeys(EDPLoss._AcceptedKeys):
        """Those of every EDP loss, and one more.

        Attributes:
            value: state value. Default ``"state_value"``.
        """

        value: NestedKey = "state_value"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = [
        "loss_actor",
        "loss_qvalue",
        "loss_value",
        "diffusion_error",
        "guidance",
        "advantage",
        "advantage_weight",
        "pred_value",
        "state_value",
    ]
    terms = ("value_loss", "actor_loss", "qvalue_loss")  # V first: its values serve the policy too
    sequential_terms = ("value_loss", "actor_loss", "qvalue_loss")  # App. A.3 and the reference code
    _networks = ("actor_network", "qvalue_network", "value_network")

    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        value_network: TensorDictModule,
        *,
        num_qvalue_nets: int = 2,
        loss_function: LossFunction = "l2",
        temperature: float = 3.0,
        expectile: float = 0.7,
        weight_cap: float | None = 100.0,
        weight_normalization: WeightNormalization | None = "mean",
        likelihood: Likelihood = "noise",
        deviation: Deviation = 1.0,
        guidance_weight: float = 10.0,
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
        check_interval("expectile", expectile, "(0, 1)")
        self.expectile = expectile
        self._set_actor(actor_network, delay_actor)
        self._set_likelihood(temperature, weight_cap, weight_normalization, likelihood, deviation)
        policy_params = list(actor_network.parameters()) if separate_losses else None
        check_modules("value_network", [value_network])
        self.convert_to_functional(value_network, "value_network", compare_against=policy_params)
        shared = [*policy_params, *value_network.parameters()] if policy_params is not None else None
        self._set_qvalue(qvalue_network, num_qvalue_nets, delay_qvalue, shared)

    @property
    def _state_keys(self) -> list[NestedKey]:
        return [*self._observation_keys, *self.value_network.in_keys]

    @property
    def _next_value_key(self) -> NestedKey:
        return self.tensor_keys.value

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile regression of V to the aggregated target Q (Eq. 22)."""
        with torch.no_grad():
            qvalue = self._target_qvalue(tensordict)
        value = self._value(tensordict)
        loss = expectile_loss(qvalue - value, self.expectile)
        loss = self._reduce_loss(loss, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        self._clear_weakrefs(tensordict, *self._params_names())
        return loss, {"state_value": value.detach()}

    def _target_value(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        target, _ = super()._target_value(tensordict)
        return target, {}

    def _next_value(self, next_tensordict: TensorDictBase) -> Tensor:
        return self._compute_value(next_tensordict, self.target_value_network_params)

    def _advantage(self, tensordict: TensorDictBase, terms: DiffusionTerms) -> Tensor:
        return self._target_qvalue(tensordict) - self._value(tensordict)

    def _target_qvalue(self, tensordict: TensorDictBase) -> Tensor:
        """The aggregated target Q of the data-set action [*B]."""
        params = self.target_qvalue_network_params
        return self._once("target_qvalue", lambda: self._aggregate(self._qvalues(tensordict, params)))

    def _value(self, tensordict: TensorDictBase) -> Tensor:
        """V of the state [*B]."""
        return self._once("value", lambda: self._compute_value(tensordict, self.value_network_params))

    def _compute_value(self, tensordict: TensorDictBase, params: TensorDictParams) -> Tensor:
        inputs = tensordict.select(*self.value_network.in_keys, strict=False)
        with parameters_in(self.value_network, params):
            return self.value_network(inputs).get(self.tensor_keys.value).squeeze(-1)
