"""The exponential inside Mish of a compiled update."""

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from training_helpers import compile_and_count

from torchrl_edp.modules.networks import fast_mish
from torchrl_edp.training.exponential import InlineExp, bounded_exp

aten = torch.ops.aten


def exps(graph: torch.fx.Graph) -> int:
    return len(graph.find_nodes(op="call_function", target=aten.exp.default))


def mish_and_slope(x):
    return fast_mish(x), torch.autograd.grad(fast_mish(x).sum(), x)[0]


def inlined(function, x):
    """``function`` after the pass, and how often ``exp`` was in it before and after."""
    module = make_fx(function, select_decomp_table(), tracing_mode="fake")(x)
    before = exps(module.graph)
    InlineExp()(module.graph)
    module.recompile()
    return module, (before, exps(module.graph))


def test_the_polynomial_is_the_exponential():
    x = torch.cat([torch.linspace(-87, 88, 100_001), torch.tensor([0.0, 0.5, -0.5]) * torch.log(torch.tensor(2.0))])
    error = (bounded_exp(x).double() / x.double().exp() - 1).abs()
    assert (error <= 3e-7 + 1.2e-7 * x.abs()).all()
    assert error[x.abs() < 0.3466].max() <= 2.5e-7  # 2^f alone: a polynomial of degree 4 is wrong by 2.6e-6
    assert bounded_exp(torch.tensor(torch.nan)).isnan()


def test_mish_is_the_same_after_the_pass():
    x = torch.linspace(-100, 30, 4001)
    module, counts = inlined(fast_mish, x)
    assert counts == (1, 0)
    exact = torch.nn.functional.mish(x.double())
    torch.testing.assert_close(module(x).double(), exact, rtol=5e-7, atol=5e-7)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda x: x.exp(), torch.float32),
        (lambda x: x.clamp(-87, 88.1).exp(), torch.float32),
        (lambda x: x.clamp(-87.1, 20).exp(), torch.float32),
        (lambda x: x.clamp(max=20).exp(), torch.float32),
        (lambda x: x.clamp(min=-3).exp(), torch.float32),
        (lambda x: x.clamp(-3, 3).exp(), torch.float64),
        (lambda x: x.clamp(-3, 3).exp(), torch.float16),
        (lambda x: (e := x.clamp(-3, 3).exp()) * (e + 2) * e, torch.float32),
    ],
    ids=["unbounded", "too large", "too small", "above only", "below only", "double", "half precision", "used again"],
)
def test_other_exponentials_are_left_alone(function, dtype):
    _, counts = inlined(function, torch.randn(5, dtype=dtype))
    assert counts == (1, 1)


def test_any_exponential_of_a_clamp_to_its_range_will_do():
    def function(x):
        return x.clamp(-87, 88).exp()

    module, counts = inlined(function, x := torch.randn(500) * 60)
    assert counts == (1, 0)
    torch.testing.assert_close(module(x), function(x), rtol=1.1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "left"), [(fast_mish, 0), (mish_and_slope, 1)])
def test_a_compiled_update_keeps_the_exponential_that_gradients_read(function, left):
    x = torch.linspace(-100, 30, 4001, requires_grad=function is mish_and_slope)
    result, counts = compile_and_count(function, exps, x)
    torch.testing.assert_close(result, function(x), rtol=1e-5, atol=1e-5)
    assert counts == [1, left]
