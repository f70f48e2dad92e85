from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch
from data_helpers import arrays
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as random_arrays

import torchrl_edp.data
from torchrl_edp.data import (
    REFERENCE_SCORES,
    REWARD_RULES,
    ActionScaler,
    DatasetError,
    ObservationNormalizer,
    apply_reward_rule,
    from_arrays,
    normalized_score,
    reference_for,
)


@given(random_arrays(np.float32, 3, elements=st.floats(-1, 1, width=32)))
def test_action_scaler_maps_the_box_to_one_and_back(unit):
    scaler = ActionScaler(low=[-2.0, 0.0, -1.0], high=torch.tensor([6.0, 0.1, 1.0]))
    unit = torch.from_numpy(unit)
    torch.testing.assert_close(scaler(scaler.inverse(unit)), unit, rtol=0, atol=1e-6)
    torch.testing.assert_close(scaler(torch.tensor([-2.0, 0.0, -1.0])), -torch.ones(3))
    torch.testing.assert_close(scaler(torch.tensor([[6.0, 0.1, 1.0]])), torch.ones(1, 3))
    torch.testing.assert_close(scaler.inverse(torch.tensor([0.5, 0.0, -0.25])), torch.tensor([4.0, 0.05, -0.25]))


@pytest.mark.parametrize(
    ("low", "high"), [([-1.0, -np.inf], [1.0, 1.0]), ([-1.0, 1.0], [1.0, 1.0]), ([0.0, 2.0], [1.0, 1.0])]
)
def test_action_scaler_refuses_what_has_no_inverse(low, high):
    index = 1
    with pytest.raises(DatasetError, match=f"action bounds of entry {index}: expected finite low < high"):
        ActionScaler(low, high)


def test_transforms_travel_with_a_state_dict():
    scaler, other = ActionScaler([-2.0], [6.0]), ActionScaler([-1.0], [1.0])
    other.load_state_dict(scaler.state_dict())
    assert other.inverse(torch.ones(1)).item() == 6
    normalizer, identity = ObservationNormalizer([1.0, 2.0], [3.0, 4.0]), ObservationNormalizer.identity(2)
    assert identity(torch.tensor([5.0, 6.0])).tolist() == [5, 6]
    identity.load_state_dict(normalizer.state_dict())
    assert identity(torch.tensor([4.0, 6.0])).tolist() == [1, 1]
    assert not list(normalizer.parameters()) and not list(scaler.parameters())


def test_observation_normalizer_standardises_and_leaves_constants_alone():
    data = torch.randn(5000, 3) * torch.tensor([2.0, 0.0, 100.0]) + torch.tensor([1.0, 1000.0, -5.0])
    normalizer = ObservationNormalizer.from_data(data)
    out = normalizer(data)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(out[:, [0, 2]].std(0), torch.ones(2), rtol=0, atol=2e-3)
    assert normalizer(data[0] + 1)[1].item() == pytest.approx(1, abs=1e-3)  # not 1 / eps
    torch.testing.assert_close(normalizer.inverse(out), data, rtol=1e-5, atol=1e-4)
    eps = ObservationNormalizer.from_data(torch.tensor([[-1.0], [1.0]]), eps=1.0)
    assert eps.scale.item() == 2


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, -1e30, 3e38])
@pytest.mark.parametrize("ulps", [0, 1])
def test_columns_with_hardly_any_variance_stay_finite_and_small(value, ulps):
    data = torch.stack([torch.full((9,), value), torch.arange(9.0)], 1)
    if ulps:
        data[4, 0] = torch.nextafter(data[4, 0], torch.tensor(-torch.inf))
    out = ObservationNormalizer.from_data(data)(data)
    assert out.isfinite().all() and out[:, 1].std(correction=0) == pytest.approx(1, abs=1e-3)
    assert out[:, 0].abs().max() <= (4 if ulps else 0)


@pytest.mark.parametrize("name", REWARD_RULES)
@pytest.mark.parametrize("value", [0.0, 1.0, -5.0, 1e30, 1e-40])
def test_constant_rewards_give_finite_ones_or_a_clear_error(name, value):
    data = from_arrays(**{**arrays([(2, True), (2, False)]), "rewards": np.full(4, value)})
    if name in ("min_max", "return_range"):
        with pytest.raises(DatasetError, match="expected at least two.* got .*Use the rule 'raw'"):
            apply_reward_rule(name, data)
    else:
        assert apply_reward_rule(name, data).transitions["next", "reward"].isfinite().all()


@pytest.mark.parametrize("name", ["min_max", "return_range"])
def test_extreme_but_finite_ranges_stay_finite(name):
    for low, high in ((-3e38, 3e38), (0.0, 1e-40), (1e30, 1.0000001e30)):
        data = from_arrays(**{**arrays([(1, True), (1, True)]), "rewards": np.array([low, high])})
        reward = apply_reward_rule(name, data).transitions["next", "reward"]
        assert reward.isfinite().all() and reward[0] < reward[1]


