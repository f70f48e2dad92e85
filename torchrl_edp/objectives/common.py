"""What the EDP losses share: one network call gives the diffusion error and the approximated action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchrl_edp.diffusion import Bounds, add_noise, check_interval, ddim_from_step
from torchrl_edp.modules import DiffusionSampler, EDPActor, as_edp_actor
from torchrl_edp.modules.fused_mlp import checkpoint_contexts
from torchrl_edp.modules.parameters import parameters_in
from torchrl_edp.objectives.critics import CriticEnsembleLoss
from torchrl_edp.objectives.ensemble import check_choice
from torchrl_edp.objectives.functional import Aggregation, LossFunction, StepTable, StepWeighting, step_weights

ActionReduction = Literal["mean", "sum"]
GuidanceStart = Literal["data", "noise"]


@dataclass
class DiffusionTerms:
    """What the noise network gives for a batch of actions.

    Attributes:
        action: data-set action [*B, A].
        diffusion_step: integers [*B] in 0..K-1.
        predicted_noise: the network's output [*B, A].
        noise_error: squared error of the noise prediction (Eq. 5) [*B].
        approximated_action: the action rebuilt by the network (Eq. 9, or a chain of calls) [*B, A].
    """

    action: Tensor
    diffusion_step: Tensor
    predicted_noise: Tensor
    noise_error: Tensor
    approximated_action: Tensor


class EDPLoss(CriticEnsembleLoss):
    """Base of the EDP losses: the policy's loss, keys, outputs.

    Subclasses define ``out_keys``, ``_guidance`` (the RL term of the policy's loss) and ``_target_value``.
    """

    @dataclass
    class _AcceptedKeys(CriticEnsembleLoss._AcceptedKeys):
        """Those of every loss with critics, and two more.

        Attributes:
            diffusion_step: optional input, the step of every sample, integers [*B] in 0..K-1; drawn if absent.
            diffusion_noise: optional input, the noise of every sample [*B, A]; drawn if absent.
        """

        diffusion_step: NestedKey = "diffusion_step"
        diffusion_noise: NestedKey = "diffusion_noise"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    actor_network: EDPActor
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    _guidance_table: StepTable

    def __init__(
        self,
        *,
        guidance_weight: float,
        guidance_weighting: StepWeighting,
        guidance_steps: tuple[int, int] | None,
        guidance_start: GuidanceStart,
        approximation_steps: int | None,
        clip_approximation: bool,
        action_reduction: ActionReduction,
        qvalue_aggregation: Aggregation,
        pessimism: float,
        loss_function: LossFunction,
        reduction: str | None,
        scalar_output_mode: str | None,
        deactivate_vmap: bool,
        use_prioritized_weights: str | bool,
    ) -> None:
        super().__init__(
            qvalue_aggregation=qvalue_aggregation,
            pessimism=pessimism,
            loss_function=loss_function,
            reduction=reduction,
            scalar_output_mode=scalar_output_mode,
            deactivate_vmap=deactivate_vmap,
            use_prioritized_weights=use_prioritized_weights,
        )
        check_choice("action_reduction", action_reduction, ("mean", "sum"))
        check_choice("guidance_start", guidance_start, ("data", "noise"))
        if guidance_start == "noise" and guidance_steps is not None:
            raise ValueError("With guidance_start='noise' guidance has no diffusion step: guidance_steps must be None.")
        check_interval("guidance_weight", guidance_weight, "[0, inf)")
        self.guidance_weight = guidance_weight
        self.guidance_weighting = guidance_weighting
        self.guidance_steps = guidance_steps
        self.guidance_start = guidance_start
        self.approximation_steps = approximation_steps
        self.clip_approximation = clip_approximation
        self.action_reduction = action_reduction

    def _set_actor(self, actor_network: TensorDictModule, delay_actor: bool) -> None:
        actor = as_edp_actor(actor_network)
        self.delay_actor = delay_actor
        self._bounds: Bounds | None = actor.module.bounds
        self._check_sampling(actor.module)
        self.convert_to_functional(actor, "actor_network", create_target_params=delay_actor)
        weights = step_weights(actor.module.schedule, self.guidance_weighting, self.guidance_steps)
        self._guidance_table = StepTable(weights)

    def _check_sampling(self, sampler: DiffusionSampler) -> None:
        """Refuse more approximation steps than there are diffusion steps, and a number that the solver cannot take."""
        calls = self.approximation_steps
        if calls is not None:
            check_interval("approximation_steps", calls, f"[1, {sampler.num_steps}]")
        sampler.check_options(**({"num_calls": calls} if calls is not None and self.guidance_start == "noise" else {}))

    @property
    def _sampler(self) -> DiffusionSampler:
        return self.actor_network.module

    # --- keys

    @property
    def _observation_keys(self) -> list[NestedKey]:
        return self.actor_network.observation_keys

    @property
    def _state_keys(self) -> list[NestedKey]:
        """What is read both now and at the next step."""
        return self._observation_keys

    def _noise_keys(self) -> list[NestedKey]:
        """Optional inputs: the noise that sampled actions start from."""
        return [self.actor_network.initial_noise_key] if self.guidance_start == "noise" else []

    def _set_in_keys(self) -> None:
        keys, states = self.tensor_keys, self._state_keys
        required = [
            keys.action,
            *[unravel_key(("next", key)) for key in (keys.reward, keys.done, keys.terminated, *states)],
            *states,
            *self.qvalue_network.in_keys,
        ]
        optional = [keys.diffusion_step, keys.diffusion_noise, keys.priority_weight, "steps_to_next_obs"]
        self._in_keys = list(dict.fromkeys([*required, *optional, *self._noise_keys()]))

    # --- losses

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_diff + lambda L_pi. One call of the noise network is differentiated, unless chains are asked for."""
        terms = self._diffuse(tensordict)
        guidance, metrics = self._guidance(tensordict, terms)
        loss = terms.noise_error
        if self.guidance_weight != 0:  # cloning goes on where the guidance is infinite
            loss = loss + self.guidance_weight * self._step_weight(terms) * guidance
        loss = self._reduce_loss(loss, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        self._clear_weakrefs(tensordict, *self._params_names())
        return loss, {"diffusion_error": terms.noise_error.detach(), "guidance": guidance.detach(), **metrics}

    def _guidance(self, tensordict: TensorDictBase, terms: DiffusionTerms) -> tuple[Tensor, dict[str, Tensor]]:
        """The RL term of every sample [*B] before its weights, and detached metrics."""
        raise NotImplementedError

    def _step_weight(self, terms: DiffusionTerms) -> Tensor:
        """Weight of the guidance by diffusion step [*B]; 1 where it starts from pure noise and has none."""
        if self.guidance_start == "noise":
            return torch.ones_like(terms.noise_error)
        return self._guidance_table(terms.diffusion_step, terms.noise_error)

    def _diffuse(self, tensordict: TensorDictBase) -> DiffusionTerms:
        """Corrupt the data-set action at a random step, predict the noise, rebuild an action."""
        sampler, keys = self._sampler, self.tensor_keys
        action = tensordict[keys.action]
        step = tensordict.get(keys.diffusion_step, None)
        if step is None:
            step = torch.randint(sampler.num_steps, action.shape[:-1], device=action.device)
        elif step.ndim == action.ndim:
            step = step.squeeze(-1)
        noise = tensordict.get(keys.diffusion_noise, None)
        if noise is None:
            noise = torch.randn_like(action)
        observation = self._observation(tensordict)
        noisy = add_noise(action, noise, step, sampler.schedule)
        predicted = sampler.predict_noise(noisy, step, observation, self._network)
        noise_error = self._over_actions((noise - predicted).square())
        guided = self.guidance_weight != 0  # else no chain of calls is needed
        if self.guidance_start == "noise" and guided:
            approximated = self._sample_action(tensordict, observation, action)
        else:
            approximated = ddim_from_step(
                lambda noisy, step: sampler.predict_noise(noisy, step, observation, self._checkpointed_network),
                noisy,
                step,
                sampler.schedule,
                num_calls=(self.approximation_steps or 1) if guided else 1,
                bounds=self._bounds if self.clip_approximation else None,
                predicted_noise=predicted,
            )
        return DiffusionTerms(action, step, predicted, noise_error, approximated)

    def _sample_action(self, tensordict: TensorDictBase, observation: Tensor, like: Tensor) -> Tensor:
        """An action [*B, A] from pure noise by the actor's solver, differentiable."""
        noise = tensordict.get(self.actor_network.initial_noise_key, None)
        noise = torch.randn_like(like) if noise is None else noise
        options: dict[str, Any] = {} if self.approximation_steps is None else {"num_calls": self.approximation_steps}
        return self._sampler.sample(observation, noise, self._checkpointed_network, bounds=self._bounds, **options)

    def _network(self, *inputs: Tensor) -> Tensor:
        """The noise network's output under the actor's parameters."""
        with parameters_in(self.actor_network, self.actor_network_params):
            return self._sampler.noise_network(*inputs)

    def _checkpointed_network(self, *inputs: Tensor) -> Tensor:
        """The same, but activations are computed again in the backward pass: a chain of 1000 calls fits in memory."""
        if torch.compiler.is_compiling():  # parameters cannot be swapped inside a checkpointed region of a graph
            return self._network(*inputs)
        return checkpoint(self._network, *inputs, use_reentrant=False, context_fn=checkpoint_contexts)

    def _observation(self, tensordict: TensorDictBase) -> Tensor:
        observations = [tensordict[key] for key in self._observation_keys]
        return torch.cat(observations, -1) if len(observations) > 1 else observations[0]

    def _over_actions(self, values: Tensor) -> Tensor:
        return values.mean(-1) if self.action_reduction == "mean" else values.sum(-1)
