"""Random episode layouts through every way in, against a slow loop that builds the transitions one by one."""

from __future__ import annotations

import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from data_helpers import make_minari
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.objectives.value.functional import td0_return_estimate

from torchrl_edp.data import DatasetError, OfflineDataset, from_arrays, load_minari

GAMMA, VALUE = 0.5, 8.0
ENDS = ("terminated", "truncated", "both", "unflagged")


class Step(NamedTuple):
    """A row, as an episode's own record has it."""

    observation: list[float]
    following: list[float] | None
    action: float
    reward: float
    terminated: bool
    truncated: bool


@st.composite
def layouts(draw: Any) -> list[list[Step]]:
    """1 to 8 episodes of 1 to 4 steps; only the record's last may break off without a flag. All numbers are exact."""
    count = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    ends = draw(st.lists(st.sampled_from(ENDS[:3]), min_size=count - 1, max_size=count - 1))
    ends.append(draw(st.sampled_from(ENDS)))
    return [make_episode(*about) for about in zip(range(1, count + 1), lengths, ends, strict=True)]


def make_episode(number: int, length: int, end: str) -> list[Step]:
    steps = []
    for t in range(length):
        terminated, truncated = (t == length - 1 and end in (flag, "both") for flag in ENDS[:2])
        steps.append(
            Step([number, t], [number, t + 1], (number * 8 + t + 1) / 128, number - 3.5 + t, terminated, truncated)
        )
    return steps


def expected_transitions(episodes: list[list[Step]], with_next: bool) -> list[list[Step]]:
    """The slow loop: what each episode may become, looking at nothing outside it."""
    kept = []
    for episode in episodes:
        steps: list[Step] = []
        for t, step in enumerate(episode):
            if with_next:
                following = step.following
            elif t + 1 < len(episode):
                following = episode[t + 1].observation
            else:  # unknown: nobody reads it after a terminal row; any other row must go
                following = step.observation if step.terminated else None
            if following is not None:
                steps.append(step._replace(following=following))
        if steps:
            if not steps[-1].terminated:
                steps[-1] = steps[-1]._replace(truncated=True)
            kept.append(steps)
    return kept


def columns(episodes: list[list[Step]]) -> dict[str, np.ndarray]:
    rows = [step for episode in episodes for step in episode]
    return {
        "observations": np.array([row.observation for row in rows]),
        "actions": np.array([[row.action] for row in rows]),
        "rewards": np.array([row.reward for row in rows]),
        "terminations": np.array([row.terminated for row in rows]),
        "truncations": np.array([row.truncated for row in rows]),
        "next_observations": np.array([row.following for row in rows]),
    }


def check(data: OfflineDataset, expected: list[list[Step]]) -> None:
    """Row for row equal; no transition crosses an episode; only ``terminated`` stops bootstrapping."""
    td, rows = data.transitions, [step for episode in expected for step in episode]
    after = td["next"]
    assert td.shape == (len(rows),)
    assert td["observation"].tolist() == [row.observation for row in rows]
    assert after["observation"].tolist() == [row.following for row in rows]
    assert (td["observation"][:, 0] == after["observation"][:, 0]).all()  # column 0 is the episode
    assert td["action"].flatten().tolist() == [row.action for row in rows]
    assert after["reward"].flatten().tolist() == [row.reward for row in rows]
    assert after["terminated"].flatten().tolist() == [row.terminated for row in rows]
    assert after["truncated"].flatten().tolist() == [row.truncated for row in rows]
    assert after["done"].flatten().tolist() == [row.terminated or row.truncated for row in rows]
    assert data.episode_lengths.tolist() == [len(episode) for episode in expected]
    assert data.episode_returns.tolist() == [sum(step.reward for step in episode) for episode in expected]
    value = torch.full_like(after["reward"], VALUE)
    target = td0_return_estimate(GAMMA, value, after["reward"], after["terminated"])
    assert target.flatten().tolist() == [row.reward + (0 if row.terminated else GAMMA * VALUE) for row in rows]


def check_arrays(episodes: list[list[Step]]) -> None:
    """With next observations, without them, with truncations to infer, and with leaks into another episode."""
    data = columns(episodes)
    refused = not (data["terminations"] | data["truncations"]).any()  # not one end is flagged
    for with_next in (True, False):
        given = data if with_next else {**data, "next_observations": None}
        expected = expected_transitions(episodes, with_next)
        if refused or not expected:
            with pytest.raises(DatasetError, match="at least one"):
                from_arrays(**given)
        else:
            check(from_arrays(**given), expected)
    inferred = expected_transitions(episodes, True)  # a terminal row has no need of another flag
    inferred = [[step._replace(truncated=step.truncated and not step.terminated) for step in e] for e in inferred]
    check(from_arrays(**{**data, "truncations": None}), inferred)

    leaks = [i for i in np.flatnonzero(data["truncations"]) if not data["terminations"][i]]
    for i in leaks:
        leaking = data["next_observations"].copy()
        leaking[i] = np.roll(data["observations"], -1, axis=0)[i]
        with pytest.raises(DatasetError, match=f"the first observation of an episode, first at row {i}. "):
            from_arrays(**{**data, "next_observations": leaking})


def check_minari(episodes: list[list[Step]]) -> None:
    """One Minari record for each episode."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "MINARI_DATASETS_PATH", folder)
        records = []
        for episode in episodes:
            record = columns([episode])
            last = record.pop("next_observations")[-1:]
            records.append({**record, "observations": np.concatenate([record["observations"], last])})
        make_minari("random/layout-v0", records)
        check(load_minari("random/layout-v0", progress=False), expected_transitions(episodes, True))


def random_layouts(count: int) -> Any:
    return lambda test: settings(max_examples=count, deadline=None, derandomize=True)(given(layouts())(test))


@random_layouts(100)
def test_layouts_of_arrays(episodes):
    check_arrays(episodes)


@random_layouts(40)
def test_layouts_of_minari_episodes(episodes):
    check_minari(episodes)


@pytest.mark.slow
@random_layouts(1000)
def test_a_thousand_layouts_of_arrays(episodes):
    check_arrays(episodes)


@pytest.mark.long
@random_layouts(1000)
def test_a_thousand_layouts_of_minari_episodes(episodes):
    check_minari(episodes)
