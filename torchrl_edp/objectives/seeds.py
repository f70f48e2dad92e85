"""Several seeds of one loss, computed together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, cast

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import nn
from torchrl.objectives import LossModule
from torchrl.objectives.value import TD0Estimator

from torchrl_edp.objectives.common import EDPLoss

_PLAIN = (bool, int, float, str, tuple, type(None))


class MultiSeedLoss(LossModule):
    """The same EDP loss with the parameters of several seeds: one computation in place of one per seed.

    These networks are too small to fill a GPU, and results are reported over several seeds. Parameters and targets of
    all seeds are stacked along a first dimension, and the loss is mapped over it, so that target updaters, optimizers
    and :class:`~torchrl_edp.training.TrainState` work on all seeds at once. Every seed has batches, draws and gradients
    of its own. Where the policy's loss goes through several solver steps, all their activations are kept.

    Args:
        make_loss: builds the loss of one seed, with networks of its own. Keys, value estimator and outputs are set
            there.
        seeds: the seed of torch's generator for each call of ``make_loss``; at least one.

    Attributes:
        seeds: as given.
        losses: the loss of each seed. Its parameters and targets are views of the stacked ones: it acts and evaluates
            with what is trained here. Cast and move the whole; a seed's loss alone only after ``copy.deepcopy``.

    Raises:
        TypeError: if ``make_loss`` gives no EDP loss.
        RuntimeError: by methods that would change keys, outputs or value estimator afterwards.
        ValueError: without seeds, if settings differ among them or are none for several seeds (value estimators other
            than TD0, ``scalar_output_mode="non_tensor"``), or if networks share parameters.

    Examples:
        >>> import torch
        >>> from torchrl_edp import EDPIQLLoss
        >>> from torchrl_edp.data import from_arrays, make_replay_buffer
        >>> from torchrl_edp.training import DiffusionSettings, EDPTargetUpdate, NetworkSettings, TrainState
        >>> from torchrl_edp.training import build_actor, build_qvalue, build_value
        >>> network = NetworkSettings(hidden_sizes=[8])
        >>> def make_loss():
        ...     actor = build_actor(3, 2, network, DiffusionSettings())
        ...     loss = EDPIQLLoss(actor, build_qvalue(3, 2, network), build_value(3, network))
        ...     return loss.make_value_estimator(gamma=0.99)
        >>> data = from_arrays(torch.rand(9, 3), torch.rand(9, 2), torch.rand(9), [0] * 8 + [1], [0] * 9)
        >>> loss = MultiSeedLoss(make_loss, seeds=range(5))
        >>> buffer = make_replay_buffer(data.transitions, batch_size=4)
        >>> state = TrainState(loss, buffer, EDPTargetUpdate(loss))
        >>> state.update()["loss_actor"].shape
        torch.Size([5])
    """

    def __init__(self, make_loss: Callable[[], EDPLoss], seeds: Iterable[int]) -> None:
        seeds = tuple(seeds)
        losses = tuple(_seeded(make_loss, seeds))
        _check(losses)
        super().__init__()
        for loss in losses:  # its targets follow those of all seeds
            loss._has_update_associated.update(dict.fromkeys(loss._has_update_associated, True))
        self.seeds, self.num_seeds = seeds, len(seeds)
        self.sequential_terms = losses[0].sequential_terms
        self.in_keys, self.out_keys = losses[0].in_keys, losses[0].out_keys
        # Beside the modules: what is trained are the stacked parameters, once.
        self.__dict__["losses"] = losses
        self.__dict__["_template"] = template = copy.copy(losses[0])
        template.__dict__["_checkpointed_network"] = template._network  # nothing is computed again under vmap
        for term in losses[0].terms:
            self.__dict__[term] = partial(self._each, term)
        self._stack()
        self._share()
        sources = [name for name in self._modules if not name.startswith("target_")]
        self._untargeted = {name for name in sources if f"target_{name}" not in self._modules}
        self._has_update_associated = {name.removesuffix("_params"): name in self._untargeted for name in sources}
        self._fill(self._entries())

    def _stack(self) -> None:
        """Register parameters and targets of all seeds, stacked: parameters as parameters, the rest as buffers."""
        for name, params in _networks(self.losses[0]):
            stacked = cast(TensorDict, torch.stack([getattr(loss, name).data for loss in self.losses])).contiguous()
            for key, own in params.items(True, True):
                value = stacked.get(key)
                is_parameter = isinstance(own, nn.Parameter)
                stacked.set(key, nn.Parameter(value, own.requires_grad) if is_parameter else nn.Buffer(value))
            self._modules[name] = TensorDictParams(stacked, no_convert=True)
        for name, own in self.losses[0].named_parameters(recurse=False):
            values = torch.stack([getattr(loss, name).data for loss in self.losses])
            self.register_parameter(name, nn.Parameter(values, own.requires_grad))

    def _entries(self) -> dict[str, Any]:
        """What is stacked, by name: tensordicts of networks and single parameters."""
        return {**self._modules, **self._parameters}

    def _share(self) -> None:
        """Make the tensors of every seed's loss views of the stacked ones."""
        for name, value in self._entries().items():
            for seed, loss in enumerate(self.losses):
                own = getattr(loss, name)
                if isinstance(own, TensorDictParams):
                    for key, tensor in own.items(True, True):
                        tensor.data = value.get(key).data[seed]
                else:
                    own.data = value.data[seed]

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """All losses of all seeds from the same parameters, as the loss of one gives them.

        Args:
            tensordict: a batch of every seed [S, *B].

        Returns:
            Losses and metrics [S, ...]. Priorities are not written.
        """
        return cast(TensorDict, self._each("forward", tensordict))

    def reset_parameters_recursive(self) -> None:
        """Draw the parameters of every seed anew, as the loss of one does."""
        for loss in self.losses:
            loss.reset_parameters_recursive()

    def set_keys(self, **kwargs: Any) -> NoReturn:
        """Refused: ``make_loss`` sets them."""
        raise _set_too_late("set_keys")

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> NoReturn:
        """Refused: ``make_loss`` makes it."""
        raise _set_too_late("make_value_estimator")

    def select_out_keys(self, *out_keys: Any) -> NoReturn:
        """Refused: ``make_loss`` selects them."""
        raise _set_too_late("select_out_keys")

    def _each(self, term: str, tensordict: TensorDictBase) -> Any:
        """``term`` of every seed's loss. Inside, the template has the parameters of one seed."""
        if tensordict.batch_size[:1] != (self.num_seeds,):
            batch_size = list(tensordict.batch_size)
            raise ValueError(f"Expected a batch of every seed, [{self.num_seeds}, ...], got batch size {batch_size}.")

        def one(own: dict[str, Any], batch: TensorDictBase) -> Any:
            self._fill(own)
            return getattr(self._template, term)(batch)

        stacked = self._entries()
        try:
            return torch.vmap(one, randomness="different")(stacked, tensordict)
        finally:
            self._fill(stacked)

    def _fill(self, values: Mapping[str, Any]) -> None:
        """Give the template parameters, which hide those of the loss that it is a copy of."""
        for name, value in values.items():
            object.__setattr__(self._template, name, value)
            if name in self._untargeted:  # V of IQL; TorchRL would take its data, which vmap has not
                object.__setattr__(self._template, f"target_{name}", value.detach())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()  # copies of views are none

    def _apply(self, fn: Callable[..., Any]) -> MultiSeedLoss:
        for loss in self.losses:
            loss._apply(fn)
        super()._apply(fn)
        self._share()
        return self


