"""The solvers against diffusers' schedulers, which get our float64 tables, and against the papers' formulas."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusion_helpers import SIZE, noise_model

from torchrl_edp.diffusion import NoiseSchedule, ddim, ddpm, dpm_solver, dpm_solver_pp, solvers

KINDS = ["linear", "cosine", "vp"]


def make_scheduler(name: str, schedule: NoiseSchedule, **options):
    scheduler = getattr(diffusers, name)(num_train_timesteps=schedule.num_steps, **options)
    scheduler.betas, scheduler.alphas = schedule.betas, 1 - schedule.betas
    scheduler.alphas_cumprod = schedule.alpha_bars
    return scheduler


def draw(count: int) -> torch.Tensor:
    return torch.randn(count, 5, SIZE, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("variance", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("clipped", [False, True])
def test_ddpm(kind, variance, theirs, clipped, monkeypatch):
    schedule, noise = NoiseSchedule(60, kind), draw(60)
    drawn = iter(noise[1:])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: next(drawn))
    scheduler = make_scheduler("DDPMScheduler", schedule, variance_type=theirs, clip_sample=clipped)
    scheduler.set_timesteps(60)
    action = noise[0]
    for step in scheduler.timesteps:
        action = scheduler.step(noise_model(action, float(step)), step, action).prev_sample
    bounds = (-1.0, 1.0) if clipped else None
    ours = ddpm(noise_model, noise[0], schedule, variance=variance, bounds=bounds, step_noise=noise[1:])
    torch.testing.assert_close(ours, action, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("calls", [100, 20, 5])
@pytest.mark.parametrize("clipped", [False, True])
def test_ddim(kind, eta, calls, clipped):
    schedule, noise = NoiseSchedule(100, kind), draw(calls + 1)
    scheduler = make_scheduler("DDIMScheduler", schedule, clip_sample=clipped, timestep_spacing="trailing")
    scheduler.set_timesteps(calls)
    action = noise[0]
    for step, step_noise in zip(scheduler.timesteps, noise[1:], strict=True):
        options = {"eta": eta, "variance_noise": step_noise, "use_clipped_model_output": clipped}
        action = scheduler.step(noise_model(action, float(step)), step, action, **options).prev_sample
    bounds = (-1.0, 1.0) if clipped else None
    ours = ddim(noise_model, noise[0], schedule, num_calls=calls, eta=eta, bounds=bounds, step_noise=noise[1:])
    torch.testing.assert_close(ours, action, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", ["table", "time", "log_snr"])
@pytest.mark.parametrize("calls", [1, 2, 10, 20])
def test_dpm_solver_pp_2m(kind, grid, calls):
    """Its `step` casts the sample to float32, so its update functions are called directly, with our sigmas."""
    schedule, noise = NoiseSchedule(100, kind), draw(1)[0]
    if grid == "table":  # ends at the clean action; all points are training steps
        chosen = torch.arange(99, -1, -100 // calls)
        sigmas = [
            *((1 - schedule.alpha_bars) / schedule.alpha_bars).sqrt()[chosen],
            torch.zeros((), dtype=torch.float64),
        ]
        steps, options = chosen.tolist(), {"end_time": 0.0}
    else:
        end, scale = 0.01, float if grid == "time" else schedule.log_snr
        points = [scale(1.0) + (scale(end) - scale(1.0)) * i / calls for i in range(calls + 1)]
        times = points if grid == "time" else [schedule.time_of_log_snr(point) for point in points]
        sigmas = [torch.tensor(schedule.sigma(t) / schedule.alpha(t), dtype=torch.float64) for t in times]
        steps, options = [t * 100 - 1 for t in times[:-1]], {"spacing": grid}
    scheduler = make_scheduler("DPMSolverMultistepScheduler", schedule)
    scheduler.sigmas = torch.stack(sigmas)
    action, outputs = noise, []
    for i, step in enumerate(steps):
        scheduler._step_index = i
        outputs.append(scheduler.convert_model_output(noise_model(action, step), sample=action))
        last = grid == "table" and i == calls - 1  # no second order towards an infinite log-SNR
        if i == 0 or last:
            action = scheduler.dpm_solver_first_order_update(outputs[-1], sample=action)
        else:
            action = scheduler.multistep_dpm_solver_second_order_update(outputs, sample=action)
    ours = dpm_solver_pp(noise_model, noise, schedule, num_calls=calls, **options)
    torch.testing.assert_close(ours, action, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", [2, 6, 20])
@pytest.mark.filterwarnings("ignore:`algorithm_types=dpmsolver` is deprecated:FutureWarning")
def test_dpm_solver_2(kind, calls):
    """Its middle points are points of the outer grid, so every step gets its own three sigmas."""
    schedule, noise = NoiseSchedule(100, kind), draw(1)[0]
    options = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    scheduler = make_scheduler("DPMSolverSinglestepScheduler", schedule, **options)
    times = [1 - 0.99 * i / calls for i in range(0, calls + 1, 2)]
    action = noise
    for start, end in zip(times, times[1:], strict=False):
        middle = schedule.time_of_log_snr((schedule.log_snr(start) + schedule.log_snr(end)) / 2)
        ratios = [schedule.sigma(t) / schedule.alpha(t) for t in (start, middle, end)]
        scheduler.sigmas = torch.tensor(ratios, dtype=torch.float64)
        scheduler._step_index = 0
        first = noise_model(action, start * 100 - 1)
        at_middle = scheduler.dpm_solver_first_order_update(first, sample=action)
        scheduler._step_index = 1
        outputs = [first, noise_model(at_middle, middle * 100 - 1)]
        action = scheduler.singlestep_dpm_solver_second_order_update(outputs, sample=action)
    ours = dpm_solver(noise_model, noise, schedule, num_calls=calls, order=2)
    torch.testing.assert_close(ours, action, rtol=1e-10, atol=1e-10)


def literal_third_order(action, start, end, schedule):
    """Algorithm 2 of https://arxiv.org/abs/2206.00927 (DPM-Solver-3), r1 = 1/3, r2 = 2/3, line by line.

    diffusers' single-step scheduler of order 3 reaches its second point by a formula of its own.
    """
    r1, r2 = 1 / 3, 2 / 3
    lambda_s, lambda_t = schedule.log_snr(start), schedule.log_snr(end)
    h = lambda_t - lambda_s
    s1, s2 = (schedule.time_of_log_snr(lambda_s + r * h) for r in (r1, r2))
    a, s, steps = schedule.alpha, schedule.sigma, schedule.num_steps
    first = noise_model(action, start * steps - 1)
    u1 = a(s1) / a(start) * action - s(s1) * (math.exp(r1 * h) - 1) * first
    d1 = noise_model(u1, s1 * steps - 1) - first
    u2 = (
        a(s2) / a(start) * action
        - s(s2) * (math.exp(r2 * h) - 1) * first
        - s(s2) * r2 / r1 * ((math.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
    )
    d2 = noise_model(u2, s2 * steps - 1) - first
    return (
        a(end) / a(start) * action - s(end) * (math.exp(h) - 1) * first - s(end) / r2 * ((math.exp(h) - 1) / h - 1) * d2
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dpm_solver_3(kind):
    schedule, noise = NoiseSchedule(100, kind), draw(1)[0]
    literal = literal_third_order(noise, 0.8, 0.45, schedule)
    ours = solvers._dpm_step(noise_model, noise, 0.8, 0.45, 3, schedule, None, 1.0)
    torch.testing.assert_close(ours, literal, rtol=1e-11, atol=1e-11)
    # 7 calls: two steps of order 3 and one of order 1 on the grid 0, 3, 6, 7
    times = [1 - 0.99 * i / 7 for i in (0, 3, 6, 7)]
    action = literal_third_order(noise, times[0], times[1], schedule)
    action = literal_third_order(action, times[1], times[2], schedule)
    action = solvers._dpm_step(noise_model, action, times[2], times[3], 1, schedule, None, 1.0)
    torch.testing.assert_close(dpm_solver(noise_model, noise, schedule, num_calls=7), action, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", [1, 4, 15])
@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_dpm_solver_1_is_ddim(kind, calls, bounds):
    schedule, noise = NoiseSchedule(100, kind), draw(1)[0]
    first = dpm_solver(noise_model, noise, schedule, num_calls=calls, order=1, bounds=bounds)
    other = ddim(noise_model, noise, schedule, num_calls=calls, end_time=schedule.end_time, bounds=bounds)
    torch.testing.assert_close(first, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_ddim_with_eta_1_and_all_steps_is_ddpm(kind, bounds):
    schedule, noise = NoiseSchedule(40, kind), draw(40)
    options = {"bounds": bounds, "step_noise": noise[1:]}
    first = ddim(noise_model, noise[0], schedule, num_calls=40, eta=1.0, **options)
    torch.testing.assert_close(first, ddpm(noise_model, noise[0], schedule, **options), rtol=1e-10, atol=1e-10)
    paper = ddpm(noise_model, noise[0], schedule, variance="beta", **options)
    assert not torch.allclose(first, paper, rtol=1e-4)
