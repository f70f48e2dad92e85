"""What is particular to the script of the feed-forward policies: which algorithm, and what a preset means for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from torchrl_edp.training.settings import ALGORITHMS

# What a run shares with its diffusion counterpart under the same preset; the rest is the algorithm's own.
_SHARED = ("data.", "replay_buffer.", "network.", "logger.", "optim.gradient_steps", "optim.clip_grad", "optim.tau")
_NOT_SHARED = "network.embedding_size"
_OWN: dict[str, dict[str, Any]] = {
    "td3_bc": {"loss.alpha": 2.5, "loss.policy_noise": 0.2, "loss.noise_clip": 0.5, "optim.policy_every": 2},
    "iql": {"loss.temperature": 3.0, "loss.expectile": 0.7, "optim.decay": "cosine"},
    "crr": {
        "loss.temperature": 1.0,
        "loss.weight_function": "exp",
        "loss.weight_cap": 20.0,
        "loss.weight_normalization": None,
        "loss.baseline": "mean",
        "loss.num_action_samples": 10,
        "loss.qvalue_aggregation": "min",
    },
    "bc": {},
}
_OF_CRITICS = {"loss.gamma": 0.99, "loss.num_qvalue_nets": 2, "loss.loss_function": "l2"}
_OF_ALL = {
    "policy.averaged_actor": False,
    "optim.lr": 3e-4,
    "optim.critic_lr": None,
    "optim.decay": "none",
    "optim.policy_every": 1,
}
# Of IQL's paper, https://arxiv.org/abs/2110.06169, where they are not those of locomotion
IQL_BY_DOMAIN: dict[str, dict[str, Any]] = {
    "antmaze": {"loss.temperature": 10.0, "loss.expectile": 0.9},
    "adroit": {"loss.temperature": 0.5},
    "kitchen": {"loss.temperature": 0.5},
}


def feed_forward_values(algorithm: str, domain: str, counterpart: dict[str, Any]) -> dict[str, Any]:
    """The configuration keys that a preset sets for a feed-forward algorithm, with their values.

    Args:
        algorithm: ``"td3_bc"``, ``"iql"``, ``"crr"`` or ``"bc"``.
        domain: of the data set, see ``domain_of``; IQL's settings go by it.
        counterpart: what the preset sets for the diffusion policy: data, batches, networks, evaluation, length and
            clipping are taken from there.

    Examples:
        >>> values = feed_forward_values("iql", "antmaze", {"data.action_limit": 0.9, "loss.expectile": 0.8})
        >>> values["data.action_limit"], values["loss.expectile"]
        (0.9, 0.9)
    """
    values = {key: value for key, value in counterpart.items() if key.startswith(_SHARED) and key != _NOT_SHARED}
    values |= {**_OF_ALL, **(_OF_CRITICS if algorithm != "bc" else {}), **_OWN[algorithm]}
    return values | (IQL_BY_DOMAIN.get(domain, {}) if algorithm == "iql" else {})


def chosen_algorithm(overrides: Sequence[str]) -> str:
    """The algorithm of a command line: as ``algorithm`` says, or as that of the run that ``resume`` names.

    Raises:
        SystemExit: if there is no such algorithm.

    Examples:
        >>> chosen_algorithm(["seed=1", "algorithm=crr"]), chosen_algorithm([])
        ('crr', 'td3_bc')
        >>> chosen_algorithm(["algorithm=td3"])
        Traceback (most recent call last):
        SystemExit: Unknown algorithm 'td3': choose one of td3_bc, iql, crr, bc, one a command.
    """
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    config = Path(given.get("resume", "null").strip("'\""), "config.yaml")
    if "algorithm" in given or not config.exists():
        name = given.get("algorithm", ALGORITHMS[0])
    else:
        name = OmegaConf.select(OmegaConf.load(config), "algorithm", default=ALGORITHMS[0])
    if name not in ALGORITHMS:
        raise SystemExit(f"Unknown algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}, one a command.")
    return name
