"""Calling a module with other parameters than its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn


@contextlib.contextmanager
def parameters_in(module: nn.Module, params: TensorDictBase) -> Iterator[None]:
    """Inside, ``module`` has the tensors of ``params``, as ``params.to_module(module)`` gives it.

    Eagerly it costs less than that method, as it does less: no hooks of parameter registration, no memory of shared
    modules, no tensordict of what was there. Compiled calls go by that method.

    Args:
        module: whose parameters and buffers are replaced, and put back on leaving.
        params: nested as its submodules are; what it lacks stays.

    Examples:
        >>> from tensordict import TensorDict
        >>> layer = nn.Linear(2, 1)
        >>> zeros = TensorDict.from_module(layer).data.apply(torch.zeros_like)
        >>> with parameters_in(layer, zeros):
        ...     layer(torch.ones(1, 2))
        tensor([[0.]])
    """
    if torch.compiler.is_compiling():
        with params.to_module(module, preserve_module_state=False):
            yield
        return
    swapped: list[tuple[dict[str, Any], str, Any]] = []  # where a tensor was, its name, the tensor
    try:
        _swap(module, params, swapped)
        yield
    finally:
        for place, name, tensor in reversed(swapped):
            place[name] = tensor


def _swap(module: Any, params: TensorDictBase, swapped: list[tuple[dict[str, Any], str, Any]]) -> None:
    parameters, buffers = module._parameters, module._buffers
    for name, value in params.items():
        if isinstance(value, Tensor):
            place = parameters if name in parameters else buffers if name in buffers else module.__dict__
            swapped.append((place, name, place[name]))
            place[name] = value
        else:
            _swap(module._modules[name], value, swapped)
