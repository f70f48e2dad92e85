"""The feed-forward policies: what they compute, and how they act."""

import math

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_edp.modules import NoisePredictionMLP, tanh_actor, tanh_gaussian_actor

close = torch.testing.assert_close


def observations(rows=7):
    return TensorDict({"observation": torch.randn(rows, 5)}, [rows])


def test_the_deterministic_policy_is_the_tanh_of_its_trunk():
    actor, data = tanh_actor(5, 2, hidden_sizes=[8, 6], activation=nn.ReLU), observations()
    weights = [layer for layer in actor.modules() if isinstance(layer, nn.Linear)]
    hidden = data["observation"]
    for layer in weights[:-1]:
        hidden = (hidden @ layer.weight.T + layer.bias).clamp_min(0)
    close(actor(data)["action"], (hidden @ weights[-1].weight.T + weights[-1].bias).tanh())
    assert [layer.out_features for layer in weights] == [8, 6, 2]


def test_the_default_trunk_is_the_noise_networks():
    for actor in (tanh_actor(5, 2), tanh_gaussian_actor(5, 2, layer_norm=True)):
        linear = [layer.out_features for layer in actor.modules() if isinstance(layer, nn.Linear)]
        assert linear[:-1] == [256, 256, 256]
    noise = [type(layer).__name__ for layer in NoisePredictionMLP(5, 2).net]
    assert [type(layer).__name__ for layer in tanh_actor(5, 2).module[0]] == noise
    assert sum(isinstance(layer, nn.LayerNorm) for layer in actor.modules()) == 3


def test_the_gaussian_acts_by_the_tanh_of_its_mean_unless_told_to_draw():
    actor, data = tanh_gaussian_actor(5, 2, hidden_sizes=[8]), observations()
    mean, raw = actor[0].module[0](data["observation"]).chunk(2, -1)
    close(actor(data.clone())["action"], mean.tanh())
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        close(actor(data.clone())["action"], mean.tanh())
    with set_exploration_type(ExplorationType.RANDOM):
        rows = TensorDict({"observation": data["observation"][:1].expand(20_000, -1)}, [20_000])
        z = actor(rows)["action"].double().atanh()
    deviation = nn.functional.softplus(raw[0] + math.log(math.exp(0.99) - 1)) + 0.01
    close(z.mean(0).float(), mean[0], atol=0.04, rtol=0)
    close(z.std(0).float(), deviation, atol=0.04, rtol=0)


def test_deviations_have_a_floor():
    actor = tanh_gaussian_actor(5, 2, hidden_sizes=[8])
    with torch.no_grad():
        actor[0].module[0][-1].bias[2:] = -100.0
    close(actor(observations())["scale"], torch.full((7, 2), 0.01))
