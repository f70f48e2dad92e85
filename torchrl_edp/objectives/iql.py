"""EDPIQLLoss: implicit Q-learning with a diffusion policy."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives.utils import _GAMMA_LMBDA_DEPREC_ERROR, distance_loss

from torchrl_edp.objectives.common import ActionReduction, DiffusionTerms, EDPLoss, _check
from torchrl_edp.objectives.functional import (
    StepTable,
    StepWeighting,
    WeightNormalization,
    advantage_weight,
    elbo_weights,
    expectile_loss,
)

Likelihood = Literal["noise", "elbo", "beta_elbo", "normalized_elbo", "approximation", "log_prob", "sampled_mse"]

_ELBO_KINDS: dict[str, Literal["posterior", "beta", "normalized"]] = {
    "elbo": "posterior",
    "beta_elbo": "beta",
    "normalized_elbo": "normalized",
}


class EDPIQLLoss(EDPLoss):
    """Implicit Q-learning whose policy is a diffusion model, trained with one network call.

    The policy minimises L_diff + guidance_weight * E[w f * likelihood term], f = exp(temperature * (Q - V)) and w the
    weight of the diffusion step; the critics minimise the TD error to r + gamma V(s'), V the expectile of Q.

    Args:
        actor_network: an :class:`~torchrl_edp.modules.EDPActor`.
        qvalue_network: Q(s, a); one module (copied ``num_qvalue_nets`` times, each copy initialised anew) or a list.
        value_network: V(s).

    Keyword Args:
        num_qvalue_nets: number of critics E. Default 2.
        loss_function: distance of the TD error, ``"l2"`` (default, the paper), ``"l1"`` or ``"smooth_l1"``.
        temperature: multiplies the advantage (paper: 1; reference code: 3).
        expectile: of the value loss (paper: 0.7, 0.9 on antmaze).
        weight_cap: largest advantage weight (reference code: 100); None for no cap (paper).
        weight_normalization: None (paper), ``"mean"`` (weights of mean 1) or ``"softmax"`` over the batch.
        likelihood: the likelihood term, all squared errors reduced over action dimensions by ``action_reduction``:
            ``"noise"``: the noise error of the diffusion loss, weight 1;
            ``"elbo"``: Eq. 12, the noise error with the weight of the variational bound, ``"beta_elbo"`` with reverse
            variance b, ``"normalized_elbo"`` the latter rescaled to mean 1 (reference code);
            ``"approximation"``: Eq. 13, squared distance of the data-set action to the approximated action;
            ``"log_prob"``: -log N(a; approximated action, deviation^2) (reference code);
            ``"sampled_mse"``: squared distance to one sample of N(approximated action, deviation^2).
        deviation: of the Gaussian, a float (default 1, the paper) or ``"learned"``: one trained value per dimension,
            the parameter ``log_deviation`` of this module, not of the actor.
        guidance_weight: lambda; 0 is plain diffusion cloning.
        guidance_weighting: weight of the guidance by diffusion step: ``"uniform"`` (paper), ``"alpha_bar"``, ``"snr"``.
        guidance_steps: (first, last) diffusion steps in 0..K-1 that are guided; None for all.
        clip_approximation: clip the approximated action to the actor's bounds (reference code: True).
        action_reduction: ``"mean"`` (default, reference code) or ``"sum"`` (paper) over action dimensions.
        delay_actor: keep averaged actor parameters in ``target_actor_network_params``. Default True.
        delay_qvalue: keep averaged critics; False uses the critics themselves. Default True.
        separate_losses: critics do not train parameters they share with the actor. Default False.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        scalar_output_mode: with ``reduction="none"``: None returns metrics per sample, ``"exclude"`` leaves them out,
            ``"non_tensor"`` returns their means as non-tensor data.
        deactivate_vmap: loop over critics instead of vmap.
        use_prioritized_weights: use importance weights when present ("auto"), always (True) or never (False).

    Returns (``forward``): ``loss_actor``, ``loss_qvalue``, ``loss_value``, and the detached metrics
    ``diffusion_error``, ``guidance``, ``advantage``, ``advantage_weight``, ``pred_value``, ``state_value``.

    Examples:
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
        loss_function: str = "l2",
        temperature: float = 3.0,
        expectile: float = 0.7,
        weight_cap: float | None = 100.0,
        weight_normalization: WeightNormalization | None = "mean",
        likelihood: Likelihood = "noise",
        deviation: float | Literal["learned"] = 1.0,
        guidance_weight: float = 10.0,
        guidance_weighting: StepWeighting = "uniform",
        guidance_steps: tuple[int, int] | None = None,
        clip_approximation: bool = True,
        action_reduction: ActionReduction = "mean",
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
            clip_approximation=clip_approximation,
            action_reduction=action_reduction,
            loss_function=loss_function,
            reduction=reduction,
            scalar_output_mode=scalar_output_mode,
            deactivate_vmap=deactivate_vmap,
            use_prioritized_weights=use_prioritized_weights,
        )
        self._set_deprecated_ctor_keys(priority=priority_key)
        _check("likelihood", likelihood, get_args(Likelihood))
        _check("weight_normalization", weight_normalization, (None, *get_args(WeightNormalization)))
        if not 0 < expectile < 1:
            raise ValueError(f"expectile must lie in (0, 1), got {expectile}.")
        if weight_cap is not None and weight_cap <= 0:
            raise ValueError(f"weight_cap must be positive or None, got {weight_cap}.")
        self.temperature = temperature
        self.expectile = expectile
        self.weight_cap = weight_cap
        self.weight_normalization = weight_normalization
        self.likelihood = likelihood

        self._set_actor(actor_network, delay_actor)
        policy_params = list(actor_network.parameters()) if separate_losses else None
        self.convert_to_functional(value_network, "value_network", compare_against=policy_params)
        shared = [*policy_params, *value_network.parameters()] if policy_params is not None else None
        self._set_qvalue(qvalue_network, num_qvalue_nets, delay_qvalue, shared)
        if likelihood in _ELBO_KINDS:
            self._elbo_table = StepTable(elbo_weights(self._schedule, _ELBO_KINDS[likelihood]))
        self._set_deviation(deviation)

    def _set_deviation(self, deviation: float | str) -> None:
        if deviation == "learned":
            if self.likelihood not in ("log_prob", "sampled_mse"):
                raise ValueError(f"A learned deviation has no effect with likelihood={self.likelihood!r}.")
            like = next(self.actor_network_params.values(True, True))
            size = self.actor_network.module.action_size
            self.log_deviation = nn.Parameter(torch.zeros(size, device=like.device, dtype=like.dtype))
        elif isinstance(deviation, str) or deviation <= 0:
            raise ValueError(f"deviation must be a positive float or 'learned', got {deviation!r}.")
        self.deviation = deviation

    def reset_parameters_recursive(self) -> None:
        """Draw every parameter anew by its layer's own rule; targets become copies of them."""
        super().reset_parameters_recursive()
        if self.deviation == "learned":
            self.log_deviation.data.zero_()

    @property
    def _state_keys(self) -> list[NestedKey]:
        return [*self._observation_keys, *self.value_network.in_keys]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """All losses from the same parameters; writes only the priority into the input."""
        loss_actor, metrics = self.actor_loss(tensordict)
        loss_qvalue, qvalue_metrics = self.qvalue_loss(tensordict)
        loss_value, value_metrics = self.value_loss(tensordict)
        tensordict.set(self.tensor_keys.priority, qvalue_metrics.pop("td_error").amax(0))
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_value": loss_value}
        output = self._output(tensordict, losses, metrics | qvalue_metrics | value_metrics)
        self._clear_weakrefs(tensordict, output, *self._params_names())
        return output

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_diff + lambda E[w f likelihood]: one call of the noise network."""
        terms = self._diffuse(tensordict)
        with torch.no_grad():
            advantage = self._target_qvalue(tensordict) - self._value(tensordict)
            mask = self._mask(tensordict, advantage)
            weight = advantage_weight(advantage, self.temperature, self.weight_cap, self.weight_normalization, mask)
        diffusion_error = self._noise_error(terms)
        guidance = weight * self._negative_likelihood(terms, diffusion_error)
        loss = self._combine(diffusion_error, guidance, terms)
        loss = self._reduce_loss(loss, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        metrics = {
            "diffusion_error": diffusion_error.detach(),
            "guidance": guidance.detach(),
            "advantage": advantage,
            "advantage_weight": weight,
        }
        self._clear_weakrefs(tensordict, *self._params_names())
        return loss, metrics

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile regression of V to the smallest target Q (Eq. 22)."""
        with torch.no_grad():
            qvalue = self._target_qvalue(tensordict)
        value = self._value(tensordict)
        loss = expectile_loss(qvalue - value, self.expectile)
        loss = self._reduce_loss(loss, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        self._clear_weakrefs(tensordict, *self._params_names())
        return loss, {"state_value": value.detach()}

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """TD error of every critic to r + gamma V(s') (Eq. 22), summed over critics."""
        # A shallow copy, so that nothing the estimator writes reaches the input.
        target = self.value_estimator.value_estimate(tensordict.copy(), target_params=self.target_value_network_params)
        target = target.squeeze(-1).detach()
        predicted = self._qvalues(tensordict, self.qvalue_network_params)
        loss = distance_loss(predicted, target.expand_as(predicted), loss_function=self.loss_function).sum(0)
        loss = self._reduce_loss(loss, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        self._clear_weakrefs(tensordict, *self._params_names())
        predicted = predicted.detach()
        return loss, {"td_error": (predicted - target).square(), "pred_value": predicted.mean(0)}

    def _negative_likelihood(self, terms: DiffusionTerms, noise_error: Tensor) -> Tensor:
        """The likelihood term of every sample [*B], before its advantage weight."""
        if self.likelihood == "noise":
            return noise_error
        if self.likelihood in _ELBO_KINDS:
            return self._elbo_table(terms.diffusion_step, noise_error) * noise_error
        center = terms.approximated_action
        if self.likelihood == "approximation":
            return self._over_actions((terms.action - center).square())
        log_deviation = self._log_deviation(center)
        if self.likelihood == "sampled_mse":
            sample = center + log_deviation.exp() * torch.randn_like(center)
            return self._over_actions((terms.action - sample).square())
        scaled = (terms.action - center) * (-log_deviation).exp()
        log_prob = -0.5 * scaled.square() - log_deviation - 0.5 * math.log(2 * math.pi)
        return -self._over_actions(log_prob)

    def _log_deviation(self, like: Tensor) -> Tensor:
        if isinstance(self.deviation, str):
            return self.log_deviation
        return torch.full_like(like[..., :1], math.log(self.deviation))

    def _target_qvalue(self, tensordict: TensorDictBase) -> Tensor:
        """The smallest target Q of the data-set action [*B]."""
        return self._qvalues(tensordict, self.target_qvalue_network_params).amin(0)

    def _value(self, tensordict: TensorDictBase) -> Tensor:
        inputs = tensordict.select(*self.value_network.in_keys, strict=False)
        with self.value_network_params.to_module(self.value_network, preserve_module_state=False):
            return self.value_network(inputs).get(self.tensor_keys.value).squeeze(-1)

    def _params_names(self) -> list[str]:
        networks = ("actor_network", "qvalue_network", "value_network")
        return [f"{prefix}{name}_params" for prefix in ("", "target_") for name in networks]
