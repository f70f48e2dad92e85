"""Named presets: the paper's settings, its reference code's, and ours.

    python -m torchrl_edp.configs     # all of them side by side, as Markdown

A preset is a set of values for keys of the example scripts' configurations; ``default`` is the configurations' own
defaults, but for what other domains than locomotion need. Where the paper is silent, ``paper`` takes the reference
code's value.

Source: App. B of https://arxiv.org/abs/2305.20081 and its reference code, https://github.com/sail-sg/edp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from torchrl_edp.configs.experiments import COUNTERPARTS
from torchrl_edp.configs.feed_forward import IQL_BY_DOMAIN, feed_forward_values
from torchrl_edp.training.settings import ExperimentSettings

PRESETS = ("default", "paper", "reference", "reference-dpm")
DOMAINS = {
    "antmaze": ("antmaze",),
    "adroit": ("pen", "hammer", "door", "relocate"),
    "kitchen": ("kitchen",),
    "maze": ("pointmaze", "maze2d"),
    "locomotion": ("hopper", "halfcheetah", "walker2d"),
}

_DPM_SOLVER = {"diffusion.solver": "dpm_solver", "diffusion.num_calls": 15}
_DPM_OPTIONS = {"diffusion.solver_kwargs": {"order": 3, "spacing": "time"}}

# A maze is solved by choosing where to go: candidates must differ, and what the data did for many steps says little.
# There critics that ask what the policy would do overestimate; LayerNorm holds them.
_DEFAULT_BY_DOMAIN: dict[str, dict[str, Any]] = {
    "maze": {"data.return_steps": 1, "policy.num_action_samples": 10, "diffusion.initial_noise_scale": 1.0},
    "antmaze": {"data.return_steps": 1},
}
# What paper and reference code agree on, or where only the latter speaks. It does not lean on the defaults, which may
# change.
_COMMON: dict[str, Any] = {
    "data.normalize_observations": False,
    "data.return_steps": 1,
    "data.action_limit": 0.999,
    "replay_buffer.batch_size": 256,
    "network.hidden_sizes": [256, 256, 256],
    "network.activation": "mish",
    "network.embedding_size": 16,
    "network.layer_norm": False,
    "network.critic_layer_norm": False,
    "diffusion.schedule": "linear",
    "diffusion.prediction": "noise",
    "diffusion.initial_noise_scale": 1.0,
    "diffusion.policy_scale": 1.0,
    "policy.temperature": 1.0,
    "policy.mode": "sample",
    "policy.standardize": False,
    "policy.min_noise_scale": 1.0,
    "policy.averaged_actor": False,
    "policy.averaged_critics": False,
    "loss.gamma": 0.99,
    "loss.num_qvalue_nets": 2,
    "loss.loss_function": "l2",
    "loss.qvalue_aggregation": "min",
    "loss.guidance_weighting": "uniform",
    "loss.guidance_steps": None,
    "loss.guidance_start": "data",
    "loss.approximation_steps": None,
    "optim.lr": 3e-4,
    "optim.critic_lr": None,
    "optim.decay": "none",
    "optim.tau": 0.005,
    "optim.actor_tau": 0.005,
    "optim.actor_every": 5,
    "optim.actor_start": 1_000,
    "logger.eval_iter": 10_000,
    "logger.eval_envs": 10,
}
_COMMON_BY_LOSS: dict[str, dict[str, Any]] = {
    "edp_iql": {"loss.weight_normalization": None, "loss.deviation": 1.0, "loss.expectile": 0.7},
    "edp_td3": {
        "loss.alpha": 2.0,
        "loss.guidance_qvalue": "random",
        "loss.qvalue_normalization": "same",
        "loss.num_backup_actions": 1,
        "loss.backup_top_k": 1,
    },
    "edp_crr": {
        "loss.temperature": 1.0,
        "loss.weight_function": "exp",
        "loss.weight_normalization": None,
        "loss.baseline": "mean",
        "loss.num_action_samples": 10,
        "loss.sample_from": "approximation",
        "loss.sample_deviation": 1.0,
        "loss.clip_samples": False,
        "loss.deviation": 1.0,
        "loss.num_backup_actions": 1,
        "loss.backup_top_k": 1,
    },
}
_PAPER: dict[str, Any] = {
    "diffusion.num_steps": 1000,
    **_DPM_SOLVER,
    **_DPM_OPTIONS,
    "policy.num_action_samples": 10,
    "loss.clip_approximation": False,
    "loss.action_reduction": "sum",
    "optim.clip_grad": 5.0,
    "optim.update_order": "sequential",
}
_PAPER_BY_LOSS: dict[str, dict[str, Any]] = {
    "edp_iql": {"loss.likelihood": "approximation", "loss.temperature": 1.0, "loss.weight_cap": None},
    "edp_td3": {},
    "edp_crr": {"loss.likelihood": "approximation", "loss.weight_cap": None},
}
_PAPER_BY_DOMAIN: dict[str, dict[str, Any]] = {
    "locomotion": {"loss.guidance_weight": 1.0, "optim.gradient_steps": 2_000_000},
    "antmaze": {"loss.guidance_weight": 1.0, "optim.gradient_steps": 1_000_000},
    "adroit": {"loss.guidance_weight": 0.1, "optim.gradient_steps": 1_000_000, "optim.lr": 3e-5},
    "kitchen": {"loss.guidance_weight": 0.005, "optim.gradient_steps": 1_000_000},
    "maze": {"loss.guidance_weight": 1.0, "optim.gradient_steps": 1_000_000},
}
_REFERENCE: dict[str, Any] = {
    "diffusion.num_steps": 100,
    "diffusion.solver": "ddpm",
    "diffusion.num_calls": None,
    "diffusion.solver_kwargs": {"variance": "posterior"},
    "policy.num_action_samples": 50,
    "loss.guidance_weight": 1.0,
    "loss.clip_approximation": True,
    "loss.action_reduction": "mean",
    "optim.gradient_steps": 2_000_000,
}
_REFERENCE_BY_LOSS: dict[str, dict[str, Any]] = {
    "edp_iql": {
        "loss.likelihood": "log_prob",
        "loss.temperature": 3.0,
        "loss.weight_cap": 100.0,
        "optim.update_order": "sequential",
    },
    "edp_td3": {"optim.update_order": "joint"},
    "edp_crr": {"loss.likelihood": "log_prob", "loss.weight_cap": 20.0, "optim.update_order": "joint"},
}
# Largest gradient norm by data set, of the reference code; the first key whose words all occur in the name counts.
REFERENCE_CLIPS: dict[str, float] = {
    "halfcheetah medium replay": 2.0,
    "halfcheetah medium expert": 7.0,
    "halfcheetah medium": 9.0,
    "hopper medium replay": 4.0,
    "hopper medium expert": 5.0,
    "hopper medium": 9.0,
    "walker2d medium replay": 4.0,
    "walker2d medium expert": 5.0,
    "walker2d medium": 1.0,
    "antmaze umaze diverse": 3.0,
    "antmaze umaze": 2.0,
    "antmaze medium play": 2.0,
    "antmaze medium diverse": 1.0,
    "antmaze large play": 10.0,
    "antmaze large diverse": 7.0,
    "pen human": 7.0,
    "pen cloned": 8.0,
    "kitchen complete": 9.0,
    "kitchen partial": 10.0,
    "kitchen mixed": 10.0,
}
_OTHER_CLIP = 5.0  # the paper's


def domain_of(dataset: str) -> str:
    """The domain of a data set by the words of its name; ``"locomotion"`` where they say nothing.

    Examples:
        >>> domain_of("D4RL/antmaze/umaze-v1"), domain_of("mujoco/invertedpendulum/expert-v0")
        ('antmaze', 'locomotion')
    """
    words = _words(dataset)
    return next((domain for domain, tasks in DOMAINS.items() if words & set(tasks)), "locomotion")


def preset_values(preset: str, experiment: str, dataset: str) -> dict[str, Any]:
    """The configuration keys a preset sets, with their values.

    Args:
        preset: ``"default"`` (sets what is different outside of locomotion, nothing else), ``"paper"``,
            ``"reference"`` (the released code's defaults) or ``"reference-dpm"`` (K = 1000 and DPM-Solver).
        experiment: ``"edp_iql"``, ``"edp_td3"`` or ``"edp_crr"``.
        dataset: the data set's name; domain and gradient clip follow from it.

    Raises:
        ValueError: if there is no such preset.

    Examples:
        >>> preset_values("paper", "edp_iql", "D4RL/kitchen/complete-v2")["loss.guidance_weight"]
        0.005
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {PRESETS}, got {preset!r}.")
    domain = domain_of(dataset)
    if preset == "default":
        return _default_values(experiment, domain)
    if experiment in COUNTERPARTS:
        return feed_forward_values(experiment, domain, preset_values(preset, COUNTERPARTS[experiment], dataset))
    values = {**_COMMON, "data.reward_rule": _reward_rule(experiment, domain), **_COMMON_BY_LOSS[experiment]}
    if preset == "paper":
        values |= {**_PAPER, **_PAPER_BY_LOSS[experiment], **_PAPER_BY_DOMAIN[domain]}
        if experiment == "edp_iql" and domain == "antmaze":
            values["loss.expectile"] = 0.9
        return values
    values |= {**_REFERENCE, **_REFERENCE_BY_LOSS[experiment], "optim.clip_grad": _clip(dataset)}
    if preset == "reference-dpm":
        values |= {"diffusion.num_steps": 1000, **_DPM_SOLVER, **_DPM_OPTIONS}
    return values


def apply_preset(config: DictConfig, experiment: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A copy of ``config`` with the values of its preset, and over them those of ``overrides``, in their order.

    A dictionary given by ``key={...}`` takes the place of the preset's; ``+key={...}`` adds its entries. A preset's
    ``diffusion.solver_kwargs`` and ``num_calls`` belong to its solver: with another one they are dropped, and so are
    those of the defaults.

    Args:
        config: with its ``preset`` and ``dataset``.
        experiment: a key of ``SCHEMAS``.
        overrides: as Hydra reads them, none of them a sweep.

    Examples:
        >>> from torchrl_edp.configs import EDPIQLConfig
        >>> config = OmegaConf.structured(EDPIQLConfig(preset="paper"))
        >>> changed = apply_preset(config, "edp_iql", ["diffusion.solver_kwargs.order=2"])
        >>> changed.diffusion.solver_kwargs, changed.diffusion.num_steps
        ({'order': 2, 'spacing': 'time'}, 1000)
        >>> apply_preset(config, "edp_iql", ["diffusion.solver_kwargs={order: 2}"]).diffusion.solver_kwargs
        {'order': 2}
    """
    values = preset_values(config.preset, experiment, config.dataset)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    own = values.get("diffusion.solver", ExperimentSettings().diffusion.solver)
    solver = {override.key_or_group: override.value() for override in parsed}.get("diffusion.solver", own)
    if solver != own:
        values |= {"diffusion.solver_kwargs": {}, "diffusion.num_calls": None if solver == "ddpm" else 15}
    config = config.copy()
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=False)
    for override in parsed:
        key = override.key_or_group
        if override.is_delete():
            parent, _, name = key.rpartition(".")
            with open_dict(config):
                OmegaConf.select(config, parent).pop(name, None)
        elif override.is_add():
            OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
        else:
            _assign(config, key, override.value())
    return config


def _assign(config: DictConfig, key: str, value: Any) -> None:
    """Set a value, or those that are given of a group's; where keys are free, a dictionary is one value."""
    node = OmegaConf.select(config, key)
    if isinstance(value, dict) and OmegaConf.is_dict(node) and is_dataclass(OmegaConf.get_type(node)):
        for name, item in value.items():
            _assign(config, f"{key}.{name}", item)
    else:
        OmegaConf.update(config, key, value, merge=False, force_add=True)


def _default_values(experiment: str, domain: str) -> dict[str, Any]:
    """The domain's reward rule, IQL's own settings there, and what mazes need (examples/results)."""
    values = dict(_DEFAULT_BY_DOMAIN.get(domain, {}))
    counterpart = COUNTERPARTS.get(experiment)
    if counterpart:
        values = {key: value for key, value in values.items() if key.startswith("data.")}
    if domain in ("antmaze", "adroit", "kitchen"):
        values["data.reward_rule"] = _reward_rule(counterpart or experiment, domain)
    if domain == "maze" and (counterpart or experiment) in ("edp_td3", "edp_crr"):
        values["network.critic_layer_norm"] = True
    if experiment == "iql":
        values |= IQL_BY_DOMAIN.get(domain, {})
    if (experiment, domain) == ("edp_iql", "antmaze"):
        values["loss.expectile"] = 0.9
    return values


def _words(dataset: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", dataset.lower()))


def _reward_rule(experiment: str, domain: str) -> str:
    if domain == "antmaze":
        return "antmaze_iql" if experiment == "edp_iql" else "antmaze_td3"
    if domain in ("adroit", "kitchen"):
        return "min_max"
    return "return_range" if (experiment, domain) == ("edp_iql", "locomotion") else "raw"


def _clip(dataset: str) -> float:
    words = _words(dataset)
    return next((clip for key, clip in REFERENCE_CLIPS.items() if words >= set(key.split())), _OTHER_CLIP)
