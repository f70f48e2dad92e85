"""Bad recipes and behaviour policies of local sets; files that one may not read or write.

A case is ``(prepare, field and expected, got, remedy)``; ``prepare(folder)`` damages things there and returns the
call to refuse.
"""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from bad_arrays import REPAIR, Call, Case, Prepare, call
from bad_minari import READABLE, minari_set
from data_helpers import CountEnv, write_policy

from torchrl_edp.data import (
    BehaviorPolicy,
    load_behavior,
    load_minari,
    make_local_dataset,
)

HDF5 = "main_data.hdf5"
NOBODY = 65534


class NanEnv(CountEnv):
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation + (np.nan if terminated or truncated else 0), reward, terminated, truncated, info


class ButtonEnv(CountEnv):
    action_space = gymnasium.spaces.Discrete(2)


gymnasium.register("edp-tests/Nan-v0", "bad_local:NanEnv")
gymnasium.register("edp-tests/Button-v0", "bad_local:ButtonEnv")


def local(dataset_id: Any = "local/count/medium-v0", **options: Any) -> Prepare:
    options = {"num_steps": 50, "progress": False, **options}
    return lambda folder: lambda: make_local_dataset(dataset_id, behavior_dir=folder / "policies", **options)


def policy(damage: Callable[[Path], Any], make: bool = False) -> Prepare:
    """The files of ``count-medium`` damaged, then loaded (or a data set made by them)."""

    def prepare(folder: Path) -> Call:
        damage(folder / "policies")
        return local()(folder) if make else lambda: load_behavior("count", "medium", folder / "policies")

    return prepare


