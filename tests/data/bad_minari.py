"""Bad Minari sets, folders and ids.

A case is ``(prepare, field and expected, got, remedy)``; ``prepare(folder)`` damages things there and returns the
call to refuse.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from bad_arrays import BOX, FLOAT32, REPAIR, Call, Case, Prepare, call, zeros
from data_helpers import episode, make_minari

from torchrl_edp.data import (
    load_dataset,
    load_minari,
)

Box = gymnasium.spaces.Box


def minari_set(damage: Callable[[Path], None], **options: Any) -> Prepare:
    """A set of two episodes (3 and 4 steps), damaged, then loaded."""

    def prepare(folder: Path) -> Call:
        make_minari("tiny/set-v0", [episode(1, 3, True), episode(2, 4)])
        damage(folder / "minari" / "tiny" / "set-v0" / "data")
        return lambda: load_minari("tiny/set-v0", download=False, **options)

    return prepare


def content(field: str, value: Any) -> Prepare:
    """Another array at ``field``, or none."""

    def damage(data: Path) -> None:
        with h5py.File(data / "main_data.hdf5", "a") as file:
            del file[field]
            if value is not None:
                file[field] = value

    return minari_set(damage)


def about(**changes: Any) -> Prepare:
    """Other metadata."""

    def damage(data: Path) -> None:
        known = json.loads((data / "metadata.json").read_text())
        (data / "metadata.json").write_text(json.dumps({**known, **changes}))

    return minari_set(damage)


def uninstalled(data: Path) -> None:
    """Spaces have to come from an environment that is not installed."""
    known = json.loads((data / "metadata.json").read_text())
    del known["observation_space"]
    spec = gymnasium.envs.registration.EnvSpec("Maze-v0", entry_point="no_such_package.envs:Maze")
    (data / "metadata.json").write_text(json.dumps({**known, "env_spec": spec.to_json()}))


def spaces(**options: Any) -> Prepare:
    """Episodes under another space."""

    def prepare(folder: Path) -> Call:
        make_minari("tiny/set-v0", [episode(1, 3)], **options)
        return lambda: load_dataset("tiny/set-v0", download=False)

    return prepare


def goals(missing: str | None = None, **options: Any) -> Prepare:
    """Dict observations, an entry of which may be missing in the second episode."""
    space = gymnasium.spaces.Dict({key: Box(-9, 9, (2,), np.float64) for key in ("achieved_goal", "observation")})

    def prepare(folder: Path) -> Call:
        records = [episode(n, 3) for n in (1, 2)]
        records = [{**r, "observations": {key: r["observations"] for key in space}} for r in records]
        make_minari("tiny/set-v0", records, observation_space=space)
        if missing:
            with h5py.File(folder / "minari/tiny/set-v0/data/main_data.hdf5", "a") as file:
                del file[f"episode_1/observations/{missing}"]
        return lambda: load_minari("tiny/set-v0", **options)

    return prepare


def box(size: int, low: float = -9.0, high: float = 9.0) -> str:
    return json.dumps({"type": "Box", "dtype": "float64", "shape": [size], "low": [low] * size, "high": [high] * size})


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Prepare:
    return minari_set(lambda data: (data / name).write_bytes(change((data / name).read_bytes())) and None)


def interrupted_download(folder: Path) -> Call:
    """A server that breaks off after the first file."""

    class Remote:
        def download_dataset(self, dataset_id: str, path: Path) -> None:
            (Path(path) / dataset_id / "data").mkdir(parents=True)
            (Path(path) / dataset_id / "data" / "main_data.hdf5").write_bytes(b"half")
            raise ConnectionError("reset by peer")

    def load() -> None:
        with pytest.MonkeyPatch.context() as patch:
            hosting = minari.storage.hosting
            known = {"far-v0": {"minari_version": minari.__version__}}
            patch.setattr(hosting, "list_remote_datasets", lambda **_: known)
            patch.setattr(hosting, "get_cloud_storage", lambda **_: Remote())
            load_dataset("far-v0")

    return load


HDF5, CARD = "main_data.hdf5", "metadata.json"
DELETE = "delete the folder and load the set again"
READABLE = "expected a readable Minari data set"
STEPS = "Minari stores T + 1 observations"
WHOLE = "expected a whole number, at least 0"
IDS = "expected an id such as mujoco/hopper/medium-v0"

MINARI: dict[str, Case] = {
    "reward NaN": (
        content("episode_1/rewards", [1, np.nan, 1, 1]),
        "episode 1, rewards: expected finite",
        "row 1",
        REPAIR,
    ),
    "observation inf": (
        content("episode_0/observations", np.full((4, 2), np.inf)),
        "episode 0, observations: expected finite",
        "row 0",
        REPAIR,
    ),
    "T observations": (
        content("episode_1/observations", np.ones((4, 2))),
        "episode 1, observations: expected 4 steps",
        "3",
        STEPS,
    ),
    "T + 1 actions": (
        content("episode_1/actions", np.ones((5, 1))),
        "episode 1, actions: expected 4 steps",
        "5",
        STEPS,
    ),
    "fewer flags": (content("episode_1/truncations", [0, 1]), "episode 1, truncations: expected 4 steps", "2", STEPS),
    "flag 3": (
        content("episode_0/terminations", [0, 0, 3]),
        "episode 0, terminations: expected flags",
        "3.0",
        "threshold",
    ),
    "empty episode": (
        content("episode_1/rewards", zeros(0)),
        "episode 1: expected at least one step",
        "none",
        "Remove",
    ),
    "byte strings": (
        content("episode_0/rewards", [b"a"] * 3),
        "episode 0, rewards: expected numbers",
        "dtype",
        FLOAT32,
    ),
    "scalar rewards": (content("episode_0/rewards", 1.0), f"episode 0: {READABLE}", "scalar", DELETE),
    "no actions": (content("episode_1/actions", None), f"episode 1: {READABLE}", "KeyError", DELETE),
    "no episode": (content("episode_1", None), f"episode 1: {READABLE}", "'episode_1' doesn't exist", DELETE),
    "half a file": (rewrite(HDF5, lambda b: b[: len(b) // 2]), f"episode 0: {READABLE}", "truncated file", DELETE),
    "no HDF5": (rewrite(HDF5, lambda b: b"observation,action\n" * 99), f"episode 0: {READABLE}", "OSError", DELETE),
    "empty file": (rewrite(HDF5, lambda b: b""), f"episode 0: {READABLE}", "OSError", DELETE),
    "missing file": (minari_set(lambda data: (data / HDF5).unlink()), READABLE, "No data found", DELETE),
    "missing card": (
        minari_set(lambda data: (data / CARD).unlink()),
        "expected a Minari data set",
        "no metadata.json",
        "after an interrupted download, delete it",
    ),
    "half a card": (rewrite(CARD, lambda b: b[:-20]), READABLE, "JSONDecodeError", DELETE),
    "binary card": (rewrite(CARD, lambda b: b"\xff\xfe"), READABLE, "UnicodeDecodeError", DELETE),
    "card of a list": (rewrite(CARD, lambda b: b"[]"), "metadata.json: expected a JSON object", "list", DELETE),
    "card's steps": (about(total_steps=8), "expected 8 steps as in metadata.json", "7 steps", "delete its folder"),
    "card's episodes": (about(total_episodes=3), f"episode 2: {READABLE}", "'episode_2' doesn't exist", DELETE),
    "card of no episode": (
        about(total_steps=0, total_episodes=0),
        "expected at least one episode",
        "none",
        "Delete its",
    ),
    "steps as text": (about(total_steps="7"), f"total_steps in .*metadata.json: {WHOLE}", "'7'", DELETE),
    "steps NaN": (about(total_steps=np.nan), f"total_steps in .*metadata.json: {WHOLE}", "nan", DELETE),
    "negative episodes": (about(total_episodes=-1), f"total_episodes in .*metadata.json: {WHOLE}", "-1", DELETE),
    "no environment": (minari_set(uninstalled), READABLE, "No module named 'no_such_package'", "Install its env"),
    "no id": (about(dataset_id=None), "dataset_id in .*metadata.json: expected a text", "None", DELETE),
    "no action space": (about(action_space=None), "action_space in .*metadata.json: expected a text", "None", DELETE),
    "unknown format": (about(data_format="zarr"), READABLE, "KeyError: 'zarr'", DELETE),
    "future version": (about(minari_version="99.0.0"), READABLE, "does not support", DELETE),
    "NaN space": (about(action_space=box(1, low=np.nan)), READABLE, "nan", DELETE),
    "space of no width": (about(action_space=box(1, low=9.0)), "action bounds of entry 0", "low 9.0, high 9.0", BOX),
    "wrong observation space": (
        about(observation_space=box(3)),
        "episode 0, observations: expected 3 entries",
        "2",
        "Correct the space",
    ),
    "wrong action space": (
        about(action_space=box(2)),
        "episode 0, actions: expected 2 entries",
        "1",
        "Correct the space",
    ),
    "equal scores": (about(ref_min_score=1, ref_max_score=1), "ref_min_score and", "1 and 1", "Correct or remove"),
    "NaN score": (about(ref_min_score=1, ref_max_score=np.nan), "ref_min_score and", "1 and nan", "Correct or remove"),
    "wrong parts": (
        about(local_counterpart={"episodes": {"medium": 5}}),
        "local_counterpart in metadata.json: expected parts of 2 episodes",
        "{'medium': 5}",
        "make_local_dataset makes it again",
    ),
    "discrete actions": (
        spaces(action_space=gymnasium.spaces.Discrete(3)),
        "actions: expected a Box space",
        r"Discrete\(3\)",
        "continuous vectors",
    ),
    "images": (spaces(observation_space=Box(0, 1, (2, 1))), "Box space of one axis", r"\[2, 1\]", "Flatten it"),
    "unbounded": (spaces(action_space=Box(-np.inf, np.inf, (1,))), "action bounds of entry 0", "low -inf", BOX),
    "beyond the space": (spaces(action_space=Box(-3, 3, (1,))), "actions: expected values in", "6.0", "clip_actions"),
    "entry missing": (
        goals("achieved_goal"),
        "episode 1, observations: expected the entries",
        "achieved_goal",
        "Choose",
    ),
    "unknown entry": (
        goals(observation_keys=["goal"]),
        "observation_keys: expected some of",
        "goal",
        "Choose from these",
    ),
    "entry twice": (
        goals(observation_keys=["observation"] * 2),
        "each once",
        "'observation', 'obs",
        "Choose from these",
    ),
    "no dict": (
        minari_set(lambda data: None, observation_keys=["a"]),
        "observation_keys: expected None",
        "a",
        "Leave it",
    ),
    "no folder": (
        lambda folder: lambda: load_minari(folder / "no"),
        "expected a Minari",
        "no metadata.json",
        "Give the fol",
    ),
    "malformed id": (call(load_dataset, "mujoco/hopper"), IDS, "'mujoco/hopper'", "On this machine: none"),
    "unknown id": (call(load_dataset, "no-v0", download=False), "'no-v0': expected an id", "not found", "Check the id"),
    "no name": (call(load_dataset, ""), IDS, "''", "On this machine"),
    "number for a name": (call(load_minari, 3), IDS, "3", "On this machine"),
    "endless name": (call(load_dataset, "x" * 5000), READABLE, "name too long", "delete"),
    "interrupted download": (interrupted_download, "'far-v0': expected an id", "reset by peer", "the network"),
}
