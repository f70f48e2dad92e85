"""Whole runs of the feed-forward policies, what they save, and that TorchRL's losses get the settings they should."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict

import pytest
import torch
from experiment_helpers import make_data
from safetensors.torch import load_file
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_edp.configs import FEED_FORWARD
from torchrl_edp.data import ActionScaler, ObservationNormalizer
from torchrl_edp.training import (
    EDPTargetUpdate,
    EnvironmentPolicy,
    RunFolder,
    TrainState,
    TrunkSettings,
    build_feed_forward,
    build_feed_forward_loss,
    load_policy,
    prepare_data,
    run_experiment,
    save_feed_forward_policy,
)
from torchrl_edp.training.checkpoint import CheckpointStore
from torchrl_edp.training.feed_forward import acting_actor

LOSSES = {"td3_bc": "TD3BCLoss", "iql": "IQLLoss", "crr": "CRRLoss", "bc": "AveragedBCLoss"}
CRITICS = {"td3_bc": {"qvalue"}, "iql": {"qvalue", "value"}, "crr": {"qvalue"}, "bc": set()}
close = torch.testing.assert_close


def make_settings(name, steps=4, **options):
    cfg = FEED_FORWARD[name](dataset="tiny", network=TrunkSettings(hidden_sizes=[8]), **options)
    cfg.optim.gradient_steps, cfg.optim.device, cfg.optim.lr = steps, "cpu", 0.01
    cfg.replay_buffer.batch_size = 8
    logger = {"backend": "", "eval_iter": 2, "log_iter": 2, "eval_envs": 2, "progress": False}
    for key, value in logger.items():
        setattr(cfg.logger, key, value)
    return cfg


def run(path, name, dataset=None, change=lambda cfg: None, **options):
    cfg, dataset = make_settings(name, **options), dataset or make_data()
    change(cfg)
    torch.manual_seed(cfg.seed)
    loss = build_feed_forward_loss(cfg, dataset.observation_size, dataset.action_size)
    folder = RunFolder(path, backend="", name=name, overrides=["seed=0"])
    try:
        return loss, run_experiment(cfg, dataset, loss, folder)
    finally:
        folder.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", FEED_FORWARD)
def test_a_run_leaves_its_folder(tmp_path, name):
    loss, summary = run(tmp_path, name)
    names = {path.name for path in tmp_path.iterdir()}
    policies = {f"{policy}.{suffix}" for policy in ("policy", "policy_best") for suffix in ("json", "safetensors")}
    pictures = {"curves.png", "diagnose.png"}
    assert names == {".lock", "checkpoints", "config.yaml", "metrics.csv", "summary.json", *pictures, *policies}
    assert summary["loss"] == type(loss).__name__ == LOSSES[name] and summary["gradient_steps"] == 4
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["update"] for row in rows if row["eval/return"]] == ["2", "4"]
    assert [row["update"] for row in rows if row["diagnose/action_distance"]] == ["2", "4"]
    norms = {key.removeprefix("grad_norm_") for key in rows[0] if key.startswith("grad_norm")}
    assert norms == {"actor", *CRITICS[name]}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "averaged"), [("td3_bc", False), ("iql", True), ("crr", False), ("bc", True)])
def test_a_saved_policy_acts_deterministically_with_the_parameters_asked_for(tmp_path, name, averaged):
    loss, _ = run(tmp_path, name, change=lambda cfg: setattr(cfg.policy, "averaged_actor", averaged))
    saved = load_file(tmp_path / "policy.safetensors")
    for kind, expected in {"target_": averaged, "": not averaged}.items():
        params = getattr(loss, f"{kind}actor_network_params")
        same = [torch.equal(saved[f"actor.{'.'.join(key)}"], value) for key, value in params.items(True, True)]
        assert all(same) if expected else not any(same), kind
    card = json.loads((tmp_path / "policy.json").read_text())
    assert card["feed_forward"] == ("tanh" if name == "td3_bc" else "tanh_gaussian")
    policy = load_policy(tmp_path / "policy")
    assert not any(p.requires_grad for p in policy.parameters())
    data = TensorDict({"observation": torch.randn(5, 3)}, [5])
    action = policy(data.clone())["action"]
    mean = policy.policy.module if name == "td3_bc" else policy.policy[0].module
    normal = policy.observation_normalizer(data["observation"])
    with torch.no_grad():
        expected = mean(normal) if name == "td3_bc" else mean(normal)[0].tanh()
    close(action, 2 * expected)  # the bounds are +-2
    with set_exploration_type(ExplorationType.RANDOM):
        again = policy(data.clone())["action"]
    assert torch.equal(again, action) == (name == "td3_bc")


def test_the_acting_policy_follows_training():
    cfg = make_settings("iql")
    loss = build_feed_forward_loss(cfg, 3, 1)
    actor = acting_actor(cfg, loss, 3, 1)
    data = TensorDict({"observation": torch.randn(5, 3)}, [5])
    before = actor(data.clone())["loc"]
    with torch.no_grad():
        for parameter in loss.actor_network_params.values(True, True):
            parameter.add_(0.1)
    after = actor(data.clone())["loc"]
    assert not torch.allclose(before, after) and all(p.requires_grad for p in loss.actor_network_params.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["td3_bc", "iql"])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, name):
    dataset = make_data()

    def flat(cfg):
        cfg.optim.decay = "none"  # else a longer run has other rates

    whole = run(tmp_path / "whole", name, dataset, flat, steps=5)[1]
    run(tmp_path / "parts", name, dataset, flat, steps=3)  # not at a step of TD3's policy
    parts = run(tmp_path / "parts", name, dataset, flat, steps=5, resume="auto")[1]
    ends = [CheckpointStore(tmp_path / path / "checkpoints").load().tensors for path in ("whole", "parts")]
    differing = [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])]
    assert [key for key in differing if not key.startswith("record.")] == [] and ends[0].keys() == ends[1].keys()
    assert whole["last"] == parts["last"]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_policy_is_delayed(every):
    cfg = make_settings("td3_bc")
    torch.manual_seed(0)
    loss = build_feed_forward_loss(cfg, 3, 1)
    targets = EDPTargetUpdate(loss, tau=0.1, actor_every=every)
    state = TrainState(loss, prepare_data(make_data(), batch_size=8).buffer, targets, policy_every=every)

    def snapshot():
        names = ("actor", "target_actor", "qvalue", "target_qvalue")
        return [getattr(loss, f"{name}_network_params").data.clone() for name in names]

    for update in range(1, 7):
        before = snapshot()
        norms = state.update()
        moved = [bool((new != old).any()) for new, old in zip(snapshot(), before, strict=True)]
        due = update % every == 0
        assert moved == [due, due, True, True] and norms["grad_norm_actor"] > 0
    assert int(state.optimizers["actor"].steps[0]) == 6 // every


def test_a_run_averages_the_policy_when_it_steps(tmp_path):
    loss, _ = run(tmp_path, "td3_bc", steps=3)
    torch.manual_seed(0)
    first = build_feed_forward_loss(make_settings("td3_bc"), 3, 1).actor_network_params
    for key, value in loss.actor_network_params.items(True, True):  # moved at the second update alone
        expected = first.get(key).lerp(value, 0.005)
        close(loss.target_actor_network_params.get(key), expected.detach(), rtol=0, atol=1e-8)


def test_defaults_are_the_papers():
    found = {name: asdict(FEED_FORWARD[name]()) for name in FEED_FORWARD}
    assert found["td3_bc"]["loss"] == {
        "gamma": 0.99,
        "num_qvalue_nets": 2,
        "loss_function": "l2",
        "alpha": 2.5,
        "policy_noise": 0.2,
        "noise_clip": 0.5,
    }
    critics = {"gamma": 0.99, "num_qvalue_nets": 2, "loss_function": "l2"}
    assert found["iql"]["loss"] == critics | {"temperature": 3.0, "expectile": 0.7}
    assert found["bc"]["loss"] == {}
    crr = {"temperature": 1.0, "weight_function": "exp", "weight_cap": 20.0, "weight_normalization": None}
    assert (critics | crr | {"baseline": "mean", "num_action_samples": 10}).items() <= found["crr"]["loss"].items()
    for name, cfg in found.items():
        assert (cfg["optim"]["lr"], cfg["optim"]["tau"], cfg["optim"]["clip_grad"]) == (3e-4, 0.005, 5.0)
        assert cfg["optim"]["policy_every"] == (2 if name == "td3_bc" else 1)
        assert cfg["optim"]["decay"] == ("cosine" if name == "iql" else "none")
        assert cfg["network"]["hidden_sizes"] == [256] * 3 and cfg["network"]["activation"] == "mish"
        assert cfg["replay_buffer"]["batch_size"] == 256


def batch(rows=5):
    flags = torch.arange(rows).unsqueeze(-1) % 2 == 0
    normal = {"dtype": torch.float64}
    following = {"observation": torch.randn(rows, 3, **normal), "reward": torch.randn(rows, 1, **normal)}
    following |= {"done": flags, "terminated": flags.clone()}
    data = {"observation": torch.randn(rows, 3, **normal), "action": torch.rand(rows, 2, **normal) * 1.9 - 0.95}
    return TensorDict(data | {"next": TensorDict(following, [rows])}, [rows])


def loss_and_parts(name, **settings):
    """A loss in double precision with parameters that differ from their averages, and its networks as functions."""
    torch.manual_seed(1)
    cfg = make_settings(name)
    for key, value in settings.items():
        setattr(cfg.loss, key, value)
    loss = build_feed_forward_loss(cfg, 3, 2).double()
    EDPTargetUpdate(loss)
    for parameter in loss.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))

    def actor(observation):
        with loss.actor_network_params.to_module(loss.actor_network):
            module = loss.actor_network if name == "td3_bc" else loss.actor_network[0]
            return module.module(observation)

    def qvalues(observation, action, params):
        values = []
        for critic in params.unbind(0):
            with critic.to_module(loss.qvalue_network):
                values.append(loss.qvalue_network.module(observation, action).squeeze(-1))
        return torch.stack(values)

    return loss, actor, qvalues


def log_prob(mean, deviation, action):
    z = (action.atanh() - mean) / deviation
    density = torch.exp(-0.5 * z.square()) / (deviation * math.sqrt(2 * math.pi) * (1 - action.square()))
    return density.log().sum(-1)


def assert_same(loss, found, expected):
    close(found, expected, rtol=1e-6, atol=1e-8)
    params = [p for name, p in loss.named_parameters() if name.startswith("actor")]
    others = [p for name, p in loss.named_parameters() if not name.startswith("actor")]
    close(
        torch.autograd.grad(found, params, retain_graph=True),
        torch.autograd.grad(expected, params, retain_graph=True),
        rtol=1e-6,
        atol=1e-8,
    )
    assert not others or all(g is None for g in torch.autograd.grad(found, others, allow_unused=True))


def test_cloning_maximises_the_likelihood_of_the_data():
    loss, actor, _ = loss_and_parts("bc")
    data = batch()
    keys = set(data.keys(True, True))
    expected = -log_prob(*actor(data["observation"]), data["action"]).mean()
    assert_same(loss, loss(data)["loss_bc"], expected)
    assert set(data.keys(True, True)) == keys


def test_td3_bc_maximises_the_first_critic_near_the_data():
    loss, actor, qvalues = loss_and_parts("td3_bc", alpha=1.7)
    data = batch()
    action = actor(data["observation"])
    value = qvalues(data["observation"], action, loss.qvalue_network_params.data)[0]
    scale = 1.7 / value.detach().abs().mean()
    expected = (-scale * value).mean() + (action - data["action"]).square().mean()
    assert_same(loss, loss.actor_loss(data)[0], expected)


def test_td3_bc_bootstraps_from_the_smoothed_and_clipped_target_action():
    loss, _, qvalues = loss_and_parts("td3_bc", policy_noise=0.9, noise_clip=0.6, gamma=0.9)
    data = batch()
    following = data["next"]
    torch.manual_seed(4)
    noise = (torch.randn_like(data["action"]) * 0.9).clamp(-0.6, 0.6)
    with loss.target_actor_network_params.to_module(loss.actor_network), torch.no_grad():
        action = (loss.actor_network.module(following["observation"]) + noise).clamp(-1, 1)
    value = qvalues(following["observation"], action, loss.target_qvalue_network_params).amin(0)
    target = (following["reward"].squeeze(-1) + 0.9 * (~following["terminated"].squeeze(-1)) * value).detach()
    predicted = qvalues(data["observation"], data["action"], loss.qvalue_network_params)
    torch.manual_seed(4)
    close(loss.qvalue_loss(data)[0], (predicted - target).square().mean(1).sum(), rtol=1e-6, atol=1e-8)


def test_iql_weighs_the_likelihood_by_the_advantage():
    loss, actor, qvalues = loss_and_parts("iql", temperature=2.0, expectile=0.8)
    data = batch()
    with loss.value_network_params.to_module(loss.value_network):
        value = loss.value_network.module(data["observation"]).squeeze(-1)
    advantage = qvalues(data["observation"], data["action"], loss.target_qvalue_network_params).amin(0) - value
    weight = (2.0 * advantage).exp().clamp_max(100).detach()
    expected = -(weight * log_prob(*actor(data["observation"]), data["action"])).mean()
    assert_same(loss, loss.actor_loss(data.clone())[0], expected)
    share = torch.where(advantage > 0, 0.8, 0.2)
    close(loss.value_loss(data.clone())[0], (share * advantage.square()).mean(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("steps", [None, [3, 1, 4, 2, 5]])
def test_iql_bootstraps_from_the_value_where_the_sum_of_rewards_ends(steps):
    loss, _, qvalues = loss_and_parts("iql", gamma=0.9)
    data, discount = batch(), torch.full((5,), 0.9, dtype=torch.float64)
    if steps is not None:
        data["next", "steps_to_next_obs"] = torch.tensor(steps).unsqueeze(-1)
        discount **= torch.tensor(steps)
    following = data["next"]
    with loss.target_value_network_params.to_module(loss.value_network), torch.no_grad():
        value = loss.value_network.module(following["observation"]).squeeze(-1)
    target = following["reward"].squeeze(-1) + discount * ~following["terminated"].squeeze(-1) * value
    predicted = qvalues(data["observation"], data["action"], loss.qvalue_network_params)
    close(loss.qvalue_loss(data)[0], (predicted - target).square().mean(1).sum(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["tanh", "tanh_gaussian"])
def test_a_saved_policy_acts_as_before(tmp_path, kind):
    network = TrunkSettings(hidden_sizes=[8, 8], activation="relu", layer_norm=True)
    normalizer, scaler = ObservationNormalizer([1.0] * 3, [2.0] * 3), ActionScaler([-1.0, 0.0], [1.0, 4.0])
    policy = EnvironmentPolicy(build_feed_forward(3, 2, network, kind), normalizer, scaler)
    save_feed_forward_policy(tmp_path / "policy", policy, network=network, kind=kind, info={"dataset": "x"})
    data = TensorDict({"observation": torch.randn(5, 3)}, [5])
    loaded = load_policy(tmp_path / "policy.json")
    assert torch.equal(loaded(data.clone())["action"], policy(data.clone())["action"])
    text = (tmp_path / "policy.json").read_text()
    card = json.loads(text)
    wrong = "tanh" if kind == "tanh_gaussian" else "tanh_gaussian"
    for change in ({"feed_forward": wrong}, {"feed_forward": "x"}, {"action_size": 3}, {"network": {"depth": 3}}):
        (tmp_path / "policy.json").write_text(json.dumps(card | change))
        with pytest.raises(ValueError, match="does not make the policy of its card"):
            load_policy(tmp_path / "policy")
