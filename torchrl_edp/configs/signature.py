"""Dataclass fields from a loss's constructor, so that its arguments and defaults stand in one place."""

from __future__ import annotations

import inspect
from dataclasses import field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NETWORKS = ("actor_network", "qvalue_network", "value_network")


def loss_fields(loss: type) -> list[tuple[str, Any, Any]]:
    """(name, type, field) of every keyword argument of ``loss``, with types that OmegaConf can check.

    A choice of names becomes ``str`` (the names are the field's metadata, under ``"choices"``), a tuple ``list``, and
    what OmegaConf has no type for ``Any``.

    Examples:
        >>> from torchrl_edp import EDPIQLLoss
        >>> [(name, kind) for name, kind, _ in loss_fields(EDPIQLLoss) if name in ("temperature", "weight_cap")]
        [('temperature', <class 'float'>), ('weight_cap', float | None)]
    """
    hints = get_type_hints(loss.__init__)  # type: ignore[misc]
    parameters = list(inspect.signature(loss).parameters.values())
    return [
        (
            parameter.name,
            _checkable(hints[parameter.name]),
            field(default=parameter.default, metadata={"choices": _choices(hints[parameter.name])}),
        )
        for parameter in parameters
        if parameter.name not in NETWORKS
    ]


def _choices(hint: Any) -> tuple[str, ...]:
    """The names that a choice allows; none if the hint allows anything else but None."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if get_origin(hint) is not Literal else [hint]
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        return get_args(kinds[0])
    return ()


def _checkable(hint: Any) -> Any:
    if hint in (int, float, str, bool):
        return hint
    if get_origin(hint) is Literal:
        return str
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]]  # type: ignore[misc]
    if get_origin(hint) in (Union, UnionType):
        kinds = {kind: None for kind in map(_checkable, get_args(hint))}
        others = [kind for kind in kinds if kind is not type(None)]
        if len(others) == 1 and others[0] is not Any:
            return others[0] | None if type(None) in kinds else others[0]
    return hint if hint is type(None) else Any
