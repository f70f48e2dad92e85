"""Calling modules with other parameters."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_edp.modules.parameters import parameters_in


class Tied(nn.Module):
    """One layer under two names, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.second(self.first(x).tanh()))


class Recurrent(nn.Module):
    """A module that keeps a list of its parameters, beside one that does not."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0])


@pytest.mark.parametrize("kind", [Tied, Recurrent])
def test_a_module_calculates_with_what_it_is_lent_and_gets_its_own_back(kind):
    module, other, x = kind(), kind(), torch.randn(5, 3)
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    before, expected = module.eval()(x), other.eval()(x)
    with parameters_in(module, TensorDict.from_module(other)):
        lent = module(x)
        gradients = torch.autograd.grad(lent.sum(), list(other.parameters()))
    torch.testing.assert_close(lent, expected, rtol=0, atol=0)
    for found, true in zip(gradients, torch.autograd.grad(expected.sum(), list(other.parameters())), strict=True):
        torch.testing.assert_close(found, true)
    after = dict(module.named_parameters()) | dict(module.named_buffers())
    assert list(after) == list(own) and all(after[name] is own[name] for name in own)
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)


def test_they_are_put_back_after_an_error_and_one_inside_the_other():
    module = nn.Sequential(nn.Linear(3, 2))
    own = TensorDict.from_module(module).clone()
    ones, twos = (own.data.apply(lambda value, fill=fill: torch.full_like(value, fill)) for fill in (1.0, 2.0))
    with pytest.raises(RuntimeError, match="shapes"), parameters_in(module, ones):
        with parameters_in(module, twos):
            assert module(torch.ones(1, 3)).tolist() == [[8.0, 8.0]]
        assert module(torch.ones(1, 3)).tolist() == [[4.0, 4.0]]
        module(torch.ones(1, 7))
    assert (TensorDict.from_module(module) == own).all()


def test_only_what_is_given_changes_and_a_plain_tensor_may_be_it():
    layer = nn.Linear(3, 2)
    with parameters_in(layer, TensorDict({"bias": torch.ones(2)})):
        expected = torch.nn.functional.linear(torch.ones(1, 3), layer.weight, torch.ones(2))
        torch.testing.assert_close(layer(torch.ones(1, 3)), expected)
    assert isinstance(layer.bias, nn.Parameter)


def test_compiled_and_mapped_they_are_lent_too():
    layer = nn.Linear(3, 2)
    stacked = TensorDict.from_modules(layer, nn.Linear(3, 2), as_module=True).data
    x = torch.randn(4, 3)

    def call(params):
        with parameters_in(layer, params):
            return layer(x)

    expected = torch.stack([nn.functional.linear(x, p["weight"], p["bias"]) for p in stacked.unbind(0)])
    torch.testing.assert_close(torch.vmap(call)(stacked), expected)
    graph = torch.compile(call, fullgraph=True, backend="eager")
    torch.testing.assert_close(graph(stacked[1]), expected[1])