def card(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write_policy(folder, "count-medium", BehaviorPolicy(2, 1, (4,)), **changes)


def weights(change: Callable[[BehaviorPolicy], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        change(sound := BehaviorPolicy(2, 1, (4,)))
        write_policy(folder, "count-medium", sound)

    return damage


def full_disk(folder: Path) -> Call:
    """Space runs out after the set's first file."""

    def write(dataset_id: str, *_: Any, **__: Any) -> None:
        (minari.storage.get_dataset_path(dataset_id) / "data").mkdir(parents=True)
        (minari.storage.get_dataset_path(dataset_id) / "data" / HDF5).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(minari, "create_dataset_from_buffers", write)
            local()(folder)()

    return make


def without_robotics(folder: Path) -> Call:
    """A maze is asked for where gymnasium-robotics is not installed."""

    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torchrl_edp.data.environment.find_spec", lambda name: None)
            make_local_dataset("local/pointmaze/umaze-v0", num_steps=50, progress=False)

    return make


FILES = "behaviour policy count-medium: expected weights and a card that fit"
RESTORE = "Restore both files"
INT = "expected a whole number, at least"
NAN_ENV, BUTTON, HOPPER, NO_ENV = (
    {"env_id": f"{n}"} for n in ("edp-tests/Nan-v0", "edp-tests/Button-v0", "Hopper-v5", "No-v0")
)

LOCAL: dict[str, Case] = {
    "no steps": (local(num_steps=0), f"num_steps: {INT} 1", "0", "Give num_steps as an int"),
    "negative steps": (local(num_steps=-5), f"num_steps: {INT} 1", "-5", "Give num_steps as an int"),
    "half a step": (local(num_steps=1.5), f"num_steps: {INT} 1", "1.5", "Give num_steps as an int"),
    "steps as text": (local(num_steps="9"), f"num_steps: {INT} 1", "'9'", "Give num_steps as an int"),
    "negative seed": (local(seed=-1), f"seed: {INT} 0", "-1", "Give seed as an int"),
    "no seed": (local(seed=None), f"seed: {INT} 0", "None", "Give seed as an int"),
    "unknown level": (
        local("local/count/random-v0"),
        "expected one of ['local/count/medium-v0']",
        "random-v0",
        "train",
    ),
    "path for an id": (
        local("local/../../etc-v0"),
        "local data set: expected one of",
        "'local/../../etc-v0'",
        "Choose",
    ),
    "number for an id": (local(7), "local data set: expected one of", "7", "Choose one of these"),
    "not made yet": (
        call(load_minari, "local/count/medium-v0"),
        "an existing local",
        "medium-v0",
        "make_local_dataset",
    ),
    "no policies": (
        policy(lambda f: (f / "count-medium.safetensors").unlink()),
        "expected one of []",
        "count",
        "train one",
    ),
    "no card": (policy(lambda f: (f / "count-medium.json").unlink()), FILES, "FileNotFoundError", RESTORE),
    "half a card": (policy(lambda f: (f / "count-medium.json").write_text('{"env')), FILES, "JSONDecodeError", RESTORE),
    "card of a list": (policy(lambda f: (f / "count-medium.json").write_text("[]")), FILES, "TypeError", RESTORE),
    "card of nothing": (policy(lambda f: (f / "count-medium.json").write_text("{}")), FILES, "scale_mapping", RESTORE),
    "another mapping": (policy(card(scale_mapping="softplus")), FILES, "scale_mapping is not the known", RESTORE),
    "another size": (policy(card(hidden_sizes=[5])), FILES, "size mismatch", RESTORE),
    "size as a number": (policy(card(hidden_sizes=4)), FILES, "TypeError", RESTORE),
    "no environment": (policy(card(env_id=None)), FILES, "env_id is no string", RESTORE),
    "NaN weights": (policy(weights(lambda p: p.layers[0].bias.data.fill_(np.nan))), FILES, "NaN or infinity", RESTORE),
    "half the weights": (
        policy(lambda f: os.truncate(f / "count-medium.safetensors", 100)),
        FILES,
        "SafetensorError",
        RESTORE,
    ),
    "pickled weights": (
        policy(lambda f: (f / "count-medium.safetensors").write_bytes(pickle.dumps({"0.weight": 1}))),
        FILES,
        "SafetensorError",
        RESTORE,
    ),
    "unknown environment": (
        policy(card(**NO_ENV), make=True),
        "env_id: expected an environment",
        "No-v0",
        "register it",
    ),
    "another environment": (
        policy(card(**HOPPER), make=True),
        "shape (2,) and (1,)",
        "(11,) and (3,)",
        "Train a policy",
    ),
    "discrete environment": (policy(card(**BUTTON), make=True), "shape (2,) and (1,)", "(2,) and ()", "Train a policy"),
    "NaN environment": (
        policy(card(**NAN_ENV), make=True),
        "observations: expected finite",
        "nan, first at row 2",
        REPAIR,
    ),
    "unknown maze": (
        call(make_local_dataset, "local/pointmaze/huge-v0"),
        "'local/pointmaze/large-v0'",
        "'local/pointmaze/huge-v0'",
        "Choose one of these",
    ),
    "no gymnasium-robotics": (
        without_robotics,
        "local/pointmaze/umaze-v0: expected the package gymnasium-robotics",
        "none",
        "pip install gymnasium-robotics",
    ),
    "full disk": (full_disk, "expected a place to write the set to", "No space left", "Make room"),
}


def become(user: int) -> None:
    # Started by the first storage of a process, as nobody it could not read Python and would die.
    resource_tracker.ensure_running()
    try:
        os.seteuid(user)
    except OSError as error:
        pytest.skip(f"root may read everything, and cannot become another user here: {error}")


def forbidden(prepare: Prepare, path: str, mode: int = 0) -> Prepare:
    """``prepare``, then nobody may use ``path``; root becomes another user meanwhile."""

    def forbid(folder: Path) -> Call:
        do = prepare(folder)

        def refused() -> None:
            target, before = folder / path, os.geteuid()
            kept = target.stat().st_mode
            target.chmod(mode)
            try:
                if before == 0:
                    become(NOBODY)
                do()
            finally:
                os.seteuid(before)
                target.chmod(kept)

        return refused

    return forbid


WHOLE_SET = minari_set(lambda data: None)
RIGHT = "ask its owner for the right"

FORBIDDEN: dict[str, Case] = {
    "contents": (forbidden(WHOLE_SET, "minari/tiny/set-v0/data/main_data.hdf5"), READABLE, "PermissionError", RIGHT),
    "card": (forbidden(WHOLE_SET, "minari/tiny/set-v0/data/metadata.json"), READABLE, "PermissionError", RIGHT),
    "folder": (forbidden(WHOLE_SET, "minari/tiny/set-v0"), READABLE, "PermissionError", RIGHT),
    "weights": (forbidden(policy(card()), "policies/count-medium.safetensors"), FILES, "Permission", RESTORE),
    "writing": (forbidden(local(), "minari", 0o555), "a place to write", "PermissionError", "MINARI_DATASETS_PATH"),
}
