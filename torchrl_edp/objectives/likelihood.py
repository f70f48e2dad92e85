"""Losses that raise the likelihood of good data-set actions: what IQL and CRR share."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_edp.diffusion import check_interval
from torchrl_edp.objectives.common import DiffusionTerms, EDPLoss
from torchrl_edp.objectives.ensemble import check_choice
from torchrl_edp.objectives.functional import (
    StepTable,
    WeightFunction,
    WeightNormalization,
    advantage_weight,
    elbo_weights,
)

Likelihood = Literal["noise", "elbo", "beta_elbo", "normalized_elbo", "approximation", "log_prob", "sampled_mse"]
Deviation = float | Literal["learned"]

_ELBO_KINDS: dict[str, Literal["posterior", "beta", "normalized"]] = {
    "elbo": "posterior",
    "beta_elbo": "beta",
    "normalized_elbo": "normalized",
}
_OF_THE_ACTION = ("approximation", "log_prob", "sampled_mse")


class LikelihoodLoss(EDPLoss):
    """Base of losses whose guidance is weight(advantage) * -log-likelihood of the data-set action.

    Subclasses define ``_advantage``.
    """

    weight_function: WeightFunction = "exp"

    def _set_likelihood(
        self,
        temperature: float,
        weight_cap: float | None,
        weight_normalization: WeightNormalization | None,
        likelihood: Likelihood,
        deviation: Deviation,
    ) -> None:
        check_choice("likelihood", likelihood, get_args(Likelihood))
        check_choice("weight_normalization", weight_normalization, (None, *get_args(WeightNormalization)))
        check_interval("temperature", temperature, "[0, inf)")
        if weight_cap is not None and not weight_cap > 0:
            raise ValueError(f"weight_cap must be positive or None, got {weight_cap}.")
        chain = self.guidance_start == "noise" or self.approximation_steps not in (None, 1)
        if chain and likelihood not in _OF_THE_ACTION:
            raise ValueError(
                f"likelihood={likelihood!r} does not train through the approximated action, so guidance_start='noise' "
                f"and approximation_steps do not fit it: choose one of {_OF_THE_ACTION}."
            )
        self.temperature = temperature
        self.weight_cap = weight_cap
        self.weight_normalization = weight_normalization
        self.likelihood = likelihood
        if likelihood in _ELBO_KINDS:
            self._elbo_table = StepTable(elbo_weights(self._sampler.schedule, _ELBO_KINDS[likelihood]))
        self._set_deviation(deviation)

    def _set_deviation(self, deviation: Deviation) -> None:
        if deviation == "learned":
            if self.likelihood not in ("log_prob", "sampled_mse"):
                raise ValueError(f"A learned deviation has no effect with likelihood={self.likelihood!r}.")
            like = next(self.actor_network_params.values(True, True))
            self.log_deviation = nn.Parameter(
                torch.zeros(self._sampler.action_size, device=like.device, dtype=like.dtype)
            )
        elif isinstance(deviation, str) or not 0 < deviation < math.inf:
            raise ValueError(f"deviation must be a positive float or 'learned', got {deviation!r}.")
        self.deviation = deviation

    def reset_parameters_recursive(self) -> None:
        """Draw every parameter anew by its layer's own rule; targets become copies of them."""
        super().reset_parameters_recursive()
        if self.deviation == "learned":
            self.log_deviation.data.zero_()

    def _advantage(self, tensordict: TensorDictBase, terms: DiffusionTerms) -> Tensor:
        """How much better the data-set action is than the policy [*B]; computed without gradient."""
        raise NotImplementedError

    def _guidance(self, tensordict: TensorDictBase, terms: DiffusionTerms) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            advantage = self._advantage(tensordict, terms)
            weight = advantage_weight(
                advantage,
                self.temperature,
                self.weight_cap,
                self.weight_normalization,
                self._mask(tensordict, advantage),
                self.weight_function,
            )
        guidance = weight * self._negative_likelihood(terms)
        return guidance, {"advantage": advantage, "advantage_weight": weight}

    def _negative_likelihood(self, terms: DiffusionTerms) -> Tensor:
        """The likelihood term of every sample [*B], before its advantage weight."""
        if self.likelihood == "noise":
            return terms.noise_error
        if self.likelihood in _ELBO_KINDS:
            return self._elbo_table(terms.diffusion_step, terms.noise_error) * terms.noise_error
        center = terms.approximated_action
        if self.likelihood == "approximation":
            return self._over_actions((terms.action - center).square())
        log_deviation = self._log_deviation(center)
        if self.likelihood == "sampled_mse":
            sample = center + log_deviation.exp() * torch.randn_like(center)
            return self._over_actions((terms.action - sample).square())
        scaled = (terms.action - center) * (-log_deviation).exp()
        log_prob = -0.5 * scaled.square() - log_deviation - 0.5 * math.log(2 * math.pi)
        return -log_prob.sum(-1)  # a density is a product over dimensions, whatever action_reduction says

    def _log_deviation(self, like: Tensor) -> Tensor:
        if isinstance(self.deviation, str):
            return self.log_deviation
        return torch.full_like(like[..., :1], math.log(self.deviation))
