"""What every solver promises: calls, bounds, scales, noise, gradients, errors, compilation."""

from __future__ import annotations

import pytest
import torch
from diffusion_helpers import SIZE, noise_model

from torchrl_edp.diffusion import (
    SOLVERS,
    NoiseSchedule,
    ddim,
    ddpm,
    dpm_solver,
    dpm_solver_pp,
    model_steps,
    plan_orders,
    solvers,
)

CASES = [
    ("ddpm", {}),
    ("ddpm", {"variance": "beta"}),
    ("ddim", {}),
    ("ddim", {"eta": 0.7}),
    ("ddim", {"eta": 1.0, "end_time": 0.02}),
    *[("dpm_solver", {"order": order, "spacing": s}) for order in (1, 2, 3) for s in ("time", "log_snr")],
    *[("dpm_solver_pp", {"end_time": e, "spacing": s}) for e in (None, 0.0) for s in ("time", "log_snr")],
]
every_solver = pytest.mark.parametrize(("name", "options"), CASES)


def run(name, options, model=noise_model, scale=1.0, steps=50, calls=6, kind="linear", **more):
    """A solver on fixed noise, and with fixed step noise where it takes some."""
    noise = torch.randn(steps + 1, 4, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    if name in ("ddpm", "ddim"):
        more = {"step_noise": noise[1:]} | more
    if name != "ddpm":
        more = {"num_calls": calls} | more
    return SOLVERS[name](model, scale * noise[0], NoiseSchedule(steps, kind), **options, **more)


@every_solver
@pytest.mark.parametrize("calls", [*range(1, 13), 15, 50])
def test_the_number_of_calls(name, options, calls):
    seen = []

    def model(noisy_action, step):
        seen.append(step)
        return noise_model(noisy_action, step)

    result = run(name, options, model, calls=calls)
    assert result.shape == (4, SIZE) and result.dtype == torch.float64 and result.isfinite().all()
    assert len(seen) == (50 if name == "ddpm" else calls)
    assert seen == model_steps(name, NoiseSchedule(50), num_calls=len(seen), **options)
    assert seen[0] == 49 and all(isinstance(step, float) for step in seen)
    assert seen == sorted(seen, reverse=True) and seen[-1] > -1e-9, "steps fall from K - 1 to 0 at the least"


def test_the_steps_of_a_solver_of_ones_own_that_draws(monkeypatch):
    def own(model, noise, schedule, *, num_calls=2, step_noise=None, **options):
        drawn = torch.randn_like(noise) if step_noise is None else step_noise[0]
        return model(noise + drawn, 3.0)

    monkeypatch.setitem(SOLVERS, "own", own)
    assert model_steps("own", NoiseSchedule(50)) == [3.0]


def test_ddpm_visits_every_step():
    seen = []
    run("ddpm", {}, lambda x, step: seen.append(step) or noise_model(x, step))
    torch.testing.assert_close(torch.tensor(seen), torch.arange(49.0, -1, -1))


@pytest.mark.parametrize(
    ("calls", "order", "plan"),
    [
        (1, 1, [1]),
        (4, 1, [1, 1, 1, 1]),
        (1, 2, [1]),
        (4, 2, [2, 2]),
        (5, 2, [2, 2, 1]),
        (1, 3, [1]),
        (2, 3, [2]),
        (3, 3, [2, 1]),
        (4, 3, [3, 1]),
        (5, 3, [3, 2]),
        (6, 3, [3, 2, 1]),
        (15, 3, [3, 3, 3, 3, 2, 1]),
        (16, 3, [3, 3, 3, 3, 3, 1]),
        (17, 3, [3, 3, 3, 3, 3, 2]),
    ],
)
def test_plan_orders(calls, order, plan):
    assert plan_orders(calls, order) == plan
    assert sum(plan) == calls


@pytest.mark.parametrize("spacing", ["time", "log_snr"])
@pytest.mark.parametrize("end", [None, 0.1])
def test_dpm_solver_steps_end_at_the_cumulative_orders_of_a_uniform_grid(spacing, end):
    schedule, seen = NoiseSchedule(100, "vp"), []
    noise = torch.zeros(1, SIZE, dtype=torch.float64)
    options = {"num_calls": 8, "spacing": spacing, "end_time": end}
    dpm_solver(lambda x, step: seen.append((step + 1) / 100) or x, noise, schedule, **options)
    scale = schedule.log_snr if spacing == "log_snr" else float
    first, last = scale(1.0), scale(0.01 if end is None else end)
    starts = [scale(seen[i]) for i in (0, 3, 6)]  # the plan is 3, 3, 2
    expected = [first + (last - first) * i / 8 for i in (0, 3, 6)]
    torch.testing.assert_close(torch.tensor(starts), torch.tensor(expected))


@every_solver
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (torch.tensor([-0.5, -1, 0]), torch.tensor([0.5, 2, 0.1]))])
def test_every_implied_action_is_in_bounds(name, options, bounds, monkeypatch):
    low, high = (torch.as_tensor(bound).double() for bound in bounds)
    implied, predict = [], solvers._predict

    def spy(model, action, time, schedule, *rest):
        predicted, clean = predict(model, action, time, schedule, *rest)
        torch.testing.assert_close(schedule.alpha(time) * clean + schedule.sigma(time) * predicted, action)
        implied.append(clean)
        return predicted, clean

    monkeypatch.setattr(solvers, "_predict", spy)
    result = run(name, options, lambda x, step: 3 * noise_model(x, step) - 1, bounds=bounds)
    assert all(((clean >= low) & (clean <= high)).all() for clean in implied)
    assert (torch.stack(implied) == high).any(), "the bounds are felt"
    if name == "ddpm" or (options.get("end_time", 0 if name == "ddim" else None) == 0):
        torch.testing.assert_close(result, implied[-1])


