from __future__ import annotations

import pytest
import torch
from modules_helpers import make_actor
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import DiffusionActor

from torchrl_edp.modules import ScoreNetworkAdapter, as_edp_actor

SETTINGS = [
    {},
    {"num_steps": 30, "beta_start": 1e-3, "beta_end": 0.5},
    {"num_steps": 10, "in_keys": [("agent", "obs")], "out_keys": [("agent", "act")]},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "other betas", "nested keys"])
def test_it_samples_as_the_stock_actor(settings, dtype):
    stock = DiffusionActor(action_dim=2, obs_dim=4, **settings).to(dtype)
    ours = as_edp_actor(stock)
    key = settings.get("in_keys", ["observation"])[0]
    out_key = settings.get("out_keys", ["action"])[0]
    data = TensorDict({}, [2, 5]).set(key, torch.randn(2, 5, 4, dtype=dtype))
    actions = []
    for actor in (stock, ours):
        torch.manual_seed(3)
        actions.append(actor(data.clone())[out_key])
    torch.testing.assert_close(*actions, rtol=1e-5, atol=1e-5)
    assert actions[0].dtype == actions[1].dtype == dtype
    assert actions[1].abs().max() > 1 and actions[1].std() > 0, "not clipped, not constant"
    assert ours.in_keys == [key, "initial_noise"] and ours.out_keys == [out_key]


@pytest.mark.parametrize("safe", [False, True])
def test_it_is_as_repeatable_and_as_safe_as_the_stock_actor(safe):
    stock = DiffusionActor(action_dim=2, obs_dim=4, num_steps=10, spec=Bounded(-1, 1, (2,)), safe=safe)
    data = TensorDict({"observation": torch.randn(50, 4)}, [50])
    sampled = as_edp_actor(stock)(data.clone())["action"]
    assert (sampled.abs().max() > 1) != safe
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        expected, found = stock(data.clone())["action"], as_edp_actor(stock)(data.clone())["action"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_it_shares_the_network():
    stock = DiffusionActor(action_dim=2, obs_dim=4, num_steps=10)
    ours = as_edp_actor(stock)
    assert [id(p) for p in ours.parameters()] == [id(p) for p in stock.parameters()]
    ours(TensorDict({"observation": torch.randn(3, 4)}, [3]))["action"].sum().backward()
    assert all(p.grad is not None for p in stock.module.score_network.parameters())


def test_the_score_network_sees_action_observation_and_step():
    seen = []
    network = ScoreNetworkAdapter(nn.Sequential(nn.Identity(), nn.Linear(6, 2)).double())
    network.score_network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    action, observation = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    assert network(action, torch.tensor([7.0, 0.0]), observation).shape == (2, 2)
    step = torch.tensor([[7.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(seen[0], torch.cat([action, observation, step], -1))


def test_an_edp_actor_is_returned_as_it_is():
    actor = make_actor()
    assert as_edp_actor(actor) is actor


def test_lazy_layers_are_refused_until_called():
    stock = DiffusionActor(action_dim=2, num_steps=10)
    with pytest.raises(ValueError, match="lazy layers: call it once, or give it obs_dim"):
        as_edp_actor(stock)
    stock(TensorDict({"observation": torch.zeros(1, 4)}, [1]))
    assert as_edp_actor(stock).module.action_size == 2


@pytest.mark.parametrize("actor", [TensorDictModule(nn.Linear(4, 2), ["observation"], ["action"]), nn.Linear(4, 2)])
def test_other_actors_are_refused(actor):
    with pytest.raises(TypeError, match=r"an EDPActor or a torchrl.modules.DiffusionActor, got (TensorDict|Linear)"):
        as_edp_actor(actor)
