"""Networks as one node of autograd give what their layers give one by one."""

from __future__ import annotations

import contextlib
import copy
import threading

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from torchrl_edp.modules import Mish, NoisePredictionMLP, QValueNetwork, ValueNetwork, fused_mlp, fused_networks

SIZES = [(32, 32), (5, 40, 17), (16,)]


@pytest.fixture
def calls(monkeypatch):
    """The calls of the node, by the shape of its input."""
    seen: list[tuple[int, ...]] = []
    original = fused_mlp.apply

    def counted(features, params):
        seen.append(tuple(features.shape))
        return original(features, params)

    monkeypatch.setattr(fused_mlp, "apply", counted)
    monkeypatch.setattr("torchrl_edp.modules.networks.apply", counted)
    return seen


def gradients(network, *inputs):
    """The network's values, and gradients of a function of them with respect to inputs and parameters."""
    inputs = [value.clone().requires_grad_(value.is_floating_point()) for value in inputs]
    values = network(*inputs)
    wanted = [*inputs, *network.parameters()]
    weights = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).reshape(values.shape)
    found = torch.autograd.grad((values * weights).sum(), wanted, allow_unused=True)
    return [values.detach(), *[value for value in found if value is not None]]


def check(network, *inputs):
    """Values and gradients of the node: near those of the layers in float64, as near as those in float32."""
    exact = gradients(copy.deepcopy(network).double(), *[value.double() for value in inputs])
    layers = gradients(network, *inputs)
    with fused_networks():
        found = gradients(network, *inputs)
    assert len(found) == len(exact)
    for value, layer, true in zip(found, layers, exact, strict=True):
        assert value.shape == true.shape and value.dtype == torch.float32
        assert (value - true).abs().max() <= 2e-6 * true.abs().max().clamp_min(1) + 2 * (layer - true).abs().max()
    return found


@pytest.mark.parametrize("shape", [(9,), (2, 3), (300,), (), (1,)])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients(sizes, shape, calls):
    observation, action = torch.randn(*shape, 5), torch.randn(*shape, 3)
    check(ValueNetwork(5, hidden_sizes=sizes), observation)
    check(QValueNetwork(5, 3, hidden_sizes=sizes, activation=nn.Mish), observation, action)
    check(NoisePredictionMLP(5, 3, hidden_sizes=sizes), action, torch.full(shape, 7.0), observation)
    assert len(calls) == 3


def test_by_several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        check(ValueNetwork(5, hidden_sizes=(64, 80)), torch.randn(301, 5))
    finally:
        torch.set_num_threads(before)


def test_large_and_small_inputs_and_those_that_are_not_numbers():
    network = ValueNetwork(1, hidden_sizes=(16,))
    with torch.no_grad():
        [network.net[i].weight.fill_(1) for i in (0, 2)], network.net[0].bias.zero_()
    inputs = torch.cat([torch.linspace(-40, 40, 161), torch.tensor([-1e3, -88.0, 1e3, 3e4, 1e20])]).unsqueeze(-1)
    _, slopes, *_ = check(network, inputs)
    assert slopes.abs().max() > 16  # 16 units
    with fused_networks():
        assert network(torch.tensor([[torch.nan]])).isnan().all()
        assert (network(torch.tensor([[torch.inf]])) == torch.inf).all()


def test_without_gradients_and_for_some_parameters(calls):
    network = QValueNetwork(5, 3, hidden_sizes=(16, 16))
    observation, action = torch.randn(6, 5), torch.randn(6, 3, requires_grad=True)
    with fused_networks(), torch.no_grad():
        values = network(observation, action)
    torch.testing.assert_close(values, network(observation, action).detach())
    network.requires_grad_(False)
    network.net[2].bias.requires_grad_(True)
    wanted = [action, network.net[2].bias]
    with fused_networks():
        found = torch.autograd.grad(network(observation, action).sum(), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(network(observation, action).sum(), wanted))
    assert len(calls) == 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(9,), (2, 4)])
