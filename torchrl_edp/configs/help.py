"""What ``--help`` says of a script: how to call it, and every setting with its value and its choices."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from torchrl_edp.configs.experiments import SCHEMAS
from torchrl_edp.configs.presets import PRESETS, apply_preset


def help_text(name: str, overrides: Sequence[str] = ()) -> str:
    """The script's docstring, and the settings that a run with these overrides would have, as YAML.

    Args:
        name: a key of ``SCHEMAS``.
        overrides: ``key=value``; of a sweep, and of what is no setting, nothing is shown.

    Raises:
        SystemExit: if Hydra cannot read one of them.

    Examples:
        >>> "  solver: dpm_solver  # ddpm, ddim, dpm_solver, dpm_solver_pp" in help_text("edp_iql", ["preset=paper"])
        True
    """
    config = OmegaConf.structured(SCHEMAS[name])
    settings = (text for text in overrides if not text.startswith(("-", "hydra.", "hydra/")))
    given = [text for text in settings if "=" in text or text.startswith("~")]
    try:
        parsed = [each for each in OverridesParser.create().parse_overrides(given) if not each.is_sweep_override()]
    except HydraException as error:
        raise SystemExit(f"{error}") from None
    for override in parsed:
        if override.key_or_group in ("dataset", "preset"):  # they decide others
            config[override.key_or_group] = override.value()
    config = apply_preset(config, name, [str(override.input_line) for override in parsed])
    about = sys.modules["__main__"].__doc__ or ""
    title = "Settings: defaults, the preset's and yours; behind #, what may be chosen (--hydra-help: Hydra's own)"
    return "\n".join([about, f"{title}\n", *_lines(SCHEMAS[name](), config)])


def choices(schema: type, key: str) -> tuple[str, ...]:
    """The names a setting may take, by its dotted key; none where it is no choice of names."""
    *path, name = key.split(".")
    node = schema()
    for part in path:
        node = getattr(node, part, None)
    return _choices(node, name)


def _choices(node: Any, name: str) -> tuple[str, ...]:
    if name == "preset":
        return PRESETS
    entries = {entry.name: entry for entry in fields(node)} if is_dataclass(node) else {}
    return entries[name].metadata.get("choices", ()) if name in entries else ()


def _lines(node: Any, config: DictConfig, indent: str = "") -> Iterator[str]:
    for name in map(str, config):
        value = config[name]
        if OmegaConf.is_dict(value) and value and is_dataclass(getattr(node, name, None)):
            yield f"{indent}{name}:"
            yield from _lines(getattr(node, name), value, f"{indent}  ")
        else:
            comment = ", ".join(_choices(node, name))
            yield f"{indent}{name}: {value_text(value)}" + (f"  # {comment}" if comment else "")


def value_text(value: Any) -> str:
    """A value as a command line takes it."""
    if OmegaConf.is_config(value):
        return value_text(OmegaConf.to_container(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
