"""What the compiled update does in its own way: Adam's step and the sums after matrix products."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torchrl_edp.training.adam import NetworkOptimizer
from torchrl_edp.training.bias import AddBiasLater

aten = torch.ops.aten


@pytest.mark.parametrize("clip_grad", [None, 0.5])
@pytest.mark.parametrize("compiled", [False, True], ids=["fused", "traced"])
def test_a_step_is_that_of_torch_s_adam_after_clipping(monkeypatch, compiled, clip_grad):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (4,))]
    expected = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    adam = torch.optim.Adam(expected, lr=0.1)
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = NetworkOptimizer(parameters, lr=0.1, clip_grad=clip_grad)
    for size in (0.01, 3.0, 1.0, 0.2):  # below the clip and above
        gradients = [size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in start]
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient.clone()
        if clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(expected, clip_grad)
        adam.step()
        bad = [gradient * float("nan") for gradient in gradients]
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: compiled)
            optimizer.step(gradients, optimizer.norm(gradients), torch.tensor(True))
            optimizer.step(bad, optimizer.norm(bad), torch.tensor(False))  # changes nothing
    kept = zip(expected, parameters, optimizer.exp_avgs, optimizer.exp_avg_sqs, optimizer.steps, strict=True)
    for reference, parameter, mean, square, step in kept:
        state = adam.state[reference]
        torch.testing.assert_close(parameter, reference, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mean, state["exp_avg"], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(square, state["exp_avg_sq"], rtol=1e-12, atol=1e-14)
        assert step == state["step"] == 4


def test_every_seed_has_its_own_norm():
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2))]  # the second a scalar's
    gradients = [torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 6.0]]), torch.tensor([4.0, 8.0])]
    optimizer = NetworkOptimizer(parameters, lr=0.1, clip_grad=5.0, seed_dims=1)
    torch.testing.assert_close(optimizer.norm(gradients), torch.tensor([5.0, 10.0]))
    optimizer.step(gradients, optimizer.norm(gradients))
    torch.testing.assert_close(optimizer.exp_avgs[0], torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.0, 0.3]]))


def test_a_gradient_that_is_not_finite_is_no_small_one():
    """Who asks for the step all the same gets no part of it unclipped."""
    parameter, gradient = torch.nn.Parameter(torch.zeros(3)), torch.tensor([1.0, torch.nan, 1.0])
    optimizer = NetworkOptimizer([parameter], lr=0.1, clip_grad=1.0)
    optimizer.step([gradient], optimizer.norm([gradient]))
    assert parameter.isnan().all()


def test_biases_are_added_after_the_product():
    layer = torch.nn.Linear(3, 2, dtype=torch.float64)
    inputs = torch.randn(5, 3, dtype=torch.float64)
    module = make_fx(lambda x: layer(x).tanh())(inputs)
    assert module.graph.find_nodes(op="call_function", target=aten.addmm.default)
    AddBiasLater()(module.graph)
    module.recompile()
    assert not module.graph.find_nodes(op="call_function", target=aten.addmm.default)
    torch.testing.assert_close(module(inputs), layer(inputs).tanh(), rtol=1e-12, atol=1e-12)


def test_products_with_factors_are_left_alone():
    inputs, bias = torch.randn(5, 3), torch.randn(5)
    module = make_fx(lambda x: torch.addmm(bias, x, x.t(), beta=2.0))(inputs)
    AddBiasLater()(module.graph)
    assert module.graph.find_nodes(op="call_function", target=aten.addmm.default)
