from __future__ import annotations

import json
import shutil
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from data_helpers import episode, make_minari
from torchrl.data.datasets import load_dataset as torchrl_load_dataset

from torchrl_edp.data import REFERENCE_SCORES, DatasetError, load_dataset, load_minari, register_datasets

Box = gymnasium.spaces.Box
UNIT = Box(-1.0, 1.0, (1,), np.float32)


@pytest.fixture
def tiny(minari_root: Path) -> Path:
    """Three episodes: terminated, truncated, and one that breaks off without a flag."""
    make_minari("tiny/set-v0", [episode(1, 3, True), episode(2, 4), episode(3, 2, flagged=False)])
    return minari_root / "tiny" / "set-v0"


def test_round_trip_keeps_every_transition_and_the_true_last_observations(tiny):
    data = load_minari("tiny/set-v0")
    td = data.transitions
    assert td["observation"].tolist() == [[n, t] for n, length in ((1, 3), (2, 4), (3, 2)) for t in range(length)]
    assert (td["next", "observation"] == td["observation"] + torch.tensor([0.0, 1.0])).all()
    assert td["next", "terminated"].flatten().nonzero().flatten().tolist() == [2]
    assert td["next", "truncated"].flatten().nonzero().flatten().tolist() == [6, 8]
    assert td["action"].min() == -2 and td["action"].max() == 6 and td["action"].dtype == torch.float32
    assert data.action_low.tolist() == [-2] and data.action_high.tolist() == [6]
    assert data.episode_returns.tolist() == [3, 8, 6] and data.episode_lengths.tolist() == [3, 4, 2]
    assert data.dataset_id == "tiny/set-v0" and data.env_id is None and data.observation_keys is None
    assert not data.is_local_counterpart and data.parts == {}


def test_every_way_to_name_a_folder(tiny, monkeypatch):
    expected = load_minari("tiny/set-v0").fingerprint()
    for path in (tiny, str(tiny), tiny / "data", tiny / "data" / "main_data.hdf5"):
        assert load_dataset(path).fingerprint() == expected
    monkeypatch.chdir(tiny.parent)
    assert load_minari("./set-v0").fingerprint() == expected


def test_a_flag_inside_a_record_ends_an_episode_there(minari_root):
    record = episode(1, 5)
    record["terminations"][1] = True
    make_minari("tiny/inner-v0", [record])
    data = load_minari("tiny/inner-v0")
    assert data.episode_lengths.tolist() == [2, 3]
    assert data.transitions["next", "terminated"].flatten().nonzero().tolist() == [[1]]


def goal_episode(length: int) -> dict:
    def grid(number, size):
        return np.full((length + 1, size), number) + np.arange(length + 1)[:, None] / 8

    record = {"observation": grid(1, 3), "achieved_goal": grid(2, 2), "desired_goal": grid(3, 2)}
    return {**episode(1, length), "observations": record}


GOAL_SPACE = gymnasium.spaces.Dict(
    {k: Box(-9, 9, (n,), np.float64) for k, n in (("achieved_goal", 2), ("desired_goal", 2), ("observation", 3))}
)


def test_dict_observations_are_concatenated_in_a_stated_order(minari_root):
    make_minari("tiny/goal-v0", [goal_episode(4)], observation_space=GOAL_SPACE)
    data = load_minari("tiny/goal-v0")
    assert data.observation_keys == ("observation", "achieved_goal", "desired_goal")
    assert data.transitions["observation"][1].tolist() == [1.125] * 3 + [2.125] * 2 + [3.125] * 2
    chosen = load_minari("tiny/goal-v0", observation_keys=("desired_goal", "observation"))
    assert chosen.observation_size == 5 and chosen.observation_keys == ("desired_goal", "observation")
    assert chosen.transitions["next", "observation"][-1].tolist() == [3.5] * 2 + [1.5] * 3
    with pytest.raises(DatasetError, match="observation_keys: expected some of.*got .'nope'"):
        load_minari("tiny/goal-v0", observation_keys=("nope",))