def test_observation_normalizer_refuses_bad_numbers():
    with pytest.raises(DatasetError, match="entry 1: expected finite numbers, scale > 0, got loc 0.0, scale 0.0"):
        ObservationNormalizer([0.0, 0.0], [1.0, 0.0])
    with pytest.raises(DatasetError, match="one shape"):
        ObservationNormalizer([0.0, 0.0], [1.0])


RULES = {
    "raw": [1.0, 1.0, 2.0, 2.0, 2.0],
    "antmaze_iql": [0.0, 0.0, 1.0, 1.0, 1.0],
    "antmaze_td3": [2.0, 2.0, 6.0, 6.0, 6.0],
    "min_max": [-1.0, -1.0, 1.0, 1.0, 1.0],
    "return_range": [250.0, 250.0, 500.0, 500.0, 500.0],  # returns 2 and 6
}


@pytest.mark.parametrize("name", RULES)
def test_reward_rules_by_hand(name):
    data = from_arrays(**arrays([(2, True), (3, False)]))
    before = data.fingerprint()
    result = apply_reward_rule(name, data)
    assert result.transitions["next", "reward"].flatten().tolist() == RULES[name]
    assert result.transitions["next", "reward"].shape == (5, 1)
    assert data.fingerprint() == before  # never in place
    assert result.episode_returns.tolist() == [2, 6]  # scores stay raw
    transitions = apply_reward_rule(name, data.transitions)
    assert transitions["next", "reward"].flatten().tolist() == RULES[name]
    transitions["next", "reward"].zero_()
    assert data.fingerprint() == before


def test_every_rule_is_tested_and_unknown_ones_are_named():
    assert set(RULES) == set(REWARD_RULES)
    data = from_arrays(**arrays([(2, True)]))
    with pytest.raises(DatasetError, match="'return_range'.*got 'nope'"):
        apply_reward_rule("nope", data)
    with pytest.raises(DatasetError, match="at least two different values, got 1.0 only"):
        apply_reward_rule("min_max", data)
    with pytest.raises(DatasetError, match="at least two that differ, got 2 for all 1"):
        apply_reward_rule("return_range", data)


def test_return_range_counts_the_piece_that_breaks_off():
    data = from_arrays(**arrays([(2, True), (3, False)])).transitions[:4]
    assert apply_reward_rule("return_range", data)["next", "reward"].flatten().tolist() == [
        500,
        500,
        1000,
        1000,
    ]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("mujoco/hopper/medium-expert-v0", "hopper"),
        ("local/walker2d/expert-v0", "walker2d"),
        ("Hopper-v5", "hopper"),
        ("HalfCheetah-v5", "halfcheetah"),
        ("halfcheetah-medium-v2", "halfcheetah"),
        ("D4RL/pen/human-v2", "pen"),
        ("AdroitHandRelocate-v1", "relocate"),
        ("AdroitHandDoor-v1", "door"),
        ("D4RL/hammer/cloned-v2", "hammer"),
        ("D4RL/kitchen/complete-v2", "kitchen"),
        ("FrankaKitchen-v1", "kitchen"),
        ("D4RL/antmaze/medium-play-v1", "antmaze-medium"),
        ("AntMaze_Large_Diverse_GR-v4", "antmaze-large"),
        ("antmaze-umaze-diverse-v2", "antmaze-umaze"),
        ("D4RL/pointmaze/large-v2", "maze2d-large"),
        ("PointMaze_UMaze-v3", "maze2d-umaze"),
        ("maze2d-medium-v1", "maze2d-medium"),
        ("InvertedPendulum-v5", None),
        ("mujoco/ant/medium-v0", None),
        ("AntMaze_Open-v5", None),
        ("PointMaze_UMazeDense-v3", "maze2d-umaze-dense"),
        ("D4RL/pointmaze/large-dense-v2", "maze2d-large-dense"),
        ("maze2d-medium-dense-v1", "maze2d-medium-dense"),
        ("AntMaze_UMazeDense-v4", None),
    ],
)
def test_reference_by_name(name, task):
    assert reference_for(name) == (REFERENCE_SCORES[task] if task else None)


def test_normalized_scores():
    for reference in REFERENCE_SCORES.values():
        scores = normalized_score(torch.tensor([reference.min, reference.max], dtype=torch.float64), reference)
        torch.testing.assert_close(scores, torch.tensor([0.0, 100.0], dtype=torch.float64))
    assert normalized_score(1607.013848, REFERENCE_SCORES["hopper"]) == pytest.approx(50, abs=1e-4)
    assert normalized_score(np.array([2.0, 1.0]), REFERENCE_SCORES["kitchen"]).tolist() == [50, 25]


def test_the_examples_in_the_docstrings_run():
    modules = [info.name for info in pkgutil.iter_modules(torchrl_edp.data.__path__)]
    results = [doctest.testmod(importlib.import_module(f"torchrl_edp.data.{name}")) for name in modules]
    assert sum(r.attempted for r in results) > 20 and not sum(r.failed for r in results)
