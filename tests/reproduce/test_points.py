"""A point is known by what decides its score, and acts as it says."""

import shutil
from pathlib import Path

import points as points_module
import pytest
import torch
from points import COLUMNS, Point, SavedPolicy, evaluate, load_acting
from reproduce_helpers import AROUND, act, make_policy
from runs import Ledger
from torchrl.envs.utils import ExplorationType

from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.training import (
    EnvironmentPolicy,
    TrunkSettings,
    build_feed_forward,
    save_feed_forward_policy,
)


def test_settings_change_the_actions(saved):
    def spread(**acting):
        return act(load_acting(saved, acting), rows=64).std(0).mean().item()

    assert spread(initial_noise_scale=0.0) < 1e-6 < spread() < spread(initial_noise_scale=1.0)
    assert not torch.equal(act(load_acting(saved, {"policy_scale": 2.0})), act(load_acting(saved, {})))
    assert not torch.equal(act(load_acting(saved, {"num_action_samples": 20})), act(load_acting(saved, {})))


def test_key_stands_for_weights_settings_and_episodes(saved, tmp_path):
    key = Point(saved, {"policy_scale": 2.0}, 3).key
    moved = SavedPolicy(Path(shutil.copytree(saved.path, tmp_path / "moved"), "policy.safetensors"))
    assert Point(moved, {"policy_scale": 2.0}, 3).key == key
    other = make_policy(tmp_path / "other", seed=1)
    shutil.copy(saved.path / "policy.json", other.path)  # same settings, other weights
    assert Point(other, {"policy_scale": 2.0}, 3).key != key
    assert Point(saved, {"policy_scale": 1.5}, 3).key != key
    assert Point(saved, {}, 3).key != key
    assert Point(saved, {"policy_scale": 2.0}, 4).key != key
    assert Point(saved, {"policy_scale": 2.0, "initial_noise_scale": 0.25}, 3).key == key  # its own, said
    assert Point(saved, {"policy_scale": 2.0, "num_action_samples": 1}, 3).key == key


def test_mazes_get_more_episodes_unless_told_otherwise(saved, tmp_path):
    maze = make_policy(tmp_path / "maze", dataset="local/pointmaze/medium-v0")
    assert [Point(policy, {}).num_episodes for policy in (saved, maze)] == [20, 50]
    assert Point(maze, {}, 3).num_episodes == 3


def test_data_are_those_of_the_run(saved):
    assert saved.data == ("local/hopper/medium-n2000-s0-v0", None)
    saved.path.joinpath("config.yaml").write_text("dataset: local/hopper/medium-v0\ndata: {num_steps: 2000}\n")
    assert SavedPolicy(saved.path).data == ("local/hopper/medium-v0", 2000)


def test_score_is_that_of_the_evaluator(saved, dataset, tmp_path):
    point = Point(saved, {"initial_noise_scale": 1.0}, 3)
    evaluate([point], Ledger(tmp_path / "points.csv", COLUMNS))
    row = Ledger(tmp_path / "points.csv", COLUMNS).rows[point.key]
    with PolicyEvaluator("Hopper-v5", num_episodes=3, max_steps=1000, reference=(-20.272305, 3234.3)) as evaluator:
        result = evaluator(load_acting(saved, point.acting), seed=0)
    assert float(row["score"]) == pytest.approx(result.normalized, abs=0.006)
    assert float(row["deviation"]) == pytest.approx(result.normalized_std, abs=0.006)


def test_a_gaussian_policy_acts_by_its_mean(dataset, tmp_path):
    torch.manual_seed(0)
    trunk = TrunkSettings(hidden_sizes=[16])
    policy = EnvironmentPolicy(build_feed_forward(11, 3, trunk, "tanh_gaussian"), *AROUND)
    info = {"dataset": "local/hopper/medium-n2000-s0-v0"}
    save_feed_forward_policy(tmp_path / "policy", policy, network=trunk, kind="tanh_gaussian", info=info)
    with PolicyEvaluator("Hopper-v5", num_episodes=2, max_steps=1000, reference=(0.0, 100.0)) as evaluator:
        score = float(Point(SavedPolicy(tmp_path), {}, 2).row(evaluator)["score"])
        mean, drawn = (
            evaluator(policy, seed=0, exploration_type=how).normalized
            for how in (ExplorationType.DETERMINISTIC, ExplorationType.RANDOM)
        )
    assert abs(mean - drawn) > 0.1
    assert score == pytest.approx(mean, abs=0.006)


def test_many_candidates_are_compiled_and_score_the_same(saved, dataset, tmp_path, monkeypatch):
    compiled = []
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda policy, **options: compiled.append(policy) or compile(policy, **options)
    )
    points = [Point(saved, {"num_action_samples": count}, 2) for count in (2, 3)]
    scores = []
    for least in (1_000, 6):
        monkeypatch.setattr(points_module, "COMPILED_ROWS", least)
        ledger = Ledger(tmp_path / f"{least}.csv", COLUMNS)
        evaluate(points, ledger)
        scores.append([float(ledger.rows[point.key]["score"]) for point in points])
    assert [policy.policy.num_action_samples for policy in compiled] == [3]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


def test_wrong_settings_and_policies_are_named(saved, tmp_path):
    with pytest.raises(ValueError, match="has no setting 'num_actions'"):
        load_acting(saved, {"num_actions": 3})
    with pytest.raises(ValueError, match="expected num_calls=50, got 5"):
        load_acting(saved, {"solver": "ddpm"})
    with pytest.raises(SystemExit, match="nowhere: expected the folder of a finished run"):
        SavedPolicy(tmp_path / "nowhere").digest  # noqa: B018
    trunk = TrunkSettings(hidden_sizes=[16])
    policy = EnvironmentPolicy(build_feed_forward(11, 3, trunk, "tanh"), *AROUND)
    save_feed_forward_policy(tmp_path / "policy", policy, network=trunk, kind="tanh")
    with pytest.raises(ValueError, match="expected a policy of EDP"):
        load_acting(SavedPolicy(tmp_path), {"policy_scale": 2.0})
    assert load_acting(SavedPolicy(tmp_path), {}).policy.in_keys == ["observation"]
