"""Bad transitions for replay buffers, reward rules and the normaliser.

A case is ``(prepare, field and expected, got, remedy)``; ``prepare(folder)`` damages things there and returns the
call to refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bad_arrays import Call, Case, Prepare, call
from data_helpers import arrays

from torchrl_edp.data import (
    ObservationNormalizer,
    apply_reward_rule,
    from_arrays,
    make_replay_buffer,
)


def rows(**changes: Any) -> Prepare:
    """Transitions with a field exchanged (or, by None, removed); ``_`` stands for "next"."""

    def prepare(folder: Path) -> Call:
        data = from_arrays(**arrays([(3, True), (3, False), (2, True)])).transitions
        for name, value in changes.items():
            key = ("next", name[1:]) if name[0] == "_" else name
            data = data.exclude(key) if value is None else data.set(key, value)
        return lambda: make_replay_buffer(data, batch_size=4)

    return prepare


def buffer(change: Callable = lambda data: data, **options: Any) -> Prepare:
    data = from_arrays(**arrays([(3, True), (3, False), (2, True)]))
    return lambda folder: lambda: make_replay_buffer(change(data.transitions), **{"batch_size": 4, **options})


KEY = "('next', '{}'): expected "
COLUMN = "flags and rewards are columns"
RANGE = "batch_size: expected 1 to 8"

BUFFER: dict[str, Case] = {
    "no action": (rows(action=None), "transitions: expected the keys", "none of ['action']", "Use from_arrays"),
    "no next observation": (rows(_observation=None), "expected the keys", "('next', 'observation')", "Use from_arrays"),
    "no terminated": (rows(_terminated=None), "expected the keys", "('next', 'terminated')", "or load_dataset"),
    "a list": (buffer(lambda data: [1, 2]), "transitions: expected a TensorDict", "list", "Give `.transitions`"),
    "a data set": (buffer(lambda data: object()), "transitions: expected a TensorDict", "object", "`.transitions`"),
    "no rows": (
        buffer(lambda data: data[:0]),
        "transitions: expected batch size [N], N > 0",
        "[0]",
        "one row per step",
    ),
    "two batch axes": (buffer(lambda data: data[None]), "expected batch size [N]", "[1, 8]", "Flatten"),
    "reward without column": (rows(_reward=torch.ones(8)), KEY.format("reward") + "shape [8, 1]", "[8]", COLUMN),
    "done of two columns": (rows(_done=torch.ones(8, 2) > 0), KEY.format("done") + "shape [8, 1]", "[8, 2]", COLUMN),
    "extra axis": (
        rows(observation=torch.ones(8, 2, 2)),
        "'observation': expected shape [8, size",
        "[8, 2, 2]",
        "axis",
    ),
    "no action entries": (rows(action=torch.ones(8, 0)), "'action': expected shape [8, size > 0]", "[8, 0]", "entries"),
    "wider next": (
        rows(_observation=torch.ones(8, 3)),
        KEY.format("observation") + "shape [8, 2]",
        "[8, 3]",
        "One row",
    ),
    "flags as floats": (rows(_terminated=torch.ones(8, 1)), "a tensor of bool", "torch.float32", "Convert it"),
    "integer observations": (rows(observation=torch.ones(8, 2).long()), "a tensor of floats", "torch.int64", "Convert"),
    "text": (rows(action="left"), "'action': expected a tensor of floats", "str", "from_arrays"),
    "NaN": (rows(action=torch.full((8, 1), torch.nan)), "'action': expected finite", "nan, first at row 0", "Repair"),
    "infinite reward": (rows(_reward=torch.full((8, 1), -torch.inf)), "expected finite numbers", "-inf", "normalised"),
    "flags disagree": (rows(_done=torch.zeros(8, 1) > 0), KEY.format("done") + "terminated |", "row 2", "Set done"),
    "batch beyond the data": (buffer(batch_size=9), RANGE, "9", "Choose a whole number"),
    "empty batch": (buffer(batch_size=0), RANGE, "0", "Choose a whole number"),
    "half a row": (buffer(batch_size=2.5), RANGE, "2.5", "Choose a whole number"),
    "batch as text": (buffer(batch_size="4"), RANGE, "'4'", "Choose a whole number"),
    "no device": (buffer(device="gpu0"), "device: expected one that torch can use", "gpu0", "Choose 'cpu'"),
    "seed for a generator": (
        buffer(generator=0),
        "generator: expected one on cpu",
        "0",
        "Make it with torch.Generator",
    ),
}


# --- reward rules and the normaliser


def ruled(rule: Any, change: Callable = lambda data: data, reward: list[float] | None = None) -> Prepare:
    data = from_arrays(**arrays([(1, True), (1, False)]))
    if reward is not None:
        data.transitions["next", "reward"] = torch.tensor(reward)[:, None]
    return lambda folder: lambda: apply_reward_rule(rule, change(data.transitions))


RULES: dict[str, Case] = {
    "unknown rule": (ruled("best"), "reward rule: expected one of ['raw'", "'best'", "Choose one of these"),
    "no rule": (ruled(["raw"]), "reward rule: expected one of ['raw'", "['raw']", "Choose one of these"),
    "constant rewards": (ruled("min_max", reward=[3, 3]), "rewards: expected at least two different", "3", "'raw'"),
    "constant returns": (ruled("return_range", reward=[3, 3]), "episode returns: expected at least two", "3", "'raw'"),
    "no reward": (
        ruled("raw", lambda data: data.exclude(("next", "reward"))),
        "the keys",
        "'reward'",
        "Use from_arrays",
    ),
    "a list": (ruled("raw", lambda data: [1]), "transitions: expected a TensorDict", "list", "from_arrays"),
    "no rows": (ruled("min_max", lambda data: data[:0]), "transitions: expected at least one", "none", "the filter"),
    "NaN": (
        ruled("raw", reward=[1, np.nan]),
        "rewards after the rule 'raw': expected finite",
        "nan from nan",
        "Repair",
    ),
    "overflow": (
        ruled("antmaze_td3", reward=[0, 3e38]),
        "'antmaze_td3': expected finite",
        "inf from",
        "scale the rewards",
    ),
    "no observations": (call(ObservationNormalizer.from_data, torch.ones(0, 2)), "a tensor [N, O]", "[0, 2]", "Give"),
    "one column": (call(ObservationNormalizer.from_data, torch.ones(4)), "a tensor [N, O]", "[4]", "Give transitions"),
    "NaN column": (
        call(ObservationNormalizer.from_data, torch.tensor([[0.0], [np.nan]])),
        "observations: expected finite",
        "NaN or infinity, first at row 1",
        "Repair the row",
    ),
    "negative eps": (
        call(ObservationNormalizer.from_data, torch.eye(2), eps=-1.0),
        "eps: expected",
        "-1.0",
        "Leave it out",
    ),
}
