"""The shipped policy: what it computes, and that two plain files carry it."""

import errno
import json
import os

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import GymEnv
from training_helpers import ACTIONS, DIFFUSION, NETWORK, OBSERVATIONS, SELECTION, make_loss, make_policy

from torchrl_edp.data import ActionScaler, ObservationNormalizer
from torchrl_edp.modules import FrozenPolicy
from torchrl_edp.training import (
    EDPTargetUpdate,
    EnvironmentPolicy,
    RunFolder,
    SelectionSettings,
    TrunkSettings,
    build_actor,
    build_feed_forward,
    build_qvalue,
    build_selector,
    load_policy,
    save_feed_forward_policy,
    save_policy,
)


@pytest.fixture
def policy():
    loss = make_loss()
    EDPTargetUpdate(loss)
    with torch.no_grad():  # averaged and current parameters differ: the policy must ship the averaged ones
        for parameter in loss.actor_network_params.values(True, True):
            parameter.add_(0.3)
    return make_policy(loss)


def act(policy, observation):
    torch.manual_seed(2)
    return policy(TensorDict({"observation": observation}, observation.shape[:-1]))["action"]


def save(path, policy):
    save_policy(path, policy, network=NETWORK, diffusion=DIFFUSION, selection=SELECTION, info={"dataset": "x"})


def test_saved_policy_acts_as_before(policy, tmp_path):
    save(tmp_path / "policy", policy)
    observation = torch.randn(5, OBSERVATIONS)
    loaded = load_policy(tmp_path / "policy")
    torch.testing.assert_close(act(loaded, observation), act(policy, observation))
    assert json.loads((tmp_path / "policy.json").read_text())["info"] == {"dataset": "x"}
    assert not any(p.requires_grad for p in loaded.parameters())


def test_observations_are_normalised_and_actions_scaled(policy):
    seen = []
    inner = policy.policy

    class Spy(torch.nn.Module):
        def forward(self, tensordict):
            seen.append(tensordict["observation"].clone())
            return inner(tensordict)

    policy.policy = Spy()
    observation = torch.randn(200, OBSERVATIONS)
    action = act(policy, observation)
    torch.testing.assert_close(seen[0], (observation - 1) / 3)
    assert action.shape == (200, ACTIONS)
    assert 1 < action.abs().max() <= 2


def test_other_formats_are_refused(policy, tmp_path):
    save(tmp_path / "policy", policy)
    card = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(ValueError, match="expected format 1, got 99"):
        load_policy(tmp_path / "policy")


def test_damage_is_refused(policy, tmp_path):
    path = tmp_path / "policy"
    save(path, policy)
    weights, card = path.with_suffix(".safetensors"), path.with_suffix(".json")
    data, text = weights.read_bytes(), card.read_text()
    for damaged in (data[:-1], data[:-4] + b"\0\0\0\0", data + b"\0"):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="policy.safetensors is damaged or of another save than .*policy.json"):
            load_policy(path)
    weights.write_bytes(data)
    about = json.loads(text)
    for wrong in (
        {"network": {"hidden_sizes": [8]}},
        {"network": {"widths": [8]}},
        {"diffusion": None},
        {"observation_size": "3"},
        {"observation_keys": 3},
    ):
        card.write_text(json.dumps(about | wrong))
        with pytest.raises(ValueError, match="(?s)does not make the policy of its card.*Get both files"):
            load_policy(path)
    card.write_text("[]")
    with pytest.raises(ValueError, match="policy.json is no policy's card: expected format 1, got 'list'"):
        load_policy(path)
    card.unlink()
    with pytest.raises(FileNotFoundError, match="policy.json"):
        load_policy(path)


def test_a_missing_policy_is_explained(policy, tmp_path):
    """A mistaken path, a run that failed, several seeds, a run that goes on, a run without evaluations."""

    def refuse(path, message):
        with pytest.raises(FileNotFoundError, match=message):
            load_policy(path)

    refuse(tmp_path / "no" / "policy", "There is no folder .*no: give that of a run")
    refuse(tmp_path / "no", "no.safetensors: expected .* Give the folder of a run")
    (tmp_path / "config.yaml").touch()
    refuse(tmp_path, f"failed or has saved no policy yet.* resume={tmp_path}")
    for seed in ("seed0", "seed1"):
        RunFolder(tmp_path / seed, backend="").close()
    refuse(tmp_path, f"Several seeds .*: load one of .'{tmp_path}/seed0', '{tmp_path}/seed1'")
    save(tmp_path / "seed1" / "policy_best", policy)
    refuse(tmp_path / "seed1", f"`policy` once it ends .*: load one of .'{tmp_path}/seed1/policy_best'")
    save(tmp_path / "policy", policy)
    refuse(tmp_path / "policy_best.json", f"`policy_best` once it is evaluated: load one of .'{tmp_path}/policy'")


