"""Ensembles of critics inside a loss: how they are made, called and aggregated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.objectives import LossModule
from torchrl.objectives.utils import ValueEstimators, _vmap_func, dispatch_value_estimator, distance_loss
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_edp.diffusion import check_interval
from torchrl_edp.modules.parameters import parameters_in
from torchrl_edp.modules.selection import fold_candidates
from torchrl_edp.objectives.ensemble import check_choice, check_modules, independent_copies, is_plain
from torchrl_edp.objectives.functional import Aggregation, LossFunction, aggregate_qvalues, mean_of_each


class CriticEnsembleLoss(LossModule):
    """Base of losses with E critics whose parameters are stacked along the first dimension.

    Attributes:
        num_qvalue_nets: number of critics E.
        qvalue_aggregation: how E values become one: ``"min"``, ``"mean"`` or ``"lcb"``.
        pessimism: deviations below the mean that ``"lcb"`` takes.
    """

    default_value_estimator = ValueEstimators.TD0
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda)
    _networks: tuple[str, ...] = ("actor_network", "qvalue_network")

    @dataclass
    class _AcceptedKeys:
        """Tensordict keys that ``set_keys`` can change.

        Attributes:
            action: data-set action. Default ``"action"``.
            state_action_value: state-action value. Default ``"state_action_value"``.
            priority: where the TD error is written for prioritised replay. Default ``"td_error"``.
            priority_weight: importance weight read from prioritised replay. Default ``"priority_weight"``.
            reward, done, terminated: as in every TorchRL loss.
        """

        action: NestedKey = "action"
        state_action_value: NestedKey = "state_action_value"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys: list[NestedKey]
    terms: tuple[str, ...] = ("actor_loss", "qvalue_loss")
    sequential_terms: tuple[str, ...] = ("qvalue_loss", "actor_loss")  # the order of Alg. 1
    _shared: dict[str, Tensor] | None = None  # what several terms of one forward call need

    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    qvalue_aggregation: Aggregation
    pessimism: float
    loss_function: LossFunction
    deactivate_vmap: bool

    def __init__(
        self,
        *,
        qvalue_aggregation: Aggregation,
        pessimism: float,
        loss_function: LossFunction,
        reduction: str | None,
        scalar_output_mode: str | None,
        deactivate_vmap: bool,
        use_prioritized_weights: str | bool,
    ) -> None:
        self._in_keys: list[NestedKey] = []
        super().__init__()
        check_choice("scalar_output_mode", scalar_output_mode, (None, "exclude", "non_tensor"))
        check_choice("loss_function", loss_function, get_args(LossFunction))
        check_choice("reduction", reduction, (None, "mean", "sum", "none"))
        check_choice("use_prioritized_weights", use_prioritized_weights, ("auto", True, False))
        check_interval("pessimism", pessimism, "[0, inf)")
        aggregate_qvalues(torch.zeros(1), qvalue_aggregation, pessimism)  # refuses an unknown name now
        self.qvalue_aggregation = qvalue_aggregation
        self.pessimism = pessimism
        self.loss_function = loss_function
        self.reduction = "mean" if reduction is None else reduction
        self.scalar_output_mode = scalar_output_mode
        self.deactivate_vmap = deactivate_vmap
        self.use_prioritized_weights = use_prioritized_weights
        if self.reduction == "none" and scalar_output_mode == "exclude":
            self.out_keys = [key for key in self.out_keys if key.startswith("loss_")]

    def _set_qvalue(
        self,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        num_qvalue_nets: int,
        delay_qvalue: bool,
        shared: list[nn.Parameter] | None,
    ) -> None:
        check_interval("num_qvalue_nets", num_qvalue_nets, "[1, inf)")
        self.num_qvalue_nets = num_qvalue_nets
        self.delay_qvalue = delay_qvalue
        is_list = isinstance(qvalue_network, (list, tuple))
        check_modules("qvalue_network", qvalue_network if is_list else [qvalue_network])
        copies = list(qvalue_network) if is_list else independent_copies(qvalue_network, num_qvalue_nets)
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

    def _fill_qvalues(self, copies: list[TensorDictModule], *, trained_only: bool = False) -> None:
        """Give every critic the tensors of its copy; parameters shared with other networks stay."""
        for index, copy in enumerate(copies):
            for key, source in TensorDict.from_module(copy).items(True, True):
                own = self.qvalue_network_params.get(key)
                if isinstance(own, nn.Parameter):
                    own.requires_grad_(source.requires_grad)
                shared = isinstance(source, nn.Parameter) and not isinstance(own, nn.Parameter)
                if not shared and (source.requires_grad or not trained_only):
                    own.data[index].copy_(source.data)

    def _copy_to_targets(self) -> None:
        for name, targets in self._modules.items():
            if name.startswith("target_") and targets is not None:
                targets.data.update_(getattr(self, name.removeprefix("target_")).data)

    def reset_parameters_recursive(self) -> None:
        """Draw parameters anew by their layers' own rule, but frozen ones of critics; targets become copies of them."""
        for name, network in list(self.__dict__.items()):
            if isinstance(network, TensorDictModuleBase) and name != "qvalue_network":
                with parameters_in(network, getattr(self, f"{name}_params")):
                    network.reset_parameters_recursive()
        copies = independent_copies(self.qvalue_network, self.num_qvalue_nets + 1)[1:]
        self._fill_qvalues(copies, trained_only=True)
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

    # --- keys

    @property
    def in_keys(self) -> list[NestedKey]:
        """Every key the loss may read, the optional ones included."""
        if not self._in_keys:
            self._set_in_keys()
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def _set_in_keys(self) -> None:
        raise NotImplementedError

    def select_out_keys(self, *out_keys: NestedKey) -> CriticEnsembleLoss:
        """Return only these of ``out_keys``, until ``reset_out_keys``."""
        # TorchRL's own does it by a hook that takes a tensordict without the optional inputs for a dispatched call.
        unknown = [key for key in out_keys if key not in self.out_keys]
        if unknown:
            raise ValueError(f"Unknown out_keys {unknown}: choose from {self.out_keys}.")
        self._out_keys_apparent = list(out_keys)
        return self

    def reset_out_keys(self) -> CriticEnsembleLoss:
        """Return all of ``out_keys`` again."""
        self._out_keys_apparent = self.out_keys_source
        return self

    # --- losses

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """All losses from the same parameters; writes only the priority into the input."""
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        self._shared = {}
        try:
            for term in self.terms:
                losses[f"loss_{term.removesuffix('_loss')}"], values = getattr(self, term)(tensordict)
                metrics |= values
        finally:
            self._shared = None
        tensordict.set(self.tensor_keys.priority, metrics.pop("td_error").amax(0))
        output = self._output(tensordict, losses, metrics)
        self._clear_weakrefs(tensordict, output, *self._params_names())
        return output

    def _once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, or what another term of the same ``forward`` got from it."""
        if self._shared is None:
            return compute()
        if name not in self._shared:
            self._shared[name] = compute()
        return self._shared[name]

    def _qvalues(self, tensordict: TensorDictBase, params: TensorDictBase, action: Tensor | None = None) -> Tensor:
        """Values [E, *B] under stacked critics, of the actions in ``tensordict``, or of ``action`` [*B, A]."""
        if is_plain(self.qvalue_network, self.tensor_keys.state_action_value):
            return self._plain_qvalues(tensordict, params, action)
        inputs = self._critic_inputs(tensordict, action)
        return self._vmap_qvalue(inputs, params).get(self.tensor_keys.state_action_value).squeeze(-1)

    def _qvalues_of_several(self, tensordict: TensorDictBase, params: TensorDictBase, actions: Tensor) -> Tensor:
        """Values [E, N, *B] under stacked critics of N actions a state, [N, *B, A]."""
        if len(actions) == 1:  # nothing to fold, as in TD3: eagerly the cheaper way
            return self._qvalues(tensordict, params, actions[0]).unsqueeze(1)
        inputs = tensordict.select(*self.qvalue_network.in_keys, strict=False)
        inputs = inputs.expand(len(actions), *inputs.batch_size).copy().set(self.tensor_keys.action, actions)
        return self._qvalues(fold_candidates(inputs, actions), params).unflatten(1, actions.shape[:-1][:2])

    def _plain_qvalues(
        self, tensordict: TensorDictBase, params: TensorDictBase, action: Tensor | None, frozen: Any = None
    ) -> Tensor:
        """As ``_qvalues`` of plain critics, of which ``frozen`` takes some, without gradients for them."""
        given = {} if action is None else {unravel_key(self.tensor_keys.action): action}
        inputs = [given[key] if key in given else tensordict[key] for key in self.qvalue_network.in_keys]
        return self.qvalue_network.module.ensemble(params.get("module"), *inputs, frozen=frozen).squeeze(-1)

    def _critic_inputs(self, tensordict: TensorDictBase, action: Tensor | None) -> TensorDictBase:
        inputs = tensordict.select(*self.qvalue_network.in_keys, strict=False)
        return inputs if action is None else inputs.copy().set(self.tensor_keys.action, action)

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """TD error of every critic to its target, summed over critics."""
        target, metrics = self._target_value(tensordict)
        predicted = self._qvalues(tensordict, self.qvalue_network_params)
        loss = distance_loss(predicted, target.expand_as(predicted), loss_function=self.loss_function).sum(0)
        loss = self._reduce_loss(loss, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        self._clear_weakrefs(tensordict, *self._params_names())
        predicted = predicted.detach()
        return loss, {"td_error": (predicted - target).square(), "pred_value": predicted.mean(0), **metrics}

    def _target_value(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """What the critics are to predict [*B], and detached metrics; the input must stay as it is."""
        with torch.no_grad():
            next_value = self._next_value(tensordict.get("next"))
        target = self.value_estimator.value_estimate(tensordict.copy(), next_value=next_value.unsqueeze(-1))
        target = target.squeeze(-1).detach()
        return target, {"next_state_value": next_value, "target_value": target}

    def _next_value(self, next_tensordict: TensorDictBase) -> Tensor:
        """The critics' value [*B] of the next state."""
        raise NotImplementedError

    def _aggregate(self, qvalues: Tensor) -> Tensor:
        """One value [*B] from those of all critics [E, *B]."""
        return aggregate_qvalues(qvalues, self.qvalue_aggregation, self.pessimism)

    def _mask(self, tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
        """Which samples [*B] count (``loss_mask_key``); None if all do."""
        masks = [tensordict.get(key, None) for key in self._loss_mask_keys()]
        masks = [self._expand_loss_mask(mask, like) for mask in masks if mask is not None]
        return torch.stack(masks).all(0) if masks else None

    def _maybe_get_priority_weight(self, tensordict: TensorDictBase) -> Tensor | None:
        """The importance weights, also under a nested key."""
        if self.use_prioritized_weights is False:
            return None
        key = self.tensor_keys.priority_weight
        return tensordict[key] if self.use_prioritized_weights is True else tensordict.get(key, None)

    # --- outputs

    def _output(self, tensordict: TensorDictBase, losses: dict[str, Tensor], metrics: dict[str, Tensor]) -> TensorDict:
        """The losses and their detached metrics, as TorchRL losses return them."""
        losses = {name: value for name, value in losses.items() if name in self.out_keys}
        metrics = {name: value for name, value in metrics.items() if name in self.out_keys}
        if self.reduction == "none" and self.scalar_output_mode is None:
            return TensorDict(losses | metrics, batch_size=tensordict.batch_size)
        if any(tensordict.get(key, None) is not None for key in self._loss_mask_keys()):
            means = {k: self._reduce_loss(v, tensordict=tensordict, reduction="mean") for k, v in metrics.items()}
        else:
            means = mean_of_each(metrics)
        if self.reduction != "none":
            return TensorDict(losses | means)
        output = TensorDict(losses, batch_size=tensordict.batch_size)
        for name, value in means.items():
            output.set_non_tensor(name, value)
        return output

    # --- value estimators

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())
        self._set_in_keys()

    def _estimator_keys(self) -> dict[str, NestedKey]:
        keys = self.tensor_keys
        names = {"reward": keys.reward, "done": keys.done, "terminated": keys.terminated}
        return {"value": self._next_value_key, **names}

    @property
    def _next_value_key(self) -> NestedKey:
        """Where the value estimator finds, or writes, values."""
        return self.tensor_keys.state_action_value

    def make_value_estimator(self, value_type: ValueEstimators | None = None, **hyperparams: Any) -> CriticEnsembleLoss:
        """Choose the value estimator: TD0 (default), TD1 or TDLambda; ``gamma`` and the like are its arguments."""
        for name in ("gamma", "lmbda"):
            if hyperparams.get(name) is not None:
                check_interval(name, hyperparams[name], "[0, 1]")
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

    def _params_names(self) -> list[str]:
        return [f"{prefix}{name}_params" for prefix in ("", "target_") for name in self._networks]
