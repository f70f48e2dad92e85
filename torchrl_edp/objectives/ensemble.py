"""Ensembles of critics: copies with weights of their own, and which can be called without vmap."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import nn
from torchrl.modules import ValueOperator

from torchrl_edp.modules import QValueNetwork
from torchrl_edp.modules.networks import has_hooks


def independent_copies(network: TensorDictModule, count: int) -> list[TensorDictModule]:
    """``network`` and ``count - 1`` copies, their trained weights drawn anew by the layers' own rule.

    What is not trained, frozen parameters and buffers, is the same in all. Weights that no layer draws anew are too,
    with a warning.

    Examples:
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl_edp.modules import ValueNetwork
        >>> first, second = independent_copies(ValueOperator(ValueNetwork(3)), 2)
        >>> torch.equal(*[next(critic.parameters()) for critic in (first, second)])
        False
    """
    originals = dict(network.named_parameters()) | dict(network.named_buffers())
    copies = [network, *(deepcopy(network) for _ in range(count - 1))]
    for copy in copies[1:]:
        copy.reset_parameters_recursive()
        for name, own in (dict(copy.named_parameters()) | dict(copy.named_buffers())).items():
            if not own.requires_grad:
                own.data.copy_(originals[name])
            elif torch.equal(own, originals[name]) and own.unique().numel() > 1:
                message = f"Critics start from the same {name}, which no layer draws anew: give a list of critics."
                warnings.warn(message, stacklevel=2)
    return copies


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}.")


def check_modules(name: str, networks: Iterable[Any]) -> None:
    """Refuse networks without keys, and those whose layers have no parameters yet."""
    for network in networks:
        if not isinstance(network, TensorDictModuleBase):
            raise TypeError(
                f"{name} must be a TensorDictModule, got {type(network).__name__}: wrap it, as in "
                "ValueOperator(QValueNetwork(11, 3), in_keys=['observation', 'action'])."
            )
        if any(nn.parameter.is_lazy(parameter) for parameter in network.parameters()):
            raise ValueError(f"{name} has lazy layers: call it once before making a loss.")


def is_plain(network: TensorDictModule, key: NestedKey) -> bool:
    """Whether ``network``, which is to write ``key``, is a :class:`QValueNetwork` that can be called as an ensemble.

    Eagerly, vmap and tensordicts cost as much as the products; compiled, they cost nothing.

    Examples:
        >>> from torchrl.modules import ValueOperator
        >>> network = ValueOperator(QValueNetwork(11, 3), in_keys=["observation", "action"])
        >>> is_plain(network, "state_action_value")
        True
    """
    if torch.compiler.is_compiling() or type(network) not in (TensorDictModule, ValueOperator) or has_hooks(network):
        return False
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))) or network.out_keys != [key]:
        return False
    by_position = not (network._kwargs or network.method or network.method_kwargs or network._get_kwargs)
    is_known = type(network.module) is QValueNetwork and network.module.is_plain()
    return by_position and len(network.in_keys) == 2 and is_known