def test_nested_goals_are_left_out(minari_root):
    """FrankaKitchen's goals are dicts of constants."""
    nested = gymnasium.spaces.Dict(
        {"observation": Box(-9, 9, (3,)), "desired_goal": gymnasium.spaces.Dict(kettle=UNIT)}
    )
    record = goal_episode(3)
    record["observations"] = {
        "observation": record["observations"]["observation"],
        "desired_goal": {"kettle": np.ones((4, 1))},
    }
    make_minari("tiny/nested-v0", [record], observation_space=nested)
    assert load_minari("tiny/nested-v0").observation_keys == ("observation",)


def test_dict_without_goals_keeps_every_entry(minari_root):
    space = gymnasium.spaces.Dict({"b": Box(-9, 9, (1,)), "a": Box(-9, 9, (2,))})
    record = {**episode(1, 3), "observations": {"a": np.ones((4, 2)), "b": np.full((4, 1), 2.0)}}
    make_minari("tiny/dict-v0", [record], observation_space=space)
    data = load_minari("tiny/dict-v0")
    assert data.observation_keys == tuple(space.spaces)
    assert data.transitions["observation"][0].tolist() == ([1, 1, 2] if data.observation_keys[0] == "a" else [2, 1, 1])


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ({"action_space": gymnasium.spaces.Discrete(3)}, ["actions: expected a Box", "Discrete(3)"]),
        (
            {"observation_space": Box(0, 1, (2, 1))},
            ["observations: expected a Box space of one axis", "[2, 1]"],
        ),
        (
            {"observation_space": gymnasium.spaces.MultiBinary(2)},
            ["observations: expected a Box", "MultiBinary"],
        ),
        ({"action_space": Box(-np.inf, np.inf, (1,))}, ["action bounds of entry 0", "from_arrays"]),
        ({"action_space": UNIT}, ["actions: expected values in", "clip_actions=True"]),
    ],
)
def test_unsupported_spaces_are_refused(minari_root, spaces, words):
    make_minari("tiny/space-v0", [episode(1, 3)], **spaces)
    with pytest.raises(DatasetError) as caught:
        load_minari("tiny/space-v0")
    assert all(word in str(caught.value) for word in words), caught.value


def edit(path: Path, field: str, value) -> None:
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file[field]
        if value is not None:
            file[field] = value


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("episode_1/rewards", [1, np.nan, 1, 1], ["episode 1, rewards: expected finite", "row 1"]),
        ("episode_0/actions", np.full((3, 1), np.inf), ["episode 0, actions: expected finite", "row 0"]),
        ("episode_1/observations", np.ones((4, 2)), ["episode 1, observations: expected 4 steps", "T + 1"]),
        ("episode_1/truncations", np.ones(3, bool), ["episode 1, truncations: expected 4 steps", "got 3"]),
        ("episode_2/rewards", np.ones(0), ["episode 2: expected at least one step"]),
        ("episode_2/actions", None, ["readable Minari data set", "KeyError", "delete the folder"]),
        ("episode_2", None, ["readable Minari data set", "KeyError"]),
    ],
)
def test_damaged_contents_are_refused(tiny, field, value, words):
    edit(tiny, field, value)
    with pytest.raises(DatasetError) as caught:
        load_minari("tiny/set-v0")
    assert all(word in str(caught.value) for word in words), caught.value


