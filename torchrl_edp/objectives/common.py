"""What the EDP losses share: one network call gives the diffusion error and the approximated action."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.objectives import LossModule
from torchrl.objectives.utils import ValueEstimators, _vmap_func, dispatch_value_estimator
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_edp.diffusion import Bounds, NoiseSchedule, add_noise, approximate_action
from torchrl_edp.objectives.functional import StepTable, StepWeighting, step_weights

ActionReduction = Literal["mean", "sum"]


@dataclass
class DiffusionTerms:
    """What one call of the noise network gives, for a batch of actions.

    Attributes:
        action: data-set action [*B, A].
        diffusion_step: integers [*B] in 0..K-1.
        noise: the noise that corrupted the action [*B, A].
        predicted_noise: the network's output [*B, A].
        approximated_action: the action rebuilt from the corrupted one (Eq. 9) [*B, A].
    """

    action: Tensor
    diffusion_step: Tensor
    noise: Tensor
    predicted_noise: Tensor
    approximated_action: Tensor


class EDPLoss(LossModule):
    """Base of the EDP losses: networks, keys, the corrupted action, reductions.

    Subclasses define ``out_keys``, ``actor_loss`` and ``qvalue_loss``.
    """

    @dataclass
    class _AcceptedKeys:
        """Tensordict keys that ``set_keys`` can change.

        Attributes:
            action: data-set action. Default ``"action"``.
            value: state value. Default ``"state_value"``.
            state_action_value: state-action value. Default ``"state_action_value"``.
            priority: where the TD error is written for prioritised replay. Default ``"td_error"``.
            priority_weight: importance weight read from prioritised replay. Default ``"priority_weight"``.
            reward, done, terminated: as in every TorchRL loss.
            diffusion_step: optional input, the step of every sample, integers [*B] in 0..K-1; drawn if absent.
            diffusion_noise: optional input, the noise of every sample [*B, A]; drawn if absent.
        """

        action: NestedKey = "action"
        value: NestedKey = "state_value"
        state_action_value: NestedKey = "state_action_value"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        diffusion_step: NestedKey = "diffusion_step"
        diffusion_noise: NestedKey = "diffusion_noise"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    out_keys: list[NestedKey]
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda)

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    _guidance_table: StepTable

    def __init__(
        self,
        *,
        guidance_weight: float,
        guidance_weighting: StepWeighting,
        guidance_steps: tuple[int, int] | None,
        clip_approximation: bool,
        action_reduction: ActionReduction,
        loss_function: str,
        reduction: str | None,
        scalar_output_mode: str | None,
        deactivate_vmap: bool,
        use_prioritized_weights: str | bool,
    ) -> None:
        self._in_keys: list[NestedKey] = []
        super().__init__()
        _check("action_reduction", action_reduction, ("mean", "sum"))
        _check("scalar_output_mode", scalar_output_mode, (None, "exclude", "non_tensor"))
        self.guidance_weight = guidance_weight
        self.guidance_weighting = guidance_weighting
        self.guidance_steps = guidance_steps
        self.clip_approximation = clip_approximation
        self.action_reduction = action_reduction
        self.loss_function = loss_function
        self.reduction = "mean" if reduction is None else reduction
        self.scalar_output_mode = scalar_output_mode
        self.deactivate_vmap = deactivate_vmap
        self.use_prioritized_weights = use_prioritized_weights
        if self.reduction == "none" and scalar_output_mode == "exclude":
            self.out_keys = [key for key in self.out_keys if key.startswith("loss_")]

    # --- networks

    def _set_actor(self, actor_network: TensorDictModule, delay_actor: bool) -> None:
        sampler: Any = getattr(actor_network, "module", None)
        for name in ("schedule", "predict_noise", "bounds"):
            if not hasattr(sampler, name):
                raise TypeError(
                    f"{type(self).__name__} needs an EDPActor: {type(actor_network).__name__}.module has no {name!r}."
                )
        self.delay_actor = delay_actor
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        weights = step_weights(sampler.schedule, self.guidance_weighting, self.guidance_steps)
        self._guidance_table = StepTable(weights)

    def _set_qvalue(
        self,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        num_qvalue_nets: int,
        delay_qvalue: bool,
        shared: list[nn.Parameter] | None,
    ) -> None:
        self.num_qvalue_nets = num_qvalue_nets
        self.delay_qvalue = delay_qvalue
        is_list = isinstance(qvalue_network, (list, tuple))
        copies = list(qvalue_network) if is_list else _independent_copies(qvalue_network, num_qvalue_nets)
        if len(copies) != num_qvalue_nets:
            raise ValueError(f"num_qvalue_nets is {num_qvalue_nets}, but the list has {len(copies)} critics.")
        # From a list TorchRL makes no leaves of a single critic's parameters, and loses ties to shared ones.
        alone = shared is not None or num_qvalue_nets == 1
        self.convert_to_functional(
            copies[0] if alone else copies,
            "qvalue_network",
            num_qvalue_nets,
            create_target_params=delay_qvalue,
            compare_against=shared,
        )
        if alone:
            self._fill_qvalues(copies)
            self._copy_to_targets()
        self._make_vmap()

    def _fill_qvalues(self, copies: list[TensorDictModule]) -> None:
        """Give every critic the parameters of its copy; those shared with other networks stay."""
        for index, copy in enumerate(copies):
            for key, source in TensorDict.from_module(copy).items(True, True):
                parameter = self.qvalue_network_params.get(key)
                if isinstance(parameter, nn.Parameter):
                    parameter.data[index].copy_(source.data)

    def _copy_to_targets(self) -> None:
        for name, targets in self._modules.items():
            if name.startswith("target_") and targets is not None:
                targets.data.update_(getattr(self, name.removeprefix("target_")).data)

    def reset_parameters_recursive(self) -> None:
        """Draw every parameter anew by its layer's own rule; targets become copies of them."""
        for name, network in list(self.__dict__.items()):
            if isinstance(network, TensorDictModuleBase) and name != "qvalue_network":
                with getattr(self, f"{name}_params").to_module(network, preserve_module_state=False):
                    network.reset_parameters_recursive()
        self._fill_qvalues(_independent_copies(self.qvalue_network, self.num_qvalue_nets + 1)[1:])
        self._copy_to_targets()

    def _make_vmap(self) -> None:
        self._vmap_qvalue = _vmap_func(
            self.qvalue_network, (None, 0), randomness=self.vmap_randomness, pseudo_vmap=self.deactivate_vmap
        )

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle and deepcopy, without the vectorised call: it is a closure over the networks."""
        return {name: value for name, value in self.__dict__.items() if name != "_vmap_qvalue"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_vmap()

    def _qvalues(self, tensordict: TensorDictBase, params: TensorDictParams) -> Tensor:
        """Values [E, *B] of the actions in ``tensordict`` under stacked critics."""
        inputs = tensordict.select(*self.qvalue_network.in_keys, strict=False)
        return self._vmap_qvalue(inputs, params).get(self.tensor_keys.state_action_value).squeeze(-1)

    # --- keys

    @property
    def _observation_keys(self) -> list[NestedKey]:
        return list(getattr(self.actor_network, "observation_keys", self.actor_network.in_keys))

    @property
    def in_keys(self) -> list[NestedKey]:
        """Every key the loss may read, the optional ones included."""
        if not self._in_keys:
            self._set_in_keys()
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    @property
    def _state_keys(self) -> list[NestedKey]:
        """What is read both now and at the next step."""
        return self._observation_keys

    def _set_in_keys(self) -> None:
        keys, states = self.tensor_keys, self._state_keys
        required = [
            keys.action,
            *[unravel_key(("next", key)) for key in (keys.reward, keys.done, keys.terminated, *states)],
            *states,
            *self.qvalue_network.in_keys,
        ]
        optional = [keys.diffusion_step, keys.diffusion_noise, keys.priority_weight, "steps_to_next_obs"]
        self._in_keys = list(dict.fromkeys([*required, *optional]))

    def select_out_keys(self, *out_keys: NestedKey) -> EDPLoss:
        """Return only these of ``out_keys``, until ``reset_out_keys``."""
        # TorchRL's own does it by a hook that takes a tensordict without the optional inputs for a dispatched call.
        unknown = [key for key in out_keys if key not in self.out_keys]
        if unknown:
            raise ValueError(f"Unknown out_keys {unknown}: choose from {self.out_keys}.")
        self._out_keys_apparent = list(out_keys)
        return self

    def reset_out_keys(self) -> EDPLoss:
        """Return all of ``out_keys`` again."""
        self._out_keys_apparent = self.out_keys_source
        return self

    # --- terms

    def _diffuse(self, tensordict: TensorDictBase) -> DiffusionTerms:
        """Corrupt the data-set action at a random step and call the noise network, once."""
        sampler, keys = self.actor_network.module, self.tensor_keys
        action = tensordict[keys.action]
        step = tensordict.get(keys.diffusion_step, None)
        if step is None:
            step = torch.randint(sampler.num_steps, action.shape[:-1], device=action.device)
        elif step.ndim == action.ndim:
            step = step.squeeze(-1)
        noise = tensordict.get(keys.diffusion_noise, None)
        if noise is None:
            noise = torch.randn_like(action)
        observations = [tensordict[key] for key in self._observation_keys]
        observation = torch.cat(observations, -1) if len(observations) > 1 else observations[0]
        noisy = add_noise(action, noise, step, sampler.schedule)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            predicted = sampler.predict_noise(noisy, step, observation)
        bounds: Bounds | None = sampler.bounds if self.clip_approximation else None
        approximated = approximate_action(noisy, predicted, step, sampler.schedule, bounds)
        return DiffusionTerms(action, step, noise, predicted, approximated)

    def _over_actions(self, values: Tensor) -> Tensor:
        return values.mean(-1) if self.action_reduction == "mean" else values.sum(-1)

    def _noise_error(self, terms: DiffusionTerms) -> Tensor:
        """Squared error of the noise prediction (Eq. 5), [*B]."""
        return self._over_actions((terms.noise - terms.predicted_noise).square())

    def _combine(self, diffusion_error: Tensor, guidance: Tensor, terms: DiffusionTerms) -> Tensor:
        """L_diff + lambda L_pi with the weight of the diffusion step, [*B]."""
        if self.guidance_weight == 0:
            return diffusion_error  # also where the guidance is infinite
        weight = self.guidance_weight * self._guidance_table(terms.diffusion_step, guidance)
        return diffusion_error + weight * guidance

    @property
    def _schedule(self) -> NoiseSchedule:
        return self.actor_network.module.schedule

    def _mask(self, tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
        """Which samples [*B] count (``loss_mask_key``); None if all do."""
        masks = [tensordict.get(key, None) for key in self._loss_mask_keys()]
        masks = [self._expand_loss_mask(mask, like) for mask in masks if mask is not None]
        return torch.stack(masks).all(0) if masks else None

    # --- outputs

    def _output(self, tensordict: TensorDictBase, losses: dict[str, Tensor], metrics: dict[str, Tensor]) -> TensorDict:
        """The losses and their detached metrics, as TorchRL losses return them."""
        losses = {name: value for name, value in losses.items() if name in self.out_keys}
        metrics = {name: value for name, value in metrics.items() if name in self.out_keys}
        if self.reduction == "none" and self.scalar_output_mode is None:
            return TensorDict(losses | metrics, batch_size=tensordict.batch_size)
        means = {k: self._reduce_loss(v, tensordict=tensordict, reduction="mean") for k, v in metrics.items()}
        if self.reduction != "none":
            return TensorDict(losses | means)
        output = TensorDict(losses, batch_size=tensordict.batch_size)
        for name, value in means.items():
            output.set_non_tensor(name, value)
        return output

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())
        self._set_in_keys()

    def _estimator_keys(self) -> dict[str, NestedKey]:
        keys = self.tensor_keys
        return {"value": keys.value, "reward": keys.reward, "done": keys.done, "terminated": keys.terminated}

    def make_value_estimator(self, value_type: ValueEstimators | None = None, **hyperparams: Any) -> EDPLoss:
        """Choose the value estimator: TD0 (default), TD1 or TDLambda; ``gamma`` and the like are its arguments."""
        value_type = self.default_value_estimator if value_type is None else value_type
        if isinstance(value_type, ValueEstimatorBase) or (
            isinstance(value_type, type) and issubclass(value_type, ValueEstimatorBase)
        ):
            LossModule.make_value_estimator(self, value_type, **hyperparams)
        else:
            dispatch_value_estimator(
                self,
                value_type,
                supported=self.SUPPORTED_VALUE_ESTIMATORS,
                tensor_keys=self._estimator_keys(),
                **hyperparams,
            )
        return self


def _independent_copies(network: TensorDictModule, count: int) -> list[TensorDictModule]:
    """``network`` and ``count - 1`` copies with weights drawn anew by the layers' own rule."""
    copies = [network, *(deepcopy(network) for _ in range(count - 1))]
    for copy in copies[1:]:
        copy.reset_parameters_recursive()
    return copies


def _check(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}.")
