from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from torchrl_edp.modules import Mish, NoisePredictionMLP, QValueNetwork, StepEmbedding, ValueNetwork

BATCHES = [(), (5,), (3, 5)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_and_precision(batch, layer_norm, dtype):
    options = {"hidden_sizes": (8, 12), "layer_norm": layer_norm}
    observation, action = torch.randn(*batch, 4).to(dtype), torch.randn(*batch, 2).to(dtype)
    step = torch.full(batch, 3.5)
    for network, inputs, size in [
        (NoisePredictionMLP(4, 2, **options), (action, step, observation), 2),
        (QValueNetwork(4, 2, **options), (observation, action), 1),
        (ValueNetwork(4, **options), (observation,), 1),
    ]:
        output = network.to(dtype)(*inputs)
        assert output.shape == (*batch, size) and output.dtype == dtype


@pytest.mark.parametrize("layer_norm", [False, True])
def test_layers(layer_norm):
    layers = [type(layer).__name__ for layer in ValueNetwork(4, hidden_sizes=(8, 12), layer_norm=layer_norm).net]
    hidden = ["Linear", *["LayerNorm"] * layer_norm, "Mish"]
    assert layers == [*hidden, *hidden, "Linear"]


def test_the_papers_networks():
    network = NoisePredictionMLP(11, 3)
    linear = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]
    assert linear == [(16, 32), (32, 16), (11 + 3 + 16, 256), (256, 256), (256, 256), (256, 3)]
    assert [m.in_features for m in QValueNetwork(11, 3).modules() if isinstance(m, nn.Linear)] == [14, 256, 256, 256]
    assert sum(isinstance(m, Mish) for m in network.modules()) == 4
    other = QValueNetwork(11, 3, hidden_sizes=(7,), activation=nn.ReLU)
    assert [type(m) for m in other.net] == [nn.Linear, nn.ReLU, nn.Linear]


def test_inputs_of_the_noise_network_are_in_the_references_order():
    """Noisy action, step embedding, observation: weights of the reference code fit without a permutation."""
    network = NoisePredictionMLP(4, 2, hidden_sizes=())
    action, step, observation = torch.randn(5, 2), torch.arange(5.0), torch.randn(5, 4)
    weight, bias = network.net[0].weight, network.net[0].bias
    parts = weight.split([2, 16, 4], 1)
    expected = action @ parts[0].T + network.embedding(step) @ parts[1].T + observation @ parts[2].T + bias
    torch.testing.assert_close(network(action, step, observation), expected)


@pytest.mark.parametrize("size", [4, 16])
def test_embedding_by_numpy(size):
    embedding, steps = StepEmbedding(size).double(), np.array([0.0, 0.25, 7.0, 999.0])
    rates = 10_000.0 ** (-np.arange(size // 2) / (size // 2 - 1))
    features = np.concatenate([np.cos(steps[:, None] * rates), np.sin(steps[:, None] * rates)], -1)
    seen = []
    embedding.net[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = embedding(torch.tensor(steps))
    np.testing.assert_allclose(seen[0], features, atol=2e-4)  # angles are float32: 999 is known to 6e-5
    w1, b1, w2, b2 = (p.detach().numpy() for p in embedding.parameters())
    x = features @ w1.T + b1
    expected = (x * np.tanh(np.log1p(np.exp(x)))) @ w2.T + b2
    np.testing.assert_allclose(output.detach(), expected, atol=2e-3)
    assert set(embedding.state_dict()) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}


@pytest.mark.parametrize("size", [2, 15, 0])
def test_embedding_refuses_sizes_without_frequencies(size):
    with pytest.raises(ValueError, match=f"even and at least 4, got {size}"):
        StepEmbedding(size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiling", [False, True])
def test_both_forms_of_mish(dtype, compiling, monkeypatch):
    """Where it compiles, Mish takes the form with one exponential: here run eagerly."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    values = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-1e3, -90.0, 1e3, 3e4])]).to(dtype)
    x, y = values.clone().requires_grad_(), values.clone().requires_grad_()
    ours, theirs = Mish()(x), nn.functional.mish(y)
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 0, "atol": 5e-6 if dtype == torch.float32 else 1e-13}
    torch.testing.assert_close(ours, theirs, **tolerance, msg=lambda text: f"value: {text}")
    ours.sum().backward(), theirs.sum().backward()
    torch.testing.assert_close(x.grad, y.grad, **tolerance, msg=lambda text: f"gradient: {text}")
    fast = ours.grad_fn.name() != "MishBackward0"
    assert fast == (compiling and dtype.itemsize >= 4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_mish_without_gradients(dtype, tolerance):
    """It works in place, on tensors of its own, and under vmap as the critics' ensembles do."""
    x = torch.linspace(-30, 30, 602, dtype=dtype).reshape(2, 301)
    before, expected = x.clone(), nn.functional.mish(x)
    with torch.no_grad():
        for found in (Mish()(x), torch.vmap(Mish())(x)):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(x, before)


def test_mish_is_one_operation_elsewhere(monkeypatch):
    """Where each operation is a launch."""
    monkeypatch.setattr(nn.functional, "mish", lambda x: "one operation")
    with torch.no_grad():
        assert Mish()(torch.ones(3, device="meta")) == "one operation"
        assert isinstance(Mish()(torch.ones(3)), torch.Tensor)


@pytest.mark.slow
def test_compiled_mish():
    compiled = torch.compile(Mish(), fullgraph=True)
    x = torch.linspace(-30, 30, 601, requires_grad=True)
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    torch.testing.assert_close(compiled(x), nn.functional.mish(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(nn.functional.mish(x).sum(), x)[0], rtol=1e-5, atol=5e-6)


class Wrapped(nn.Module):
    """A layer that shows its weight and does more than multiply by it, as adapters do."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, features):
        return 2 * self.layer(features)


def _double(module, inputs, output=None):
    return 2 * inputs[0] if output is None else 2 * output


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("change", ["layer", "network", "trunk", "before", "wrapper", "weight_norm", "none"])
def test_a_first_layer_that_does_more_than_multiply_is_called(change):
    network = NoisePredictionMLP(4, 2, hidden_sizes=(8,))
    first = network.net[0]
    hooked = {"layer": first, "network": network, "trunk": network.net}
    if change in hooked:
        hooked[change].register_forward_hook(_double)
    elif change == "before":
        first.register_forward_pre_hook(_double)
    elif change == "wrapper":
        network.net[0] = Wrapped(first)
    elif change == "weight_norm":
        nn.utils.weight_norm(first)
        first.weight_g.data *= 2
    action, observation = torch.randn(5, 2), torch.randn(5, 4)
    predict = network.condition(observation, [3.0])
    torch.testing.assert_close(predict(action, 3.0), network(action, torch.full((5,), 3.0), observation))