def test_damaged_files_are_refused(tiny):
    main, metadata = tiny / "data" / "main_data.hdf5", tiny / "data" / "metadata.json"
    whole, about = main.read_bytes(), json.loads(metadata.read_text())
    for content in (whole[: len(whole) // 2], b"no hdf5 at all", b""):
        main.write_bytes(content)
        with pytest.raises(
            DatasetError, match="(?s)expected a readable Minari data set, got OSError.*delete the folder"
        ):
            load_minari("tiny/set-v0")
    main.write_bytes(whole)
    metadata.write_text(json.dumps({**about, "total_steps": 12}))
    with pytest.raises(DatasetError, match="expected 12 steps as in metadata.json, got 9 steps"):
        load_minari("tiny/set-v0")
    metadata.write_text(json.dumps({**about, "total_steps": 0, "total_episodes": 0}))
    with pytest.raises(DatasetError, match="at least one episode"):
        load_minari("tiny/set-v0")
    metadata.write_text("{")
    with pytest.raises(DatasetError, match="expected a readable Minari data set, got JSONDecodeError"):
        load_minari("tiny/set-v0")
    main.unlink()
    metadata.write_text(json.dumps(about))
    with pytest.raises(DatasetError, match="No data found"):
        load_minari("tiny/set-v0")
    metadata.unlink()
    with pytest.raises(DatasetError, match="no metadata.json"):
        load_minari("tiny/set-v0")
    with pytest.raises(DatasetError, match="no metadata.json"):
        load_minari(tiny / "nowhere")


def test_all_zero_sets_are_refused(minari_root):
    make_minari("tiny/zero-v0", [{k: v * 0 for k, v in episode(1, 4).items()}])
    with pytest.raises(DatasetError, match="all zeros"):
        load_minari("tiny/zero-v0")


class FakeRemote:
    """Stands for Minari's server: serves what lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        shutil.copytree(self.folder / dataset_id, Path(path) / dataset_id)


def test_absent_sets_are_downloaded_by_minari_and_unknown_ones_refused(tiny, minari_root, tmp_path, monkeypatch):
    make_minari("far-v0", [episode(7, 3)])
    remote = {"far-v0": minari.list_local_datasets()["far-v0"]}
    (tmp_path / "remote").mkdir()
    shutil.move(minari_root / "far-v0", tmp_path / "remote" / "far-v0")
    hosting = minari.storage.hosting
    monkeypatch.setattr(hosting, "list_remote_datasets", lambda prefix, **_: remote if prefix == "far" else {})
    monkeypatch.setattr(hosting, "get_cloud_storage", lambda **_: FakeRemote(tmp_path / "remote"))
    with pytest.raises(DatasetError, match="far-v0.*FileNotFoundError"):
        load_minari("far-v0", download=False)
    assert load_dataset("far-v0").episode_returns.tolist() == [21]
    with pytest.raises(DatasetError, match="near-v0.*Check the id.*'far-v0', 'tiny/set-v0'"):
        load_minari("near-v0")
    for malformed in ("no version", "mujoco/hopper/medium", "x;y-v0"):
        with pytest.raises(DatasetError, match="an id such as mujoco/hopper/medium-v0"):
            load_minari(malformed)


def test_references_come_from_d4rl_else_from_the_metadata(minari_root):
    episodes = [{**episode(1, 3), "observations": np.ones((4, 4)), "actions": np.ones((3, 1))}]
    options = {"env": "InvertedPendulum-v5", "ref_min_score": 5.0, "ref_max_score": 25.0}
    make_minari("any/pole/x-v0", episodes, observation_space=None, action_space=None, **options)
    data = load_minari("any/pole/x-v0")
    assert data.reference == (5.0, 25.0, 1000) and data.env_id == "InvertedPendulum-v5"
    assert data.max_episode_steps == 1000
    make_minari("D4RL/pen/x-v0", episodes, observation_space=None, action_space=None, **options)
    data = load_minari("D4RL/pen/x-v0")
    assert data.reference == REFERENCE_SCORES["pen"] and data.max_episode_steps == 100


def test_torchrls_own_door_opens_to_a_replay_buffer(tiny):
    register_datasets()
    register_datasets()  # twice does no harm
    buffer = torchrl_load_dataset("edp:tiny/set-v0", batch_size=5, generator=torch.Generator().manual_seed(0))
    assert len(buffer) == 9 and buffer.sample().shape == (5,)
