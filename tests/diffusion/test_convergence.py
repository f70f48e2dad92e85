"""The solvers against closed forms, and their order of convergence."""

from __future__ import annotations

import math

import pytest
import torch
from diffusion_helpers import Gaussian, Mixture

from torchrl_edp.diffusion import NoiseSchedule, ddim, ddpm, dpm_solver, dpm_solver_pp, solvers

NOISE = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(-1)
SCHEDULE = NoiseSchedule(1000, "vp")
END = 0.05


@pytest.mark.parametrize("kind", ["linear", "cosine", "vp"])
@pytest.mark.parametrize("calls", [1, 2, 7, 15])
@pytest.mark.parametrize("spacing", ["time", "log_snr"])
def test_one_point_of_data_is_found_exactly(kind, calls, spacing):
    """The noise along the path is constant, so that every solver of every order is exact."""
    schedule = NoiseSchedule(1000, kind)
    model = Gaussian(schedule, 0.4, 0.0)
    tolerance = 1e-6 if kind == "cosine" else 1e-9  # cosine's abar_K = 2e-9 amplifies rounding
    exact = model.solve(NOISE, 0.001)
    options = {"num_calls": calls, "spacing": spacing}
    for order in (1, 2, 3):
        found = dpm_solver(model, NOISE, schedule, order=order, **options)
        torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(dpm_solver_pp(model, NOISE, schedule, **options), exact, rtol=0, atol=tolerance)
    for found in (
        dpm_solver_pp(model, NOISE, schedule, end_time=0.0, **options),
        ddim(model, NOISE, schedule, num_calls=calls),
        ddim(model, NOISE, schedule, num_calls=calls, eta=1.0),
    ):
        torch.testing.assert_close(found, torch.full_like(NOISE, 0.4), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["linear", "vp"])
@pytest.mark.parametrize(("mean", "deviation"), [(0.4, 0.3), (-0.7, 1.5)])
@pytest.mark.parametrize(
    ("solver", "options", "accuracy"),
    [
        (ddim, {"num_calls": 2000, "end_time": 0.001}, 1e-2),
        (dpm_solver, {"num_calls": 100, "order": 2, "spacing": "log_snr"}, 1e-2),
        (dpm_solver, {"num_calls": 100, "order": 3, "spacing": "log_snr"}, 2e-4),
        (dpm_solver_pp, {"num_calls": 100, "spacing": "log_snr"}, 2e-3),
    ],
)
def test_gaussian_data_have_a_closed_form(kind, mean, deviation, solver, options, accuracy):
    schedule = NoiseSchedule(1000, kind)
    model = Gaussian(schedule, mean, deviation)
    error = (solver(model, NOISE, schedule, **options) - model.solve(NOISE, 0.001)).abs().max()
    assert error < accuracy


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm_reproduces_the_moments_of_gaussian_data(variance):
    """Every step is affine: the mean and variance of the result follow without sampling."""
    schedule = NoiseSchedule(1000)
    model = Gaussian(schedule, 0.4, 0.3)
    zero = torch.zeros(999, 1, dtype=torch.float64)
    start = torch.zeros(1, dtype=torch.float64)
    mean = ddpm(model, start, schedule, step_noise=zero, variance=variance)
    assert float(mean) == pytest.approx(0.4, abs=2e-3)
    noise = torch.eye(1000, dtype=torch.float64)  # column j drives only draw j
    results = ddpm(model, noise[0].unsqueeze(-1), schedule, step_noise=noise[1:].unsqueeze(-1), variance=variance)
    spread = float((results - mean).square().sum().sqrt())
    assert spread == pytest.approx(0.3, rel=0.02)


def integrate(order: int, count: int) -> torch.Tensor:
    """The mixture's action at ``END`` after ``count`` steps of one order, equal in the log-SNR."""
    first, last = SCHEDULE.log_snr(1.0), SCHEDULE.log_snr(END)
    times = [SCHEDULE.time_of_log_snr(first + (last - first) * i / count) for i in range(count + 1)]
    action, model = NOISE, Mixture(SCHEDULE)
    for start, stop in zip(times, times[1:], strict=False):
        action = solvers._dpm_step(model, action, start, stop, order, SCHEDULE, None, 1.0)
    return action


def slope(counts: list[int], errors: list[float]) -> float:
    x, y = (torch.tensor([math.log(value) for value in values]) for values in (counts, errors))
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())


@pytest.fixture(scope="module")
def exact():
    solution = integrate(3, 1000)
    torch.testing.assert_close(solution, integrate(3, 500), rtol=0, atol=1e-8)
    return solution


@pytest.mark.parametrize(("order", "counts"), [(1, [32, 64, 128, 256]), (2, [32, 64, 128]), (3, [16, 32, 64])])
def test_order_of_convergence_of_dpm_solver(order, counts, exact):
    errors = [float((integrate(order, count) - exact).abs().max()) for count in counts]
    assert slope(counts, errors) >= order - 0.2, errors
    assert errors[-1] > 1e-9, "above rounding, so that the slope means something"


@pytest.mark.parametrize(
    ("solver", "order", "options"),
    [
        (ddim, 1, {}),
        (dpm_solver, 1, {"order": 1, "spacing": "log_snr"}),
        (dpm_solver, 2, {"order": 2, "spacing": "log_snr"}),
        (dpm_solver_pp, 2, {"spacing": "log_snr"}),
    ],
)
def test_order_of_convergence_of_whole_solvers(solver, order, options, exact):
    counts, model = [64, 128, 256], Mixture(SCHEDULE)
    errors = [
        float((solver(model, NOISE, SCHEDULE, num_calls=n, end_time=END, **options) - exact).abs().max())
        for n in counts
    ]
    assert slope(counts, errors) >= order - 0.2, errors


def test_higher_orders_are_worth_their_calls(exact):
    model = Mixture(SCHEDULE)
    options = {"num_calls": 32, "spacing": "log_snr", "end_time": END}
    errors = [
        float((dpm_solver(model, NOISE, SCHEDULE, order=order, **options) - exact).abs().max()) for order in (1, 2, 3)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
