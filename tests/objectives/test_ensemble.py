"""Critics inside a loss: what their copies share, and what they must be."""

from __future__ import annotations

import warnings

import pytest
import torch
from loss_cases import OBS, A, gradients, make_data, make_loss, make_networks, seeded, spread
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

from torchrl_edp.modules import QValueNetwork
from torchrl_edp.objectives.ensemble import independent_copies, is_plain


class Critic(nn.Module):
    """A frozen encoder, a buffer, and a head that is trained."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Linear(OBS, 4).requires_grad_(False)
        self.head = nn.Linear(4 + A, 1)
        self.register_buffer("shift", torch.tensor([shift]))

    def forward(self, observation, action):
        return self.head(torch.cat([self.encoder(observation), action], -1)) + self.shift


def operator(network: nn.Module) -> ValueOperator:
    return ValueOperator(network, in_keys=["observation", "action"])


@pytest.mark.parametrize("separate_losses", [False, True])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("as_list", [False, True])
def test_what_is_frozen_stays_so_and_buffers_are_the_critics_own(case, count, as_list, separate_losses):
    critics = [operator(Critic(float(i + 1))) for i in range(count)]
    networks = {**make_networks(), "qvalue_network": critics if as_list else critics[0]}
    loss = make_loss(case, count, networks=networks, separate_losses=separate_losses)
    loss.reset_parameters_recursive()
    params = loss.qvalue_network_params["module"]
    assert not params["encoder", "weight"].requires_grad and params["head", "weight"].requires_grad
    used = critics if as_list else critics[:1] * count
    torch.testing.assert_close(params["shift"].data, torch.stack([critic.module.shift for critic in used]))
    if not as_list:
        weights = [critic.module.encoder.weight for critic in used]
        torch.testing.assert_close(params["encoder", "weight"].data, torch.stack(weights))
    if count == 2:
        assert not torch.equal(*params["head", "weight"].unbind(0))


def test_weights_that_no_layer_draws_anew_are_told():
    attention = nn.MultiheadAttention(4, 2)  # has no reset_parameters
    with pytest.warns(UserWarning, match="start from the same module.in_proj_weight, which no layer draws anew"):
        independent_copies(operator(attention), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        independent_copies(operator(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))), 2)


def test_networks_without_keys_or_parameters_are_refused(case):
    lazy = ValueOperator(nn.LazyLinear(1), in_keys=["observation"])
    for name in set(case.networks.values()) - {"actor_network"}:
        for plain in (QValueNetwork(OBS, A), [QValueNetwork(OBS, A)] * 2):
            with pytest.raises(TypeError, match=f"{name} must be a TensorDictModule, got .*: wrap it, as in"):
                make_loss(case, networks={**make_networks(2), name: plain})
        with pytest.raises(ValueError, match=f"{name} has lazy layers: call it once"):
            make_loss(case, networks={**make_networks(2), name: lazy})


@pytest.mark.parametrize("heads", [{}, {"qvalue_normalization": "other"}, {"guidance_qvalue": "min"}])
def test_plain_critics_are_called_without_vmap(case, heads, monkeypatch):
    options = heads if case.name == "td3" else {}
    loss, data = spread(make_loss(case, double=True, **options)), make_data(dtype=torch.float64)
    calls: list[int] = []
    plain = QValueNetwork.ensemble
    monkeypatch.setattr(QValueNetwork, "ensemble", lambda *args, **kw: (calls.append(1), plain(*args, **kw))[1])
    outputs = [seeded(loss, data.clone())]
    assert calls
    calls.clear()
    for module in ("critics", "td3"):
        monkeypatch.setattr(f"torchrl_edp.objectives.{module}.is_plain", lambda *_: False)
    outputs.append(seeded(loss, data.clone()))
    assert not calls
    for name in outputs[0].keys():
        torch.testing.assert_close(*[output[name] for output in outputs], rtol=1e-12, atol=1e-12)
    found, expected = (gradients(loss, sum(output[name] for name in case.terms)) for output in outputs)
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None)
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_other_critics_are_called_as_they_are(case):
    """A key of another name, a hook, a subclass."""

    class Doubled(QValueNetwork):
        def forward(self, observation, action):
            return 2 * super().forward(observation, action)

    hooked = operator(QValueNetwork(OBS, A, hidden_sizes=(8,)))
    hooked.register_forward_hook(lambda module, inputs, output: output)
    for critic in (operator(Doubled(OBS, A, hidden_sizes=(8,))), hooked):
        loss = make_loss(case, 1, networks={**make_networks(), "qvalue_network": [critic]})
        assert not is_plain(loss.qvalue_network, "state_action_value")
    assert is_plain(operator(QValueNetwork(OBS, A)), "state_action_value")
    assert not is_plain(operator(QValueNetwork(OBS, A)), "other")
    assert not is_plain(operator(Doubled(OBS, A)), "state_action_value")
    with torch.autocast("cpu"):
        assert not is_plain(operator(QValueNetwork(OBS, A)), "state_action_value")


def test_critics_that_take_keyword_arguments(case):
    keys = {"action": "action", "observation": "observation"}  # in another order than the network's

    def make(in_keys):
        torch.manual_seed(0)
        networks = make_networks(2)
        critics = [QValueNetwork(OBS, A, hidden_sizes=(8,)) for _ in range(2)]
        given = [TensorDictModule(critic, in_keys=in_keys, out_keys=["state_action_value"]) for critic in critics]
        return make_loss(case, networks={**networks, "qvalue_network": given})

    data = make_data()
    by_name, by_position = (seeded(make(in_keys), data.clone()) for in_keys in (keys, ["observation", "action"]))
    torch.testing.assert_close(by_name["loss_qvalue"], by_position["loss_qvalue"])


def test_a_layer_used_twice(case, monkeypatch):
    def critic():
        network = QValueNetwork(OBS, A, hidden_sizes=(8, 8, 8))
        network.net[4] = network.net[2]
        return operator(network)

    loss = make_loss(case, networks={**make_networks(2), "qvalue_network": [critic(), critic()]})
    found = seeded(loss, make_data())
    for module in ("critics", "td3"):
        monkeypatch.setattr(f"torchrl_edp.objectives.{module}.is_plain", lambda *_: False)
    assert set(found.keys()) == set(seeded(loss, make_data()).keys())


def test_an_empty_batch_is_no_error(case):
    assert seeded(make_loss(case), make_data((0,)))["loss_qvalue"].isnan()
