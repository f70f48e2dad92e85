"""What is refused before a solver runs."""

import math

import pytest
import torch

from torchrl_edp.diffusion import SOLVERS, NoiseSchedule, check_interval, check_solver

SCHEDULES = [NoiseSchedule(2, "vp"), NoiseSchedule(30), NoiseSchedule(1000, "cosine")]


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1]", [0, 0.5, 1], [-1e-9, 1 + 1e-9]),
        ("(0, 1)", [1e-9, 1 - 1e-9], [0, 1]),
        ("(0, 1]", [1], [0]),
        ("[0, 1)", [0], [1]),
        ("[1, inf)", [1, 1e300], [0, math.inf]),
    ],
)
def test_intervals(interval, inside, outside):
    for value in inside:
        check_interval("x", value, interval)
    for value in [*outside, math.nan, -math.inf]:
        with pytest.raises(ValueError) as error:
            check_interval("x", value, interval)
        assert str(error.value) == f"x must lie in {interval}, got {value}."


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_what_can_run_passes_without_a_draw(name, schedule):
    state = torch.get_rng_state()
    steps = schedule.num_steps
    check_solver(name, schedule, num_calls=steps if name in ("ddpm", "ddim") else 15, policy_scale=0.5, bounds=(-1, 1))
    if name == "ddim":
        check_solver(name, schedule, num_calls=steps, eta=1.0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euler", {}, r"Unknown solver 'euler': choose one of \['ddim', 'ddpm'"),
        ("ddim", {"order": 2}, r"'ddim' has no option 'order': choose from \['eta', 'end_time', 'step_noise'\]"),
        (
            "dpm_solver",
            {"num_calls": 2, "order": 3},
            "A step of order 3 .* num_calls is 2: choose an order of at most 2",
        ),
        ("ddim", {"num_calls": 31}, "num_calls=31 ddim asks .*step -0.0323, below .*at most K = 30"),
        ("dpm_solver_pp", {"num_calls": 40, "end_time": 0.0}, "at most K = 30, or end_time of at least 1 / K"),
        ("ddim", {"num_calls": "15"}, "cannot take the options .*'num_calls': '15'"),
    ],
)
def test_what_cannot_run_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        check_solver(name, NoiseSchedule(30), **options)


def test_the_highest_order_that_fits_is_no_error():
    check_solver("dpm_solver", NoiseSchedule(30), num_calls=3, order=3)
    check_solver("dpm_solver", NoiseSchedule(30), num_calls=2)  # order 3 is the most it takes, not what was asked for
    check_solver("ddim", NoiseSchedule(30), num_calls=60, end_time=1 / 30)
