"""Command lines that say what is wrong with them before anything runs."""

from __future__ import annotations

import difflib
import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchrl_edp.configs.checks import check_settings
from torchrl_edp.configs.experiments import SCHEMAS
from torchrl_edp.configs.help import choices, help_text
from torchrl_edp.configs.presets import apply_preset
from torchrl_edp.configs.resume import data_folder, resume_overrides, with_overrides
from torchrl_edp.data import DatasetError
from torchrl_edp.training.checkpoint import CheckpointError
from torchrl_edp.training.lock import RunLockError
from torchrl_edp.training.run import RunFolder
from torchrl_edp.training.settings import RunSettings

# At import: launchers of sweeps make folders in processes of their own.
OmegaConf.register_new_resolver("data_folder", data_folder, replace=True)
_RUN = "${data_folder:${dataset}}/seed${seed}_${now:%Y-%m-%d_%H-%M-%S}"


def launch(name: str, job: Callable[[DictConfig], Any]) -> None:
    """Run ``job`` as a Hydra application on the typed configuration of experiment ``name``.

    The command line is checked first, and ``--help`` answered; every run gets a folder
    ``runs/<name>/<dataset>/seed<seed>_<time>``, followed by its number in a sweep (``-m``), or goes on in the one that
    ``resume`` names. Errors that tell a user what to do come without a traceback.

    Args:
        name: ``"edp_iql"``, ``"edp_td3"``, ``"edp_crr"``, or a feed-forward algorithm: a key of ``SCHEMAS``.
        job: takes the resolved configuration; see :func:`start`.
    """
    # What tensordict says while it is being compiled concerns nobody who runs this.
    warnings.filterwarnings("ignore", message="Using lock_|torch._dynamo.config.inline_inbuilt_nn_modules")
    check_overrides(SCHEMAS[name])
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(name, sys.argv[1:]))
        return
    ConfigStore.instance().store(name=name, node=SCHEMAS[name])
    arguments = resume_overrides(name, sys.argv[1:]) or _with_folders(name, sys.argv[1:])
    sys.argv[1:] = _with_new_entries(SCHEMAS[name], arguments)

    @functools.wraps(job)
    def run(config: DictConfig) -> None:
        try:
            job(config)
        except (DatasetError, CheckpointError, RunLockError, FloatingPointError) as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from error

    hydra.main(version_base="1.3", config_path=None, config_name=name)(run)()


def _with_folders(name: str, arguments: Sequence[str]) -> list[str]:
    """The command line with where runs go."""
    folders = [f"hydra.run.dir='runs/{name}/{_RUN}'", f"hydra.sweep.dir=runs/{name}"]
    folders.append(f"hydra.sweep.subdir='{_RUN}_${{hydra:job.num}}'")
    return with_overrides(arguments, folders)


def _with_new_entries(schema: type, arguments: Sequence[str]) -> list[str]:
    """The command line with ``++`` before dictionaries and their entries: Hydra refuses entries that are not there."""
    config = OmegaConf.structured(schema)

    def may_add(text: str) -> bool:
        key, _, value = text.partition("=")
        return key.split(".")[0] in config and (value.startswith("{") or _in_dictionary(config, key))

    return [f"++{text}" if may_add(text) else text for text in arguments]


def start(config: DictConfig) -> tuple[RunSettings, RunFolder]:
    """Settings and folder of the Hydra job that is running: its preset applied, its seed set.

    Raises:
        SystemExit: if the settings cannot work; see :func:`check_settings`.
    """
    job = HydraConfig.get()
    name = str(job.job.config_name)
    config = apply_preset(config, name, job.overrides.task)
    cfg: Any = OmegaConf.to_object(config)
    check_settings(cfg)
    folder = RunFolder(
        job.runtime.output_dir,
        backend=cfg.logger.backend,
        name=name,
        overrides=list(job.overrides.task),
        config=OmegaConf.to_yaml(config),
    )
    torch.manual_seed(cfg.seed)
    return cfg, folder


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
        key, separator, _ = override.lstrip("+~").partition("=")
        if not separator or override.startswith("-") or key.split(".")[0].split("/")[0] == "hydra":
            continue
        if not _exists(config, key):
            raise SystemExit(_unknown(key, keys))
        for value in _values(override):
            names = choices(schema, key)
            if names and value is not None and value not in names:
                raise SystemExit(f"Unknown {key} {value!r}: choose one of {', '.join(names)}.")
            now = OmegaConf.select(config, key)
            if OmegaConf.is_dict(now) and not isinstance(value, dict):
                inner = ", ".join(f"{key}.{entry}" for entry in now)
                raise SystemExit(f"Wrong value for {key!r}: {value!r}. Expected its settings one by one: {inner}.")
            try:
                OmegaConf.update(OmegaConf.structured(schema), key, value)
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0]
                whole = isinstance(value, float) and value.is_integer() and "Integer" in reason
                remedy = f"Write {key}={int(value)}" if whole else f"The default is {now!r}"
                raise SystemExit(f"Wrong value for {key!r}: {value!r} ({reason}). {remedy}.") from None


def _values(override: str) -> list[Any]:
    """The value of an override as Hydra reads it; several if it is a sweep, none where Hydra cannot read it."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        values: list[Any] = list(parsed.sweep_iterator()) if parsed.is_sweep_override() else [parsed.value()]
    except HydraException:
        return []  # Hydra says why
    return [value.text if isinstance(value, QuotedString) else value for value in values]


def _keys(config: Any, prefix: str = "") -> list[str]:
    keys = []
    for name in config:
        value = OmegaConf.select(config, name)
        full = f"{prefix}{name}"
        nested = OmegaConf.is_dict(value) and is_dataclass(OmegaConf.get_type(value))
        keys += _keys(value, f"{full}.") if nested else [full]
    return keys


def _exists(config: Any, key: str) -> bool:
    if _in_dictionary(config, key):
        return True
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(config, group) if group else config
    return OmegaConf.is_dict(node) and name in node


def _in_dictionary(config: Any, key: str) -> bool:
    """Whether a key is, or lies in, a dictionary whose keys are free."""
    parts = key.split(".")
    nodes = (OmegaConf.select(config, ".".join(parts[: count + 1])) for count in range(len(parts)))
    return any(OmegaConf.is_dict(node) and not is_dataclass(OmegaConf.get_type(node)) for node in nodes)


def _unknown(key: str, keys: list[str]) -> str:
    group = key.rsplit(".", 1)[0] + "." if "." in key else ""
    leaf = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, keys, n=3)
    near += [k for k in keys if k.rsplit(".", 1)[-1] == leaf and k not in near]
    siblings = [k for k in keys if group and k.startswith(group)]
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    valid = ", ".join(siblings or sorted({k.split(".")[0] for k in keys}))
    return f"Unknown setting {key!r}.{meant}\nSettings here: {valid}."
