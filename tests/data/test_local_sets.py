from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import gymnasium
import minari
import numpy as np
import pytest
import torch
from data_helpers import LONG, SHORT, write_policy

from torchrl_edp.data import (
    REFERENCE_SCORES,
    BehaviorPolicy,
    DatasetError,
    list_local_counterparts,
    load_behavior,
    load_dataset,
    load_minari,
    make_local_dataset,
)
from torchrl_edp.data.local import collect_episodes

ID = "local/count/medium-v0"


def make(dataset_id=ID, *, num_steps=300, **options):
    return make_local_dataset(dataset_id, num_steps=num_steps, progress=False, **options)


def test_whole_episodes_with_true_last_observations(minari_root, behavior_dir):
    data = make(behavior_dir=behavior_dir)
    td = data.transitions
    assert data.dataset_id == "local/count/medium-n300-s0-v0" and data.is_local_counterpart
    assert data.env_id == "edp-tests/Count-v0"
    assert 300 <= data.num_transitions < 300 + 32 * LONG
    assert (td["next", "observation"] == td["observation"] + torch.tensor([0.0, 1.0])).all()
    lengths = data.episode_lengths
    assert set(lengths.tolist()) == {SHORT, LONG}
    ends = lengths.cumsum(0) - 1
    assert td["next", "done"].flatten().nonzero().flatten().equal(ends)
    assert td["next", "terminated"].flatten()[ends].equal(lengths == SHORT)
    assert td["next", "observation"][ends, 1].equal(lengths.float())
    assert td["action"].min() < -1 and td["action"].max() > 1  # in the environment's bounds [-2, 6]
    assert len(td["action"].unique()) == data.num_transitions  # sampled
    stored = minari.load_dataset(data.dataset_id)  # the flags are right for other readers, too
    assert all((e.terminations[-1], e.truncations[-1]) == (len(e) == SHORT, len(e) == LONG) for e in stored)


def test_reproducible_from_the_seed_and_cached(minari_root, behavior_dir, monkeypatch):
    first = make(behavior_dir=behavior_dir).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr("torchrl_edp.data.local.collect_episodes", None)  # a cached set needs no roll-out
        assert make(behavior_dir=behavior_dir).fingerprint() == first
        assert load_dataset("local/count/medium-n300-s0-v0").fingerprint() == first
    assert make(behavior_dir=behavior_dir, force=True).fingerprint() == first
    other = make(behavior_dir=behavior_dir, seed=1)
    assert other.fingerprint() != first and other.dataset_id == "local/count/medium-n300-s1-v0"
    assert load_minari("local/count/medium-n300-s0-v0").fingerprint() == first


