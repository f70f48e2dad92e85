"""Tiny Minari sets, arrays and environments that count, so that every row says where it belongs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from safetensors.torch import save_file

from torchrl_edp.data import BehaviorPolicy

SHORT, LONG = 2, 40


class CountEnv(gymnasium.Env):
    """Observation [episode number, step]. Half of the episodes terminate after SHORT, half last LONG."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 6.0, (1,), np.float32)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.step_count = self.np_random.integers(1, 1_000_000), 0
        self.length = (SHORT, LONG)[self.np_random.integers(2)]
        return np.array([self.episode, 0.0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.step_count += 1
        ended = self.step_count == self.length
        terminated = ended and self.length == SHORT
        return np.array([self.episode, self.step_count]), 1.0, terminated, ended and not terminated, {}


gymnasium.register("edp-tests/Count-v0", "data_helpers:CountEnv")


def write_policy(folder: Path, stem: str, policy: BehaviorPolicy, **card: Any) -> None:
    """The two files of a behaviour policy."""
    save_file(policy.layers.state_dict(), folder / f"{stem}.safetensors")
    mapping = "scale = exp(clip(raw_scale, -5, 2))"
    known = {
        "env_id": "edp-tests/Count-v0",
        "hidden_sizes": [4],
        "scale_mapping": mapping,
    }
    (folder / f"{stem}.json").write_text(json.dumps({**known, **card}))


def arrays(layout: list[tuple[int, bool]]) -> dict[str, np.ndarray]:
    """Rows of episodes given as (length, terminated): observation [episode, step], true next observations."""
    rows: list[tuple] = []
    for episode, (length, terminated) in enumerate(layout, start=1):
        rows += [
            (episode, t, terminated and t == length - 1, not terminated and t == length - 1) for t in range(length)
        ]
    episode, step, terminations, truncations = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "observations": np.stack([episode, step], 1).astype(np.float64),
        "actions": (np.arange(1, len(rows) + 1) / len(rows))[:, None],
        "rewards": episode * 1.0,
        "terminations": terminations,
        "truncations": truncations,
        "next_observations": np.stack([episode, step + 1], 1).astype(np.float64),
    }


def make_minari(dataset_id: str, episodes: list[dict[str, Any]], **options: Any) -> None:
    """A Minari set from dicts of an episode's arrays."""
    import minari
    from minari.data_collector import EpisodeBuffer

    box = gymnasium.spaces.Box
    options.setdefault("observation_space", box(-np.inf, np.inf, (2,), np.float64))
    options.setdefault("action_space", box(-2.0, 6.0, (1,), np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            dataset_id, [EpisodeBuffer(id=i, **e) for i, e in enumerate(episodes)], **options
        )


def episode(number: int, length: int, terminated: bool = False, flagged: bool = True) -> dict[str, Any]:
    """One Minari episode: observations [number, step], rewards ``number``."""
    last = np.arange(length) == length - 1
    return {
        "observations": np.stack([np.full(length + 1, number), np.arange(length + 1)], 1).astype(np.float64),
        "actions": np.linspace(-2, 6, length)[:, None],
        "rewards": np.full(length, float(number)),
        "terminations": last & terminated,
        "truncations": last & (not terminated) & flagged,
    }