@pytest.mark.parametrize("activation", [Mish, nn.ReLU])
def test_an_ensemble_is_what_vmap_gives(activation, shape, fused, calls):
    network = QValueNetwork(5, 3, hidden_sizes=(16, 12), activation=activation)
    copies = [copy.deepcopy(network) for _ in range(3)]
    for module in copies:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    params = TensorDict.from_modules(*copies, as_module=True)
    observation, action = torch.randn(*shape, 5), torch.randn(*shape, 3, requires_grad=True)
    tensors = [action, *params.values(True, True)]

    def by_vmap(own):
        with own.to_module(network):
            return network(observation, action)

    expected = torch.vmap(by_vmap)(params)
    with fused_networks() if fused else torch.enable_grad():
        found = network.ensemble(params, observation, action)
        one = network.ensemble(params, observation, action, frozen=slice(1, 2))
        drawn = network.ensemble(params, observation, action, frozen=torch.tensor([1]))
    assert network.is_plain() and len(calls) == (3 if fused and activation is Mish else 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(one, drawn)
    torch.testing.assert_close(one, expected[1:2], rtol=1e-5, atol=1e-5)
    pairs = zip(*[torch.autograd.grad(value.square().sum(), tensors) for value in (found, expected)], strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    of_one = torch.autograd.grad(one.sum(), tensors, allow_unused=True)
    assert of_one[0] is not None and not any(gradient is not None for gradient in of_one[1:])


def test_seeds_by_vmap(calls):
    """Of networks, of ensembles, and of networks with one input for all."""
    network = QValueNetwork(5, 3, hidden_sizes=(16, 12))
    copies = [[copy.deepcopy(network) for _ in range(2)] for _ in range(4)]
    for parameter in (parameter for row in copies for module in row for parameter in module.parameters()):
        nn.init.normal_(parameter, std=0.3)
    params = torch.stack([TensorDict.from_modules(*row) for row in copies]).clone()
    params = params.apply(lambda value: value.detach().requires_grad_())
    observation, action = torch.randn(4, 6, 5), torch.randn(4, 6, 3, requires_grad=True)
    tensors = [action, *params.values(True, True)]

    def one(own, observation, action):
        with own[0].to_module(network):
            single = network(observation, action)
        return single, network.ensemble(own, observation, action)

    for in_dims, inputs in (((0, 0, 0), (observation, action)), ((0, None, None), (observation[0], action[0]))):
        expected = torch.vmap(one, in_dims)(params, *inputs)
        calls.clear()
        with fused_networks():
            found = torch.vmap(one, in_dims)(params, *inputs)
        assert len(calls) == 2
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
            given = [torch.autograd.grad(value.square().sum(), tensors, retain_graph=True) for value in (own, other)]
            for pair in zip(*given, strict=True):
                torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


class Doubled(nn.Linear):
    """A layer that does more than its weight says."""

    def forward(self, x):
        return 2 * super().forward(x)


def change(network, name):
    """Something because of which the node cannot take the place of ``network``."""
    if name == "hook":
        network.net[2].register_forward_hook(lambda *arguments: 2 * arguments[-1])
    elif name == "hook of the whole":
        network.net.register_forward_pre_hook(lambda *_: None)
    elif name == "layer":
        network.net[2].__class__ = Doubled
    elif name == "bias":
        network.net[2].bias = None
    elif name == "forward":
        network.net[0].forward = lambda x: x.new_zeros(*x.shape[:-1], 16)
    elif name == "backward hook":
        network.net[2].register_full_backward_hook(lambda *_: None)
    elif name == "double":
        network.double()


@pytest.mark.parametrize("name", ["hook", "hook of the whole", "backward hook", "layer", "bias", "forward", "double"])
def test_what_changes_a_network_is_done(name, calls):
    network = QValueNetwork(5, 3, hidden_sizes=(16, 16))
    dtype = torch.float64 if name == "double" else torch.float32
    observation, action = torch.randn(4, 5, dtype=dtype), torch.randn(4, 3, dtype=dtype)
    change(network, name)
    with fused_networks():
        value = network(observation, action)
        assert network.is_plain() == (name == "double")
    assert not calls
    assert torch.equal(value, network(observation, action))


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"activation": nn.ReLU}, {"hidden_sizes": (16,)}])
def test_other_networks_are_called_layer_by_layer(options, calls):
    network = ValueNetwork(5, **{"hidden_sizes": (16, 16)} | options)
    with fused_networks():
        network(torch.zeros(4, 5))
        if "hidden_sizes" in options:
            assert len(calls) == 1
            with torch.autocast("cpu"):
                network(torch.zeros(4, 5))
            network(torch.zeros(0, 5))
    network(torch.zeros(4, 5))
    assert len(calls) == ("hidden_sizes" in options)