DIGEST = """
import hashlib
from torchrl_edp.data import load_behavior
from torchrl_edp.data.collect import collect_episodes
digest = hashlib.sha256()
for episode in collect_episodes(load_behavior("hopper", "medium"), 3000, [0]):
    for array in episode.observations:
        digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_the_same_on_machines_that_round_otherwise():
    """A policy in float32 made four sets of four processors: the simulation amplifies the last bit."""
    digests = set()
    for setting in ({"OMP_NUM_THREADS": "1"}, {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}):
        command = [sys.executable, "-c", DIGEST]
        done = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_medium_expert_is_both_one_after_the_other(minari_root, behavior_dir):
    both = make("local/count/medium-expert-v0", behavior_dir=behavior_dir)
    medium, expert = (make(f"local/count/{part}-v0", behavior_dir=behavior_dir) for part in ("medium", "expert"))
    assert both.parts == {"medium": len(medium.episode_returns), "expert": len(expert.episode_returns)}
    for key in ("observation", "action"):
        assert both.transitions[key].equal(torch.cat([medium.transitions[key], expert.transitions[key]]))
    assert both.part_returns("expert").equal(expert.episode_returns)
    assert not medium.transitions["observation"][0].equal(expert.transitions["observation"][0])
    with pytest.raises(DatasetError, match="part: expected one of .'medium', 'expert'.*'best'"):
        both.part_returns("best")


def test_no_bias_towards_short_or_long_episodes(behavior_dir):
    """Half of all episodes are long. Keeping those that end first would leave about a fifth of them here."""
    policy = load_behavior("count", "medium", behavior_dir)
    runs = [collect_episodes(policy, 150, [seed]) for seed in range(80)]
    lengths = np.array([len(episode.rewards) for run in runs for episode in run])
    assert all(sum(len(episode.rewards) for episode in run) >= 150 for run in runs)
    assert abs((lengths == LONG).mean() - 0.5) < 4 * 0.5 / len(lengths) ** 0.5


def test_an_interrupted_make_leaves_nothing(minari_root, behavior_dir, monkeypatch):
    original = minari.create_dataset_from_buffers

    def interrupted(*args, **kwargs):
        original(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(minari, "create_dataset_from_buffers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(behavior_dir=behavior_dir)
    assert os.environ["MINARI_DATASETS_PATH"] == str(minari_root)
    assert not [path for path in minari_root.rglob("*") if path.is_file()]
    whole = make(behavior_dir=behavior_dir)
    with monkeypatch.context() as patch:
        patch.setattr(minari, "create_dataset_from_buffers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(behavior_dir=behavior_dir, force=True)
    assert load_minari(whole.dataset_id).fingerprint() == whole.fingerprint()


def test_a_set_by_other_policies_is_made_again(minari_root, behavior_dir):
    before = make(behavior_dir=behavior_dir)
    torch.manual_seed(9)
    write_policy(behavior_dir, "count-medium", BehaviorPolicy(2, 1, (4,)))
    with pytest.warns(UserWarning, match="other behaviour policies"):
        after = make(behavior_dir=behavior_dir)
    assert after.fingerprint() != before.fingerprint()


def test_metadata_have_reference_scores_and_say_what_the_set_is(minari_root, behavior_dir):
    torch.manual_seed(0)
    write_policy(behavior_dir, "hopper-medium", BehaviorPolicy(11, 3, (4,)), env_id="Hopper-v5")
    data = make("local/hopper/medium-v0", num_steps=50, behavior_dir=behavior_dir)
    assert data.reference == REFERENCE_SCORES["hopper"] and data.max_episode_steps == 1000
    dataset = minari.load_dataset(data.dataset_id)
    assert minari.get_normalized_score(dataset, np.array([3234.3])) == pytest.approx([1.0])
    assert "not D4RL's" in dataset.storage.metadata["description"]
    gymnasium.make(data.env_id, **data.env_kwargs).close()


def test_unknown_names_list_what_exists(minari_root, behavior_dir):
    known = [f"local/count/{level}-v0" for level in ("medium", "expert", "medium-expert")]
    assert list_local_counterparts(behavior_dir) == known
    for unknown in ("local/count/replay-v0", "local/ant/medium-v0", "local/count/medium-v1"):
        with pytest.raises(DatasetError, match=f"{known[0]}.*got '{unknown}'.*train_behavior"):
            make(unknown, behavior_dir=behavior_dir)
    (behavior_dir / "count-expert.safetensors").unlink()
    assert list_local_counterparts(behavior_dir) == known[:1]
    with pytest.raises(DatasetError, match="'local/count/medium-expert-v0'"):
        make("local/count/medium-expert-v0", behavior_dir=behavior_dir)
    with pytest.raises(DatasetError, match="expected one of .'count-medium'., got 'count-expert'"):
        load_behavior("count", "expert", behavior_dir)
    with pytest.raises(DatasetError, match="num_steps"):
        make(num_steps=0, behavior_dir=behavior_dir)
    with pytest.raises(DatasetError, match="make_local_dataset makes it"):
        load_minari("local/count/medium-v0")


def test_behavior_policy_follows_its_card(behavior_dir):
    policy = load_behavior("count", "medium", behavior_dir)
    observation = torch.tensor([[0.3, -0.2]]).expand(20_000, 2)
    loc, raw_scale = policy.layers(observation[0]).chunk(2)
    samples = policy(observation, torch.Generator().manual_seed(0)).atanh()
    assert samples.mean() == pytest.approx(loc.item(), abs=0.03)
    assert samples.std() == pytest.approx(raw_scale.clamp(-5, 2).exp().item(), rel=0.03)
    assert policy(observation[:1], deterministic=True).item() == pytest.approx(loc.tanh().item())
    floor = BehaviorPolicy(1, 1, ())
    torch.nn.init.zeros_(floor.layers[0].weight)
    floor.layers[0].bias.data = torch.tensor([0.0, -50.0])
    floor.requires_grad_(False)
    assert floor(torch.zeros(20_000, 1)).atanh().std() == pytest.approx(math.exp(-5), rel=0.03)


def test_damaged_behavior_files_are_refused(behavior_dir):
    card, weights = behavior_dir / "count-medium.json", behavior_dir / "count-medium.safetensors"
    text, content = card.read_text(), weights.read_bytes()
    about = json.loads(text)
    for broken in (
        "{",
        json.dumps({**about, "scale_mapping": "exp(raw_scale)"}),
        json.dumps({**about, "hidden_sizes": [5]}),
    ):
        card.write_text(broken)
        with pytest.raises(DatasetError, match="behaviour policy count-medium"):
            load_behavior("count", "medium", behavior_dir)
    card.write_text(text)
    weights.write_bytes(content[:-8])
    with pytest.raises(DatasetError, match="behaviour policy count-medium"):
        load_behavior("count", "medium", behavior_dir)
    card.unlink()
    with pytest.raises(DatasetError, match="behaviour policy count-medium"):
        load_behavior("count", "medium", behavior_dir)


@pytest.mark.parametrize("level", ["medium", "expert"])
@pytest.mark.parametrize("task", ["hopper", "halfcheetah", "walker2d"])
def test_shipped_policies_load_and_fit_their_environment(task, level):
    if f"local/{task}/{level}-v0" not in list_local_counterparts():
        pytest.skip(f"{task}-{level} is not trained yet")
    policy = load_behavior(task, level)
    env = gymnasium.make(policy.card["env_id"])
    observation, _ = env.reset(seed=0)
    action = policy(torch.as_tensor(observation, dtype=torch.float32))
    assert env.action_space.contains(action.numpy()) and policy.card["level"] == level


def test_only_local_sets_have_a_size():
    with pytest.raises(DatasetError, match="num_steps sizes local counterparts, got it for mujoco/hopper/medium-v0"):
        load_dataset("mujoco/hopper/medium-v0", num_steps=2000)