@every_solver
def test_wide_bounds_change_nothing(name, options):
    torch.testing.assert_close(run(name, options, bounds=(-1e9, 1e9)), run(name, options), rtol=1e-9, atol=1e-9)


@every_solver
@pytest.mark.parametrize("scale", [0.7, 2.0])
def test_policy_scale_multiplies_the_predicted_noise(name, options, scale):
    scaled = run(name, options, lambda x, step: scale * noise_model(x, step))
    torch.testing.assert_close(run(name, options, policy_scale=scale), scaled, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(scaled, run(name, options))


@every_solver
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_initial_noise_scale_multiplies_the_initial_noise_only(name, options, scale):
    torch.testing.assert_close(run(name, options, initial_noise_scale=scale), run(name, options, scale=scale))
    assert not torch.allclose(run(name, options, initial_noise_scale=scale), run(name, options))


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0, "num_calls": 7})])
def test_step_noise_is_drawn_if_not_given(name, options):
    schedule, noise = NoiseSchedule(30), torch.randn(5, SIZE, dtype=torch.float64)
    torch.manual_seed(1)
    first = SOLVERS[name](noise_model, noise, schedule, **options)
    assert not torch.allclose(first, SOLVERS[name](noise_model, noise, schedule, **options))
    torch.manual_seed(1)
    given = torch.stack([torch.randn(5, SIZE, dtype=torch.float64) for _ in range(29)])
    assert torch.equal(first, SOLVERS[name](noise_model, noise, schedule, step_noise=given, **options))


@pytest.mark.parametrize(
    ("name", "options"), [("ddim", {}), ("dpm_solver", {}), ("dpm_solver_pp", {})], ids=lambda v: str(v)
)
def test_ode_solvers_draw_nothing(name, options):
    state = torch.get_rng_state()
    assert torch.equal(
        run(name, options, step_noise=None) if name == "ddim" else run(name, options), run(name, options)
    )
    assert torch.equal(state, torch.get_rng_state())


@every_solver
def test_gradients_flow_through_the_chain(name, options):
    weight = torch.eye(2, dtype=torch.float64).add(0.3).requires_grad_()
    noise, extra = torch.randn(1, 2, dtype=torch.float64, requires_grad=True), torch.randn(25, 1, 2).double()
    more = {"step_noise": extra} if name in ("ddpm", "ddim") else {}
    more |= {} if name == "ddpm" else {"num_calls": 4}

    def solve(noise, weight):
        return SOLVERS[name](lambda x, step: torch.tanh(x @ weight), noise, NoiseSchedule(21), **options, **more)

    assert torch.autograd.gradcheck(solve, (noise, weight))


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        (ddpm, {"num_calls": 15}, "expected num_calls=50, got 15"),
        (ddpm, {"variance": "fixed"}, "variance must be one of"),
        (ddim, {"num_calls": 0}, "num_calls must be at least 1, got 0"),
        (ddim, {"num_calls": None}, "num_calls must be at least 1, got None"),
        (ddim, {"end_time": 1.0}, r"end_time must lie in \[0, 1\), got 1.0"),
        (ddim, {"end_time": -0.1}, "end_time must lie in"),
        (ddim, {"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        (ddim, {"eta": -0.5}, "eta must lie in"),
        (dpm_solver, {"order": 4}, "order must be 1, 2 or 3, got 4"),
        (dpm_solver, {"num_calls": 0}, "num_calls must be at least 1"),
        (dpm_solver, {"end_time": 0.0}, "infinite at time 0: got end_time=0.0"),
        (dpm_solver, {"end_time": 0.0, "spacing": "log_snr"}, "infinite at time 0"),
        (dpm_solver, {"spacing": "cosine"}, "spacing must be 'time' or 'log_snr', got 'cosine'"),
        (dpm_solver_pp, {"spacing": "cosine"}, "spacing must be"),
        (dpm_solver_pp, {"num_calls": -1}, "num_calls must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(solver, options, message):
    with pytest.raises(ValueError, match=message):
        solver(noise_model, torch.zeros(1, SIZE, dtype=torch.float64), NoiseSchedule(50), **options)


def test_one_diffusion_step():
    schedule, noise = NoiseSchedule(1, "vp"), torch.ones(1, SIZE, dtype=torch.float64)
    for solver in (ddim, ddpm):
        assert solver(noise_model, noise, schedule, num_calls=1).isfinite().all()
    for solver in (dpm_solver, dpm_solver_pp):
        with pytest.raises(ValueError, match="K = 1 leaves nothing to solve .*: choose ddim, ddpm or more steps"):
            solver(noise_model, noise, schedule)


@pytest.mark.parametrize(("name", "options"), [("dpm_solver", {"spacing": "log_snr"}), ("ddim", {"eta": 0.5})])
def test_a_solver_compiles_to_one_graph(name, options):
    weight, schedule = torch.randn(SIZE, SIZE), NoiseSchedule(50)
    more = {"step_noise": torch.randn(4, 2, SIZE)} if name == "ddim" else {}

    def solve(noise):
        def model(action, step):
            return torch.tanh(action @ weight + step)

        return SOLVERS[name](model, noise, schedule, num_calls=4, bounds=(-1.0, 1.0), **options, **more)

    compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")
    for noise in torch.randn(2, 2, SIZE):
        torch.testing.assert_close(compiled(noise), solve(noise))
