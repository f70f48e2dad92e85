"""Command lines that say what is wrong with them before anything runs."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

HYDRA_GROUPS = ("hydra", "hydra/")


def check_overrides(schema: type, overrides: Sequence[str] | None = None) -> None:
    """Exit with a helpful message if an override names no setting of ``schema``, or gives one a wrong type.

    Hydra itself says only that a key is not in the struct; a user wants to know which one was meant.

    Args:
        schema: a dataclass, the root of the configuration.
        overrides: ``key=value`` strings; by default those of the command line.

    Raises:
        SystemExit: with the message, at the first override that is wrong.

    Examples:
        >>> from torchrl_edp.configs import EDPIQLConfig
        >>> check_overrides(EDPIQLConfig, ["optim.lr=0.001"])
        >>> check_overrides(EDPIQLConfig, ["optim.learning_rate=0.001"])
        Traceback (most recent call last):
        SystemExit: Unknown setting 'optim.learning_rate'. ...
    """
    config = OmegaConf.structured(schema)
    keys = _keys(config)
    for override in sys.argv[1:] if overrides is None else overrides:
        key, separator, value = override.lstrip("+~").partition("=")
        if not separator or override.startswith("-") or key.startswith(HYDRA_GROUPS):
            continue
        if not _exists(config, key):
            raise SystemExit(_unknown(key, keys))
        if "," in value and not value.startswith(("[", "{")):
            continue  # a sweep; Hydra checks each value
        try:
            parsed = OmegaConf.select(OmegaConf.create(f"value: {value}"), "value")
            OmegaConf.update(OmegaConf.structured(schema), key, parsed)
        except OmegaConfBaseException as error:
            now = OmegaConf.select(config, key)
            reason = str(error).splitlines()[0]
            raise SystemExit(f"Wrong value for {key!r}: {value!r} ({reason}). The default is {now!r}.") from None


def _keys(config: Any, prefix: str = "") -> list[str]:
    keys = []
    for name in config:
        value = OmegaConf.select(config, name)
        full = f"{prefix}{name}"
        nested = OmegaConf.is_dict(value) and is_dataclass(OmegaConf.get_type(value))
        keys += _keys(value, f"{full}.") if nested else [full]
    return keys


def _exists(config: Any, key: str) -> bool:
    node = config
    for part in key.split("."):
        if not OmegaConf.is_dict(node):
            return False
        if not is_dataclass(OmegaConf.get_type(node)):
            return True  # a free-form dictionary
        if part not in node:
            return False
        node = OmegaConf.select(node, part)
    return True


def _unknown(key: str, keys: list[str]) -> str:
    group = key.rsplit(".", 1)[0] + "." if "." in key else ""
    leaf = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, keys, n=3)
    near += [k for k in keys if k.rsplit(".", 1)[-1] == leaf and k not in near]
    siblings = [k for k in keys if group and k.startswith(group)]
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    valid = ", ".join(siblings or sorted({k.split(".")[0] for k in keys}))
    return f"Unknown setting {key!r}.{meant}\nSettings here: {valid}."
