"""Settings that cannot work, alone or together, are refused before data are loaded."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import asdict
from functools import reduce
from importlib.util import find_spec
from typing import Any

import torch

from torchrl_edp.configs.experiments import LOSSES
from torchrl_edp.diffusion import check_interval
from torchrl_edp.objectives.ensemble import check_choice
from torchrl_edp.training.build import build_actor, build_qvalue, build_selector, build_value
from torchrl_edp.training.feed_forward import build_feed_forward_loss
from torchrl_edp.training.settings import ExperimentSettings, FeedForwardSettings, RunSettings

BACKENDS = ("", "csv", "tensorboard", "wandb", "mlflow", "trackio")
_COUNT, _SHARE = "[1, inf)", "[0, 1]"
_INTERVALS = {
    "seed": f"[0, {2**32})",  # others count on from it, and torch takes 64 bits
    "num_seeds": _COUNT,
    "env.max_episode_steps": _COUNT,
    "data.num_steps": _COUNT,
    "data.return_steps": _COUNT,
    "data.action_limit": "(0, 1]",
    "replay_buffer.batch_size": _COUNT,
    "optim.lr": "(0, inf)",
    "optim.critic_lr": "(0, inf)",
    "optim.clip_grad": "(0, inf)",
    "optim.gradient_steps": _COUNT,
    "optim.tau": _SHARE,
    "optim.actor_tau": _SHARE,
    "optim.actor_every": _COUNT,
    "optim.actor_start": "[0, inf)",
    "optim.policy_every": _COUNT,
    "loss.gamma": _SHARE,
    "loss.num_qvalue_nets": _COUNT,
    "loss.alpha": "[0, inf)",
    "loss.policy_noise": "[0, inf)",
    "loss.noise_clip": "[0, inf)",
    "loss.temperature": "[0, inf)",
    "loss.expectile": "(0, 1)",
    "logger.eval_iter": "[0, inf)",
    "logger.eval_envs": _COUNT,
    "logger.log_iter": _COUNT,
    "checkpoint.iter": "[0, inf)",
    "checkpoint.keep": _COUNT,
}


def check_settings(cfg: RunSettings) -> None:
    """Exit with a helpful message if a run of these settings cannot work.

    Numbers must lie where they mean something; networks, loss and policy are built once at the smallest size, so that
    what their constructors refuse is refused here. The random state is left alone.

    Args:
        cfg: all settings, with the loss's among them.

    Raises:
        SystemExit: with the setting, its value and what is valid.

    Examples:
        >>> from torchrl_edp.configs import EDPTD3Config
        >>> cfg = EDPTD3Config()
        >>> check_settings(cfg)
        >>> cfg.loss.backup_top_k = 2
        >>> check_settings(cfg)
        Traceback (most recent call last):
        SystemExit: Impossible loss settings: backup_top_k must lie in 1..num_backup_actions = 1, got 2.
    """
    with _refused(""):
        for key, interval in _INTERVALS.items():
            value = reduce(_entry, key.split("."), cfg)
            if value is not None:
                check_interval(key, value, interval)
        _check_backend(cfg.logger.backend)
        _check_device(cfg.optim.device)
        if isinstance(cfg, ExperimentSettings):
            _check_candidates(cfg)
        if isinstance(cfg, FeedForwardSettings):
            _check_return_steps(cfg)
    with torch.random.fork_rng(devices=[]):
        _build(cfg)


def _entry(node: Any, name: str) -> Any:
    return getattr(node, name, None)  # not every script has every setting


def _build(cfg: RunSettings) -> None:
    with _refused("network or diffusion"):
        if not cfg.network.hidden_sizes:
            raise ValueError("network.hidden_sizes must be one or more positive widths, got [].")
    if isinstance(cfg, ExperimentSettings):
        _build_diffusion(cfg)
    else:
        assert isinstance(cfg, FeedForwardSettings)
        with _refused("network or loss"):
            build_feed_forward_loss(cfg, 1, 1)


def _build_diffusion(cfg: ExperimentSettings) -> None:
    with _refused("network or diffusion"):
        actor = build_actor(1, 1, cfg.network, cfg.diffusion)
        qvalue, value = build_qvalue(1, 1, cfg.network), build_value(1, cfg.network)
    loss_class = LOSSES[type(cfg.loss)]
    arguments = asdict(cfg.loss)
    gamma = arguments.pop("gamma")
    with _refused("loss"):
        values = [value] if "value_network" in inspect.signature(loss_class).parameters else []
        loss_class(actor, qvalue, *values, **arguments).make_value_estimator(gamma=gamma)
    with _refused("policy"):
        build_selector(actor, qvalue, cfg.policy.selection)


def _check_backend(name: str) -> None:
    check_choice("logger.backend", name, BACKENDS)
    if name not in ("", "csv") and find_spec(name) is None:
        remedy = f"`pip install {name}`, or take logger.backend=csv"
        raise ValueError(f"logger.backend={name} expects the package {name}, which is not installed: {remedy}.")


def _check_device(name: str | None) -> None:
    if name is None:
        return
    try:
        torch.zeros(1, device=name).item()  # "meta" has tensors without values
    except (RuntimeError, AssertionError, ImportError) as error:
        found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ValueError(f"optim.device must be one of {', '.join(found)}, got {name!r}.") from error


def _check_candidates(cfg: ExperimentSettings) -> None:
    """Several actions at a state must be able to differ."""
    diffusion = cfg.diffusion
    drawn = diffusion.solver == "ddpm" or diffusion.solver_kwargs.get("eta", 0) != 0
    if diffusion.initial_noise_scale != 0 or drawn:
        return
    counts = {
        "policy.num_action_samples": cfg.policy.num_action_samples,
        "loss.num_backup_actions": getattr(cfg.loss, "num_backup_actions", 1),
    }
    if getattr(cfg.loss, "sample_from", None) == "policy":
        counts["loss.num_action_samples"] = cfg.loss.num_action_samples
    for key, count in counts.items():
        if count > 1:
            raise ValueError(
                f"diffusion.initial_noise_scale=0 makes all {key}={count} actions the same: set {key}=1, or a noise "
                "scale in (0, 1]."
            )


def _check_return_steps(cfg: FeedForwardSettings) -> None:
    """Refuse several steps where they would be ignored."""
    if cfg.data.return_steps != 1 and cfg.algorithm == "bc":
        reason = "with algorithm=bc, as it has no returns"
        raise ValueError(f"data.return_steps must be 1 {reason}; got {cfg.data.return_steps}.")


@contextlib.contextmanager
def _refused(group: str) -> Iterator[None]:
    """Whatever is refused inside ends the program with its message."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise SystemExit(f"Impossible {group + ' ' if group else ''}settings: {error}") from None
