"""The layout of stacked weights' gradients in a compiled update."""

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from training_helpers import compile_and_count

from torchrl_edp.training.layout import TransposeFactors

aten = torch.ops.aten


def transposed_products(graph: torch.fx.Graph) -> int:
    """How many batched products are read by nothing but their transpose."""
    products = graph.find_nodes(op="call_function", target=aten.bmm.default)
    readers = [list(product.users) for product in products]
    return sum(len(users) == 1 and users[0].target is aten.permute.default for users in readers)


def after_the_pass(function, *inputs):
    """``function`` after the pass, and its transposed products before and after."""
    module = make_fx(function, select_decomp_table(), tracing_mode="fake")(*inputs)
    before = transposed_products(module.graph)
    TransposeFactors()(module.graph)
    module.graph.lint()
    module.recompile()
    return module, (before, transposed_products(module.graph))


def weight_gradient(x, weights, biases):
    """The gradient of a layer of three stacked critics, which all see the same input."""
    y = torch.vmap(torch.nn.functional.linear, (None, 0, 0))(x, weights, biases)
    return torch.autograd.grad(y.square().sum(), weights)[0]


@pytest.mark.parametrize(
    ("function", "counts"),
    [
        (lambda a, b: torch.bmm(a, b).mT, (1, 0)),
        (lambda a, b: torch.bmm(a, b.mT.contiguous().mT).mT.exp(), (1, 0)),
        (lambda a, b: torch.bmm(a, b).permute(2, 0, 1), (1, 1)),
        (lambda a, b: (y := torch.bmm(a, b)).mT.sum() + y, (0, 0)),
        (lambda a, b: torch.bmm(a, b) + 1, (0, 0)),
    ],
    ids=["transposed", "a factor, too", "another permutation", "read both ways", "as it is"],
)
def test_only_a_transposed_product_changes_and_its_values_never(function, counts):
    a, b = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64)
    module, found = after_the_pass(function, a, b)
    assert found == counts
    torch.testing.assert_close(module(a, b), function(a, b), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_compiled_update_gets_gradients_of_stacked_weights_in_their_layout():
    x, weights, biases = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 4), (3, 2, 4), (3, 2)))
    gradient, counts = compile_and_count(weight_gradient, transposed_products, x, weights.requires_grad_(), biases)
    assert counts == [1, 0]
    expected = 2 * torch.stack([(x @ w.T + b).T @ x for w, b in zip(weights, biases, strict=True)])
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
