"""Thin matrix products of a compiled update."""

from types import SimpleNamespace

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from training_helpers import compile_and_count, make_state

from torchrl_edp.training.thin import InlineThinProducts

aten = torch.ops.aten


def products(graph: torch.fx.Graph) -> int:
    return len(graph.find_nodes(op="call_function", target=aten.mm.default))


def passed(function, *inputs):
    """``function`` after the pass, and its products before and after."""
    module = make_fx(function, select_decomp_table(), tracing_mode="fake")(*inputs)
    before = products(module.graph)
    InlineThinProducts()(module.graph)
    module.graph.lint()
    module.recompile()
    return module, (before, products(module.graph))


def factors(height: int, terms: int, width: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((height, terms), (width, terms)))


@pytest.mark.parametrize("shape", [(20, 6, 30), (20, 16, 30), (20, 1, 30), (20, 30, 16), (20, 30, 1), (1, 30, 20)])
@pytest.mark.parametrize("strides", ["rows", "columns"])
def test_a_thin_product_is_written_out(shape, strides):
    a, weight = factors(*shape)
    if strides == "columns":
        a = a.t().contiguous().t()
    module, counts = passed(lambda a, w: a @ w.t(), a, weight)
    assert counts == (1, 0)
    torch.testing.assert_close(module(a, weight), torch.einsum("it,jt->ij", a, weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((20, 17, 30), torch.float32), ((20, 30, 17), torch.float32), ((2, 30, 20), torch.float32)]
    + [((20, 6, 30), torch.bfloat16), ((20, 6, 30), torch.float16)],
)
def test_other_products_are_left_alone(shape, dtype):
    assert passed(lambda a, w: a @ w.t(), *factors(*shape, dtype))[1] == (1, 1)


def test_few_columns_that_are_rows_in_memory_are_left_alone():
    a, weight = factors(20, 30, 6)
    assert passed(lambda a, w: a @ w, a, weight.t().contiguous())[1] == (1, 1)


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_an_update_has_the_pass_where_onednn_computes_products(precision, monkeypatch):
    passes = []

    def record(function, *, options, **_):
        passes.extend(options["post_grad_custom_post_pass"])
        return function

    monkeypatch.setattr(torch, "compile", record)
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", SimpleNamespace(fp32_precision=precision))
    make_state(compile=True)
    assert any(isinstance(own, InlineThinProducts) for own in passes) == (precision == "bf16")


@pytest.mark.slow
def test_compiled_layers_and_their_gradients_are_the_same():
    """A first and a last layer as of a policy, and a critic's last."""
    torch.manual_seed(0)
    action = torch.randn(24, 6)
    weights = [torch.nn.Parameter(torch.randn(*shape) / 4) for shape in ((40, 25), (6, 40), (1, 40))]

    def layers(action, first, last, value):
        for _ in range(2):
            action = torch.tanh(torch.tanh(action @ first[:, :6].t()) @ last.t())
        loss = (torch.tanh(action @ first[:, 6:12].t()) @ value.t()).square().mean()
        return loss.detach(), torch.autograd.grad(loss, (first, last, value))

    (loss, gradients), counts = compile_and_count(layers, products, action, *weights, onednn=True)
    exact, exact_gradients = layers(action.double(), *(weight.double() for weight in weights))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)
    before, after = counts
    assert (before, after) == (16, 7)
