"""The exponential inside Mish of a compiled update."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torchrl_edp.modules.networks import fast_mish
from torchrl_edp.training.exponential import InlineExp, bounded_exp

aten = torch.ops.aten


def exps(module: torch.fx.GraphModule) -> int:
    return len(module.graph.find_nodes(op="call_function", target=aten.exp.default))


def inlined(function, x):
    """``function`` after the pass, and how often ``exp`` was in it before and after."""
    module = make_fx(function, tracing_mode="fake")(x)
    before = exps(module)
    InlineExp()(module.graph)
    module.recompile()
    return module, (before, exps(module))


def test_the_polynomial_is_the_exponential():
    x = torch.cat([torch.linspace(-80, 80, 100_001), torch.tensor([0.0, 0.5, -0.5]) * torch.log(torch.tensor(2.0))])
    error = (bounded_exp(x).double() / x.double().exp() - 1).abs()
    assert (error <= 3e-7 + 1.2e-7 * x.abs()).all()
    assert error[x.abs() < 0.3466].max() <= 2.5e-7  # 2^f alone: a polynomial of degree 4 is wrong by 2.6e-6


def test_below_its_range_it_stays_at_the_lowest_and_nan_stays_nan():
    low = bounded_exp(torch.tensor([-80.0, -81.0, -1e30, -torch.inf]))
    assert (low == low[0]).all() and 0 < low[0] < 2e-35
    assert bounded_exp(torch.tensor(torch.nan)).isnan()


def test_mish_and_its_gradient_are_the_same_after_the_pass():
    def both(x):
        (gradient,) = torch.autograd.grad(fast_mish(x).sum(), x)
        return fast_mish(x), gradient

    x = torch.linspace(-100, 30, 4001, requires_grad=True)
    module, counts = inlined(both, x)
    assert counts[0] > 0 and counts[1] == 0
    exact = torch.nn.functional.mish(wide := x.detach().double().requires_grad_())
    (slope,) = torch.autograd.grad(exact.sum(), wide)
    for got, expected in zip(module(x), (exact, slope), strict=True):
        torch.testing.assert_close(got.double()[x < 3], expected.detach()[x < 3], rtol=5e-7, atol=5e-7)
        # Autograd's form of the slope cancels where Mish has become x, with and without the pass.
        torch.testing.assert_close(got.double(), expected.detach(), rtol=5e-7, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda x: x.exp(), torch.float32),
        (lambda x: x.clamp(max=81).exp(), torch.float32),
        (lambda x: x.clamp(min=-3).exp(), torch.float32),
        (lambda x: x.clamp(max=20).exp(), torch.float64),
    ],
    ids=["unbounded", "too large", "below only", "double precision"],
)
def test_other_exponentials_are_left_alone(function, dtype):
    _, counts = inlined(function, torch.randn(5, dtype=dtype))
    assert counts == (1, 1)


@pytest.mark.parametrize("function", [lambda x: x.clamp(-3, 80).exp(), lambda x: x.clamp_max(20).exp()])
def test_every_clamp_from_above_will_do(function):
    module, counts = inlined(function, x := torch.randn(50) * 9)
    assert counts == (1, 0)
    torch.testing.assert_close(module(x), function(x), rtol=3e-6, atol=0)
