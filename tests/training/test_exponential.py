"""The exponential inside Mish of a compiled update."""

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from training_helpers import compile_and_count

from torchrl_edp.modules.mish import fast_mish
from torchrl_edp.training.exponential import InlineExp, saturating_exp
from torchrl_edp.training.rewrite import write

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
    x = torch.cat([torch.linspace(-86.9, 20, 100_001), torch.tensor([0.0, 0.5, -0.5]) * torch.log(torch.tensor(2.0))])
    error = (saturating_exp(x).double() / x.double().exp() - 1).abs()
    assert (error <= 3e-7 + 1.2e-7 * x.abs()).all()
    assert error[x.abs() < 0.3466].max() <= 2.5e-7  # 2^f alone: a polynomial of degree 4 is wrong by 2.6e-6


def test_beyond_its_range_the_exponential_saturates():
    x = torch.tensor([21, 50, 1e6, 1e30])
    below, above = saturating_exp(-10 * x), saturating_exp(x)
    assert (below >= 2.0**-126).all() and (below <= 2.0**-124).all()
    assert (above == torch.tensor(20.0).exp()).all()
    near = torch.linspace(19.5, 21, 10_001)
    torch.testing.assert_close(saturating_exp(near), near.clamp(max=20).exp(), rtol=3e-6, atol=0)


@pytest.mark.parametrize(
    "function",
    [fast_mish, lambda x: x.clamp(max=20).exp(), lambda x: (e := x.clamp(max=20).exp()) * (e + 2) * (e + 1)],
    ids=["Mish", "alone", "read three times"],
)
def test_an_exponential_up_to_20_is_the_same_after_the_pass(function):
    x = torch.cat([torch.linspace(-86, 30, 4001), torch.tensor([1e5, 1e30])])
    module, counts = inlined(function, x)
    assert counts == (1, 0)
    torch.testing.assert_close(module(x).double(), function(x.double()), rtol=4e-5, atol=5e-7)


def test_mish_is_the_same_after_the_pass():
    x = torch.cat([torch.linspace(-100, 30, 4001), torch.tensor([-1e30, -1e5, 1e5, 1e30])])
    module, _ = inlined(fast_mish, x)
    bounds = module.graph.find_nodes(op="call_function", target=aten.clamp_max.default)
    assert [node.meta["val"].dtype for node in bounds] == [torch.int32]  # no look for NaNs is left
    exact = torch.nn.functional.mish(x.double())
    torch.testing.assert_close(module(x).double(), exact, rtol=5e-7, atol=5e-7)
    module, _ = inlined(fast_mish, x := torch.tensor([torch.nan, torch.inf, -torch.inf]))
    assert not module(x).isfinite().any()


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda x: (e := x.exp()) * (e + 2), torch.float32),
        (lambda x: (e := x.clamp(max=19).exp()) * (e + 2), torch.float32),
        (lambda x: (e := x.clamp(min=20).exp()) * (e + 2), torch.float32),
        (lambda x: (e := x.clamp(max=20).exp()) * (e + 2), torch.float64),
        (lambda x: (e := x.clamp(max=20).exp()) * (e + 2), torch.float16),
    ],
    ids=["unbounded", "other bound", "below", "double", "half precision"],
)
def test_other_exponentials_are_left_alone(function, dtype):
    _, counts = inlined(function, torch.randn(5, dtype=dtype))
    assert counts == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "kept"), [(fast_mish, 0), (mish_and_slope, 1)])
def test_a_compiled_update_computes_the_exponential_once(function, kept):
    x = torch.linspace(-100, 30, 4001, requires_grad=function is mish_and_slope)

    def counted(graph):
        return exps(graph), len(graph.find_nodes(op="call_function", target=write))

    result, counts = compile_and_count(function, counted, x)
    torch.testing.assert_close(result, function(x), rtol=1e-5, atol=1e-5)
    assert counts == [(1, 0), (0, kept)]