def test_its_gradient_is_not_differentiated_again():
    network, x = ValueNetwork(5, hidden_sizes=(16,)), torch.randn(4, 5, requires_grad=True)
    with fused_networks():
        value = network(x).sum()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(value, x, create_graph=True)


@pytest.mark.parametrize("inside", [(True, True), (True, False), (False, True)])
def test_under_a_checkpoint(inside):
    """Wherever the gradient is taken."""
    network, x = ValueNetwork(5, hidden_sizes=(16, 16)), torch.randn(4, 5, requires_grad=True)
    contexts = [fused_networks() if own else contextlib.nullcontext() for own in inside]
    with contexts[0]:
        value = checkpoint(network, x, use_reentrant=False, context_fn=fused_mlp.checkpoint_contexts).sum()
    with contexts[1]:
        (found,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(found, torch.autograd.grad(network(x).sum(), x)[0], rtol=1e-5, atol=1e-6)


class Nothing(torch.autograd.Function):
    """A loss that gives no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        return None


def test_results_are_contiguous_and_may_get_no_gradient():
    network = NoisePredictionMLP(5, 3, hidden_sizes=(16,))
    with fused_networks():
        value = network(torch.randn(4, 3), torch.zeros(4), torch.randn(4, 5))
    assert value.is_contiguous()
    Nothing.apply(value).backward()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_other_ways_to_differentiate():
    network, x = ValueNetwork(5, hidden_sizes=(16, 16)), torch.randn(4, 5, requires_grad=True)
    directions = torch.eye(4).reshape(4, 4, 1)
    wanted = [x, *network.parameters()]
    functional = torch.func.grad(lambda value: network(value).sum())

    def differentiate():
        several = torch.autograd.grad(network(x), wanted, directions, is_grads_batched=True)
        return [*several, functional(x.detach()), torch.func.vmap(functional)(x.detach())]

    expected = differentiate()
    with fused_networks():
        found = differentiate()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_layers_are_called(calls):
    network, x = ValueNetwork(5, hidden_sizes=(16,)), torch.randn(4, 5)
    with fused_networks():
        with pytest.warns(UserWarning, match="without C\\+\\+ kernels"):
            value = network(x)
        assert torch.equal(network(x), value) and not calls


def test_what_has_no_memory_is_traced_layer_by_layer(calls):
    network, x = ValueNetwork(5, hidden_sizes=(16,)), torch.randn(4, 5)
    with fused_networks(), torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert network(torch.empty(4, 5)).shape == (4, 1)
        graph = make_fx(network)(x)
        with pytest.raises(RuntimeError):
            ValueNetwork(5, hidden_sizes=(16,)).to("meta")(x)
    assert not calls
    torch.testing.assert_close(graph(2 * x), network(2 * x))


def test_other_threads_and_later_calls_are_left_alone(calls):
    network, x = ValueNetwork(5, hidden_sizes=(16,)), torch.randn(4, 5)
    with fused_networks():
        with fused_networks():
            pass
        thread = threading.Thread(target=network, args=(x,))
        thread.start()
        thread.join()
        assert not calls
        network(x)
        assert len(calls) == 1
    network(x)
    assert len(calls) == 1