def test_policies_saved_without_a_hash_or_keys_load(policy, tmp_path):
    save(tmp_path / "policy", policy)
    card = json.loads((tmp_path / "policy.json").read_text())
    del card["weights_sha256"], card["observation_keys"]
    (tmp_path / "policy.json").write_text(json.dumps(card))
    load_policy(tmp_path / "policy")


def test_a_failed_save_leaves_the_files_of_before(policy, tmp_path, monkeypatch):
    save(tmp_path / "policy", policy)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    policy.action_scaler.half_range.mul_(2)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path / "policy", policy)
    selection = {"network": NETWORK, "diffusion": DIFFUSION, "selection": SELECTION}
    with pytest.raises(ValueError, match="info.score is nan"):
        save_policy(tmp_path / "policy", policy, **selection, info={"score": float("nan")})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_only_selectors_are_saved(policy, tmp_path):
    policy.policy = policy.policy.actor_network
    with pytest.raises(TypeError, match="EnergyBasedActionSelector"):
        save(tmp_path / "policy", policy)


def test_it_acts_on_what_the_environment_gives(policy, tmp_path):
    """MuJoCo's observations are float64; the policy is found by its run's folder, too."""
    save(tmp_path / "policy", policy)
    loaded, observation = load_policy(tmp_path), torch.randn(5, OBSERVATIONS)
    action = act(loaded, observation.double())
    assert action.dtype == torch.float32 and torch.equal(action, act(policy, observation))
    frozen = FrozenPolicy(loaded, compile=False)
    torch.testing.assert_close(act(frozen, observation.double()), action)


def test_the_entries_of_a_dict_observation_are_concatenated(policy, tmp_path):
    policy = EnvironmentPolicy(policy.policy, policy.observation_normalizer, policy.action_scaler, ("speed", "goal"))
    save(tmp_path / "policy", policy)
    loaded, observation = load_policy(tmp_path), torch.randn(5, OBSERVATIONS)
    entries = {"speed": observation[:, :1].double(), "goal": observation[:, 1:, None].double()}
    expected = act(policy, observation)
    for others in ({}, {"observation": torch.ones(5, 7)}):
        for acting in (loaded, FrozenPolicy(loaded, compile=False)):
            torch.manual_seed(2)
            action = acting(TensorDict({**others, **entries}, [5]))["action"]
            torch.testing.assert_close(action, expected)
    torch.manual_seed(2)  # what is concatenated already goes first
    action = loaded(TensorDict({"observation": observation, "speed": torch.ones(5, 1), "goal": torch.ones(5, 2)}, [5]))
    torch.testing.assert_close(action["action"], expected)


def test_observations_of_another_size_are_refused(policy):
    with pytest.raises(ValueError, match=r"expected 3 entries per row, as in the data, got 2.*CatTensors\(.*sort="):
        act(policy, torch.randn(5, 2))
    policy.observation_keys = ("speed", "goal")
    message = r"those of \['speed', 'goal'\], got {}.*CatTensors\(\['speed', 'goal'\], out_key"
    for entries, found in (({"speed": 1}, "none"), ({"speed": 1, "goal": 3}, 4), ({"observation": 4, "goal": 2}, 4)):
        data = TensorDict({key: torch.zeros(5, size) for key, size in entries.items()}, [5])
        with pytest.raises(ValueError, match=message.format(found)):
            policy(data)


@pytest.mark.slow
def test_a_loaded_policy_acts_in_mujoco(tmp_path):
    for kind in ("diffusion", "tanh", "tanh_gaussian"):
        normalizer, scaler = ObservationNormalizer.identity(11), ActionScaler([-1.0] * 3, [1.0] * 3)
        if kind == "diffusion":
            actor, qvalue = build_actor(11, 3, NETWORK, DIFFUSION), build_qvalue(11, 3, NETWORK)
            policy = EnvironmentPolicy(build_selector(actor, qvalue, SelectionSettings()), normalizer, scaler)
            save_policy(tmp_path / kind, policy, network=NETWORK, diffusion=DIFFUSION, selection=SelectionSettings())
        else:
            trunk = TrunkSettings(hidden_sizes=[8])
            policy = EnvironmentPolicy(build_feed_forward(11, 3, trunk, kind), normalizer, scaler)
            save_feed_forward_policy(tmp_path / kind, policy, network=trunk, kind=kind)
        loaded = load_policy(tmp_path / kind)
        for acting in (loaded, FrozenPolicy(loaded, compile=False)):
            steps = GymEnv("Hopper-v5").rollout(5, acting)
            assert steps["action"].dtype == torch.float32 and steps["action"].abs().max() <= 1, kind
