"""Bad plain arrays.

A case is ``(prepare, field and expected, got, remedy)``; ``prepare(folder)`` damages things there and returns the
call to refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_helpers import arrays

from torchrl_edp.data import (
    ActionScaler,
    from_arrays,
)

Call = Callable[[], Any]
Prepare = Callable[[Path], Call]
Case = tuple[Prepare, str, str, str]
FLOAT32 = "Give an array of float32."
REPAIR = "Remove the episode, or repair the value"
BOX = "pass from_arrays(..., action_low=, action_high=)"


def call(function: Callable, *args: Any, **options: Any) -> Prepare:
    """Nothing to prepare."""
    return lambda folder: lambda: function(*args, **options)


def given(**changes: Any) -> Prepare:
    """Plain arrays of 8 rows, episodes 0-2 (terminated), 3-5 (truncated), 6-7 (terminated), some exchanged."""
    return call(from_arrays, **{**arrays([(3, True), (3, False), (2, True)]), **changes})


def put(field: str, index: Any, value: Any, **changes: Any) -> Prepare:
    """The same arrays with a value in one of them."""
    array = arrays([(3, True), (3, False), (2, True)])[field].astype(np.float64)
    array[index] = value
    return given(**{field: array}, **changes)


def zeros(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.zeros(shape, dtype)


ONE_EACH = {"observations": np.eye(3), "actions": np.ones((3, 1)), "rewards": np.ones(3), "terminations": [0, 0, 0]}
ROLLED = {**ONE_EACH, "truncations": [0, 0, 1], "next_observations": np.roll(np.eye(3), -1, axis=0)}
SOURCE = "load it again"

FROM_ARRAYS: dict[str, Case] = {
    "D4RL's names": (
        call(
            from_arrays, np.eye(3), np.ones((3, 1)), np.ones(3), terminals=[0, 0, 1], timeouts=[0, 0, 0], env_name="x"
        ),
        "names of arguments: expected some of ['dataset_id', 'env_id'",
        "['terminals', 'timeouts', 'env_name']",
        "are terminations, truncations and env_id",
    ),
    "no terminations": (
        call(from_arrays, np.eye(3), np.ones((3, 1)), np.ones(3), truncations=[0, 0, 1]),
        "terminations: expected numbers",
        "one NoneType",
        FLOAT32,
    ),
    **{
        f"{field}: {name}": (put(field, 4, value), f"{field}: expected finite", f"{value}, first at row 4", REPAIR)
        for field in ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
        for name, value in (("NaN", np.nan), ("infinity", np.inf))
    },
    "float32 overflow": (put("rewards", 1, -1e39), "rewards: expected finite", "-inf, first at row 1", "3.4e38"),
    "sum overflow": (given(rewards=np.full(8, 3e38)), "rewards: expected returns below", "9e+38", "Scale the rewards"),
    "observations rank 1": (given(observations=zeros(8)), "observations: expected shape [N, size]", "[8]", "(-1, 1)"),
    "actions rank 3": (given(actions=zeros(8, 2, 2)), "actions: expected shape", "[8, 2, 2]", "Flatten each row"),
    "rewards of two columns": (
        given(rewards=zeros(8, 2)),
        "rewards: expected shape [N]",
        "[8, 2]",
        "one number per row",
    ),
    "one reward": (given(rewards=1.0), "rewards: expected shape [N]", "shape []", "reshape(-1, 1)"),
    "flags of two columns": (given(terminations=zeros(8, 2)), "terminations: expected shape [N]", "[8, 2]", "per row"),
    "fewer observations": (given(observations=zeros(7, 2)), "actions: expected 7 rows", "8 rows", "one row per step"),
    "fewer actions": (given(actions=zeros(7, 1)), "actions: expected 8 rows", "7 rows", "one row per step"),
    "more rewards": (given(rewards=zeros(9)), "rewards: expected 8 rows", "9 rows", "one row per step"),
    "fewer flags": (given(truncations=zeros(2)), "truncations: expected 8 rows", "2 rows", "one row per step"),
    "fewer next": (given(next_observations=zeros(7, 2)), "next_observations: expected 8 rows", "7 rows", "per step"),
    "wider next": (given(next_observations=zeros(8, 3)), "next_observations: expected shape [8, 2]", "[8, 3]", "same"),
    "no columns": (given(actions=zeros(8, 0)), "actions: expected at least one entry", "[8, 0]", "Check the source"),
    "ragged": (given(actions=[[1]] * 7 + [[1, 2]]), "actions: expected a rectangular", "different shapes", "Pad"),
    "strings": (given(rewards=["1"] * 8), "rewards: expected numbers", "dtype <U1", FLOAT32),
    "complex": (
        given(observations=zeros(8, 2, dtype=complex)),
        "observations: expected numbers",
        "complex128",
        FLOAT32,
    ),
    "objects": (given(actions=zeros(8, 1, dtype=object)), "actions: expected numbers", "dtype object", FLOAT32),
    "dates": (given(rewards=zeros(8, dtype="M8[s]")), "rewards: expected numbers", "datetime64[s]", FLOAT32),
    "bool actions": (given(actions=zeros(8, 1, dtype=bool)), "actions: expected numbers", "dtype bool", FLOAT32),
    "masked": (given(rewards=np.ma.array(zeros(8), mask=[1] * 8)), "rewards: expected numbers", "masked", "fill them"),
    "nothing": (given(observations=None), "observations: expected numbers", "one NoneType", FLOAT32),
    "dict": (given(observations={"a": zeros(8, 2)}), "observations: expected numbers", "one dict", FLOAT32),
    "sparse": (given(actions=torch.eye(8).to_sparse()), "actions: expected a dense array", "Tensor", "NumPy"),
    "no memory": (given(rewards=torch.ones(8, device="meta")), "rewards: expected a dense", "meta tensor", "NumPy"),
    "flag 2": (put("terminations", 3, 2), "terminations: expected flags", "2.0, first at row 3", "threshold"),
    "text flags": (given(truncations=["no"] * 8), "truncations: expected numbers", "dtype <U2", FLOAT32),
    "out of bounds": (
        put("actions", 5, 1.5),
        "actions: expected values in [[-1.0], [1.0]]",
        "row 5",
        "clip_actions=True",
    ),
    "low NaN": (given(action_low=np.nan), "action bounds of entry 0: expected finite low < high", "low nan", BOX),
    "high infinite": (given(action_high=np.inf), "action bounds of entry 0: expected finite", "high inf", BOX),
    "high overflows": (given(action_high=1e39), "action bounds of entry 0: expected finite", "high inf", BOX),
    "low equals high": (given(action_low=1), "action bounds of entry 0: expected finite", "low 1.0, high 1.0", BOX),
    "low above high": (given(action_low=[2.0]), "action bounds of entry 0: expected finite", "low 2.0", BOX),
    "bounds of another size": (given(action_low=[-1, -1]), "action_low: expected a number or shape [1]", "[2]", "per"),
    "bound missing": (given(action_high=None), "action_high: expected numbers", "one NoneType", FLOAT32),
    "bound as a flag": (given(action_low=False), "action_low: expected numbers", "one bool", FLOAT32),
    "bound as text": (given(action_low="-1"), "action_low: expected numbers", "one str", FLOAT32),
    "scaler of two sizes": (
        call(ActionScaler, [0, 0], [1] * 3),
        "action_high: expected a number or",
        "[3]",
        "per action",
    ),
    "no rows": (
        given(**{k: v[:0] for k, v in ROLLED.items()}),
        "data: expected at least one trans",
        "none",
        "the filter",
    ),
    "no next rows": (
        call(from_arrays, **{**ONE_EACH, "truncations": [1, 1, 1]}),
        "data: expected at least one transition",
        "none",
        "Pass next_observations",
    ),
    "all zeros": (put("actions", slice(None), 0), "actions: expected some that differ from 0", "all zeros", SOURCE),
    "other zeros": (
        given(observations=zeros(8, 2), rewards=zeros(8)),
        "observations and rewards: expected some that differ from 0",
        "all zeros",
        SOURCE,
    ),
    "no end": (
        given(terminations=zeros(8), truncations=zeros(8)),
        "terminations and truncations: expected at least one end",
        "none",
        "truncations[-1] = True",
    ),
    "no flags to infer": (
        given(truncations=None, next_observations=None),
        "truncations: expected flags",
        "None",
        "all False where there are none",
    ),
    "rows out of order": (
        put("next_observations", (4, 1), 9),
        "next_observations: expected the observation of row 5, same episode",
        "another, first at row 4",
        "pass truncations=None",
    ),
    "an end unflagged": (
        put("truncations", 5, 0),
        "next_observations: expected the observation of row 6, same episode",
        "another, first at row 5",
        "last row of every episode flagged",
    ),
    "leak into the next episode": (
        put("next_observations", 5, [3, 0]),
        "next_observations: expected the truncated episode's own last",
        "the first observation of an episode, first at row 5",
        "allow_continuing=True",
    ),
    "leak around the end": (
        call(from_arrays, **ROLLED),
        "next_observations: expected the truncated episode's own last",
        "the first observation of an episode, first at row 2",
        "leave next_observations out",
    ),
}