def _set_too_late(name: str) -> RuntimeError:
    return RuntimeError(f"MultiSeedLoss: {name} has no effect on losses that are built. Call it in make_loss.")


def _seeded(make_loss: Callable[[], EDPLoss], seeds: Iterable[int]) -> Iterator[EDPLoss]:
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield make_loss()


def _networks(loss: EDPLoss) -> Iterator[tuple[str, TensorDictParams]]:
    for name, module in loss.named_children():
        if isinstance(module, TensorDictParams):
            yield name, module


def _check(losses: Sequence[EDPLoss]) -> None:
    if not losses:
        raise ValueError("MultiSeedLoss: expected at least one seed, got none.")
    for loss in losses:
        if not isinstance(loss, EDPLoss):
            raise TypeError(f"MultiSeedLoss: make_loss must give an EDP loss, got {type(loss).__name__}.")
    first = _settings(losses[0])
    if not isinstance(losses[0].value_estimator, TD0Estimator) or losses[0].scalar_output_mode == "non_tensor":
        raise ValueError(
            "MultiSeedLoss: expected the value estimator TD0 and no scalar_output_mode='non_tensor', got "
            f"{first['value_estimator']} and {losses[0].scalar_output_mode!r}."
        )
    for loss in losses[1:]:
        own = _settings(loss)
        if different := sorted(name for name in first.keys() | own.keys() if first.get(name) != own.get(name)):
            found = ", ".join(f"{name} {first.get(name)!r:.60} and {own.get(name)!r:.60}" for name in different)
            raise ValueError(f"MultiSeedLoss: make_loss must give the same settings at every call, got {found}.")
    params = [params for loss in losses for _, params in _networks(loss)]
    tensors = [tensor for td in params for tensor in td.values(True, True) if tensor.numel() and not tensor.is_meta]
    if len({tensor.untyped_storage().data_ptr() for tensor in tensors}) < len(tensors):
        raise ValueError(
            "MultiSeedLoss: networks share parameters. make_loss must build them anew at every call, and actor and "
            "critics must have none in common."
        )


def _settings(loss: EDPLoss) -> dict[str, Any]:
    """What a loss is but for its tensors, as far as it compares."""
    estimator = loss.value_estimator
    sampler = loss._sampler
    betas = {"betas": sampler.schedule.betas, "solver_kwargs": sampler.solver_kwargs}
    actors = {f"actor's {name}": value for name, value in {**_plain(sampler), **betas}.items()}
    about = {"class": type(loss).__name__, "value_estimator": type(estimator).__name__}
    settings = {**_plain(loss), **actors, **about, "keys": vars(loss.tensor_keys), "gamma": estimator.gamma}
    return {name: _comparable(value) for name, value in settings.items()}


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}


def _comparable(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_comparable, value))
    return value.tolist() if isinstance(value, torch.Tensor) else value
