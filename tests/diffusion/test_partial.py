from __future__ import annotations

import math

import pytest
import torch
from diffusion_helpers import SIZE, noise_model

from torchrl_edp.diffusion import NoiseSchedule, approximate_action, ddim, ddim_from_step

close = torch.testing.assert_close
BOUNDS = [None, (-0.5, 0.8)]


def model(noisy, step):
    return noise_model(noisy, step.to(noisy.dtype).unsqueeze(-1))


def draw(*batch):
    return torch.randn(*batch, SIZE, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_one_call_is_action_approximation(bounds):
    schedule, noisy, step = NoiseSchedule(60), draw(4), torch.tensor([0, 5, 30, 59])
    close(
        ddim_from_step(model, noisy, step, schedule, bounds=bounds),
        approximate_action(noisy, model(noisy, step), step, schedule, bounds),
    )


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("kind", ["linear", "vp"])
@pytest.mark.parametrize("calls", [1, 2, 5, 60])
def test_from_the_last_step_it_is_the_solver(calls, kind, bounds):
    schedule, noise = NoiseSchedule(60, kind), draw(2, 3)
    found = ddim_from_step(model, noise, torch.full((2, 3), 59), schedule, num_calls=calls, bounds=bounds)
    expected = ddim(noise_model, noise, schedule, num_calls=calls, bounds=bounds)
    close(found, expected, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(value.sum(), noise)[0] for value in (found, expected)]
    close(*slopes, rtol=1e-7, atol=1e-9)
    assert bounds is not None or slopes[0].abs().min() > 0


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("calls", [1, 3, 8])
def test_every_sample_by_its_own_loop(calls, bounds):
    schedule, noisy, steps = NoiseSchedule(60), draw(6), torch.tensor([0, 1, 2, 10, 41, 59])
    abar = torch.cumprod(1 - schedule.betas, 0).tolist()
    found = ddim_from_step(model, noisy, steps, schedule, num_calls=calls, bounds=bounds)
    rows = []
    for x, start in zip(noisy, steps.tolist(), strict=True):
        grid = [math.ceil((start + 1) * left / calls) - 1 for left in range(calls, 0, -1)]
        for index, step in enumerate(grid):
            keep, rest = math.sqrt(abar[step]), math.sqrt(1 - abar[step])
            noise = noise_model(x, step)
            clean = (x - rest * noise) / keep
            if bounds is not None:
                clean = clean.clamp(*bounds)
                noise = (x - keep * clean) / rest
            if index < calls - 1:
                x = math.sqrt(abar[grid[index + 1]]) * clean + math.sqrt(1 - abar[grid[index + 1]]) * noise
        rows.append(clean)
    expected = torch.stack(rows)
    close(found, expected, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(value.square().sum(), noisy)[0] for value in (found, expected)]
    close(*slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("calls", [1, 4])
def test_a_known_first_prediction_saves_a_call(calls):
    schedule, noisy, step, made = NoiseSchedule(60), draw(3), torch.tensor([4, 20, 59]), []

    def counted(noisy, step):
        made.append(step.tolist())
        return model(noisy, step)

    plain = ddim_from_step(counted, noisy, step, schedule, num_calls=calls)
    assert len(made) == calls and made[0] == [4, 20, 59]
    given = ddim_from_step(counted, noisy, step, schedule, num_calls=calls, predicted_noise=model(noisy, step))
    assert len(made) == 2 * calls - 1
    close(given, plain)


def test_bounds_hold_and_stop_the_gradient():
    schedule, noisy = NoiseSchedule(60), draw(5)
    action = ddim_from_step(model, noisy, torch.full((5,), 59), schedule, num_calls=3, bounds=(-0.01, 0.01))
    assert action.abs().amax() == 0.01
    (slope,) = torch.autograd.grad(action.sum(), noisy)
    assert (slope[(action.abs() == 0.01).all(-1)] == 0).all()


@pytest.mark.parametrize("calls", [0, -1])
def test_no_calls_are_refused(calls):
    with pytest.raises(ValueError, match="num_calls must be at least 1"):
        ddim_from_step(model, draw(1), torch.tensor([3]), NoiseSchedule(60), num_calls=calls)
