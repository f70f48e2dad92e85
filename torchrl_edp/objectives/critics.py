"""Ensembles of critics inside a loss: how they are made, called and aggregated."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives import LossModule
from torchrl.objectives.utils import ValueEstimators, _vmap_func, dispatch_value_estimator, distance_loss
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_edp.diffusion import check_interval
from torchrl_edp.objectives.functional import Aggregation, aggregate_qvalues


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

    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    qvalue_aggregation: Aggregation
    pessimism: float
    loss_function: str
    deactivate_vmap: bool

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

    def _qvalues(self, tensordict: TensorDictBase, params: TensorDictBase, action: Tensor | None = None) -> Tensor:
        """Values [E, *B] under stacked critics, of the actions in ``tensordict``, or of ``action`` [*B, A]."""
        inputs = tensordict.select(*self.qvalue_network.in_keys, strict=False)
        if action is not None:
            inputs = inputs.expand(action.shape[:-1]).copy().set(self.tensor_keys.action, action)
        return self._vmap_qvalue(inputs, params).get(self.tensor_keys.state_action_value).squeeze(-1)

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
        raise NotImplementedError

    def _aggregate(self, qvalues: Tensor) -> Tensor:
        """One value [*B] from those of all critics [E, *B]."""
        return aggregate_qvalues(qvalues, self.qvalue_aggregation, self.pessimism)

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


def _independent_copies(network: TensorDictModule, count: int) -> list[TensorDictModule]:
    """``network`` and ``count - 1`` copies with weights drawn anew by the layers' own rule."""
    copies = [network, *(deepcopy(network) for _ in range(count - 1))]
    for copy in copies[1:]:
        copy.reset_parameters_recursive()
    return copies
