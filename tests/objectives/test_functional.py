"""Every piece of the losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_edp import NoiseSchedule
from torchrl_edp.objectives.functional import (
    StepTable,
    advantage_weight,
    aggregate_qvalues,
    elbo_weights,
    expectile_loss,
    mean_of_each,
    step_weights,
)

E = math.e
close = torch.testing.assert_close


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("difference", "expectile", "value", "gradient"),
    [
        (2.0, 0.75, 3.0, 3.0),
        (-2.0, 0.75, 1.0, -1.0),
        (3.0, 0.5, 4.5, 3.0),
        (-0.5, 0.9, 0.025, -0.1),
        (0.0, 0.7, 0.0, 0.0),
    ],
)
def test_expectile_loss(difference, expectile, value, gradient):
    x = f64(difference).requires_grad_()
    loss = expectile_loss(x, expectile)
    close(loss, f64(value))
    close(torch.autograd.grad(loss.sum(), x)[0], f64(gradient))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_expectile_loss_keeps_the_precision_of_its_input(dtype):
    loss = expectile_loss(torch.tensor([1.0, -1.0], dtype=dtype), 0.7)
    close(loss, torch.tensor([0.7, 1 - 0.7], dtype=dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_the_expectile_is_where_the_loss_is_least():
    sample = f64(0.0, 1.0)  # 0.8 (1 - v) = 0.2 v
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    losses = expectile_loss(sample - grid[:, None], 0.8).sum(-1)
    close(grid[losses.argmin()], torch.tensor(0.8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("advantage", "temperature", "cap", "normalization", "weights"),
    [
        ((0.0, 1.0), 1.0, None, None, (1.0, E)),
        ((0.0, 1.0, -1.0), 2.0, None, None, (1.0, E**2, E**-2)),
        ((0.0, 1.0, 9.0), 1.0, 2.0, None, (1.0, 2.0, 2.0)),
        ((0.0, math.log(3)), 1.0, None, "mean", (0.5, 1.5)),
        ((0.0, math.log(3), 50.0), 1.0, 4.0, "mean", (3 / 8, 9 / 8, 12 / 8)),
        ((0.0, math.log(3)), 1.0, 2.0, "softmax", (0.25, 0.75)),
        ((0.0, math.log(3)), 2.0, None, "softmax", (0.1, 0.9)),
        ((0.0, 1e4), 3.0, 100.0, None, (1.0, 100.0)),
        ((0.0, 1e4), 3.0, None, "softmax", (0.0, 1.0)),
        ((0.0, 1e4), 3.0, None, "mean", (0.0, 2.0)),
        ((-1e4, -1e4 - math.log(3)), 1.0, 100.0, "mean", (1.5, 0.5)),
        ((-1e30, 1e30), 3.0, 100.0, "mean", (0.0, 2.0)),
        ((-1e30, -1e30), 1.0, 100.0, None, (0.0, 0.0)),
    ],
)
def test_advantage_weight(advantage, temperature, cap, normalization, weights):
    advantage = f64(*advantage).requires_grad_()
    found = advantage_weight(advantage, temperature, cap, normalization)
    assert not found.requires_grad
    close(found, f64(*weights), rtol=1e-9, atol=1e-12)
    close(advantage_weight(advantage.view(1, -1), temperature, cap, normalization), found.view(1, -1))


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 6.98e12), (torch.float64, 5.64e102)])
def test_without_a_cap_weights_end_at_the_cube_root_of_the_largest_number(dtype, largest):
    weight = advantage_weight(torch.tensor([0.0, 1e4], dtype=dtype), 1.0, None)
    close(weight, torch.tensor([1.0, largest], dtype=dtype), rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("normalization", "weights"),
    [(None, (1.0, 0.0, 3.0)), ("mean", (0.5, 0.0, 1.5)), ("softmax", (0.25, 0.0, 0.75))],
)
@pytest.mark.parametrize("outsider", [50.0, -50.0, math.nan, math.inf])
def test_masked_samples_do_not_change_the_weights_of_others(normalization, weights, outsider):
    advantage = f64(0.0, outsider, math.log(3))
    mask = torch.tensor([True, False, True])
    close(advantage_weight(advantage, 1.0, 100.0, normalization, mask), f64(*weights))
    close(advantage_weight(advantage, 1.0, 100.0, normalization, torch.zeros(3, dtype=torch.bool)), f64(0, 0, 0))


@pytest.mark.parametrize(
    ("normalization", "mask", "weights"),
    [
        (None, None, (0, 0, 1, 1)),
        ("mean", None, (0, 0, 2, 2)),
        ("softmax", None, (0, 0, 0.5, 0.5)),
        (None, (1, 1, 1, 0), (0, 0, 1, 0)),
        ("mean", (1, 1, 1, 0), (0, 0, 3, 0)),
        ("softmax", (1, 1, 1, 0), (0, 0, 1, 0)),
        ("mean", (1, 1, 0, 0), (0, 0, 0, 0)),
        ("softmax", (0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_binary_weights(normalization, mask, weights):
    advantage = f64(-1.0, 0.0, 1e-9, 1e9).requires_grad_()
    mask = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    found = advantage_weight(advantage, 5.0, 0.5, normalization, mask, "step")  # neither temperature nor cap counts
    assert not found.requires_grad
    close(found, f64(*weights))


@pytest.mark.parametrize(
    ("aggregation", "pessimism", "value", "gradient"),
    [
        ("min", 1.0, (1.0, -2.0), ((1, 0), (0, 1), (0, 0))),
        ("mean", 1.0, (2.0, 0.0), ((1 / 3, 1 / 3),) * 3),
        ("lcb", 0.0, (2.0, 0.0), ((1 / 3, 1 / 3),) * 3),
        # mean 2, deviation sqrt(2/3); slope 1/3 - p (q - mean) / (3 deviation)
        ("lcb", 0.5, (2 - 0.5 * (2 / 3) ** 0.5, -0.5 * (8 / 3) ** 0.5), None),
    ],
)
def test_aggregate_qvalues(aggregation, pessimism, value, gradient):
    qvalues = torch.tensor([[1.0, 2.0], [2.0, -2.0], [3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = aggregate_qvalues(qvalues, aggregation, pessimism)
    close(found, f64(*value))
    if gradient is None:
        deviation = f64((2 / 3) ** 0.5, (8 / 3) ** 0.5)
        expected = 1 / 3 - pessimism * (qvalues.detach() - f64(2.0, 0.0)) / (3 * deviation)
    else:
        expected = torch.tensor(gradient, dtype=torch.float64)
    close(torch.autograd.grad(found.sum(), qvalues)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("critics", [1, 2])
def test_the_lower_bound_of_critics_that_agree(critics, dtype):
    qvalues = torch.full((critics, 3), 1.5, dtype=dtype, requires_grad=True)
    found = aggregate_qvalues(qvalues, "lcb", 2.0)
    close(found, torch.full((3,), 1.5, dtype=dtype))
    (slope,) = torch.autograd.grad(found.sum(), qvalues)
    close(slope, torch.full_like(slope, 1 / critics))


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="qvalue_aggregation must be 'min', 'mean' or 'lcb', got 'max'"):
        aggregate_qvalues(torch.zeros(2, 1), "max")


@pytest.mark.parametrize("normalization", [None, "mean", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_advantages_stay_finite(normalization, dtype):
    advantage = torch.tensor([-1e4, 0.0, 20.0, 1e4], dtype=dtype)
    weight = advantage_weight(advantage, 3.0, 100.0, normalization)
    assert weight.dtype == dtype and weight.isfinite().all() and (weight >= 0).all() and weight.sum() > 0


@pytest.mark.parametrize(("kind", "num_steps"), [("linear", 50), ("cosine", 30), ("vp", 5)])
def test_elbo_weights(kind, num_steps):
    schedule = NoiseSchedule(num_steps, kind)
    b = schedule.betas.tolist()
    abar = [math.prod(1 - value for value in b[: k + 1]) for k in range(num_steps)]
    before = [abar[0], *abar[:-1]]  # 1 - abar^0 = 0 is replaced by 1 - abar^1
    eq12 = [b[k] / (2 * (1 - b[k]) * (1 - before[k])) for k in range(num_steps)]
    beta = [b[k] / (2 * (1 - b[k]) * (1 - abar[k])) for k in range(num_steps)]
    close(elbo_weights(schedule), f64(*eq12), rtol=1e-9, atol=0)
    close(elbo_weights(schedule, "beta"), f64(*beta), rtol=1e-9, atol=0)
    normalized = elbo_weights(schedule, "normalized")
    close(normalized, f64(*[value * num_steps / sum(beta) for value in beta]), rtol=1e-9, atol=0)
    close(normalized.mean(), torch.tensor(1.0, dtype=torch.float64))


def test_the_references_normalized_elbo():
    """Published range of the reference's weights at K = 1000: 51 at k = 1, 0.6 in the middle."""
    weights = elbo_weights(NoiseSchedule(1000), "normalized")
    close(weights[[0, 500]], f64(51, 0.6), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("uniform", lambda abar: 1.0),
        ("alpha_bar", lambda abar: abar),
        ("snr", lambda abar: min(abar / (1 - abar), 5) / 5),
    ],
)
@pytest.mark.parametrize("limits", [None, (0, 0), (3, 20), (0, 49)])
def test_step_weights(weighting, expected, limits):
    schedule = NoiseSchedule(50)
    abar = torch.cumprod(1 - schedule.betas, 0).tolist()
    first, last = limits or (0, 49)
    hand = [expected(value) if first <= step <= last else 0.0 for step, value in enumerate(abar)]
    close(step_weights(schedule, weighting, limits), f64(*hand), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("weighting", "limits", "message"),
    [
        ("sigma", None, "guidance_weighting must be"),
        ("uniform", (-1, 3), "0 <= first <= last < 50"),
        ("uniform", (4, 3), "0 <= first <= last < 50"),
        ("uniform", (0, 50), r"< 50, got \(0, 50\)"),
    ],
)
def test_step_weights_refuse(weighting, limits, message):
    with pytest.raises(ValueError, match=message):
        step_weights(NoiseSchedule(50), weighting, limits)


def test_a_step_table_follows_dtype_and_survives_inference_mode():
    table = StepTable(f64(1.0, 2.0, 4.0))
    step = torch.tensor([[2, 0]])
    with torch.inference_mode():
        table(step, torch.zeros(1))
    x = torch.ones(1, 2, requires_grad=True)
    (table(step, x) * x).sum().backward()
    close(x.grad, torch.tensor([[4.0, 1.0]]))
    assert table(step, torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_step_table_is_converted_once():
    table, step = StepTable(f64(1.0, 2.0)), torch.tensor([1])
    expected = table(step, torch.zeros(1))
    table.values = None
    close(table(step, torch.zeros(1)), expected)


@pytest.mark.parametrize("shapes", [[], [()], [(), ()], [(4,), (4,)], [(2, 3), (2, 3), (2, 3)], [(4,), (2, 4), ()]])
def test_mean_of_each(shapes):
    values = {str(i): torch.randn(shape, dtype=torch.float64) for i, shape in enumerate(shapes)}
    means = mean_of_each(values)
    assert list(means) == list(values)
    for name, value in values.items():
        close(means[name], f64(*value.reshape(-1)).sum() / max(value.numel(), 1))
