from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_edp.diffusion import NoiseSchedule, add_noise, approximate_action, clip, posterior
from torchrl_edp.diffusion import schedule as schedules

# The table of the whole file: b = 0.1, 0.2, 0.4, so abar = 0.9, 0.72, 0.432.
BETAS = [0.1, 0.2, 0.4]
ALPHA_BARS = [0.9, 0.72, 0.432]


@pytest.fixture
def schedule(monkeypatch):
    monkeypatch.setitem(schedules._BETAS, "by hand", lambda k: double(BETAS[:k]))
    with pytest.warns(UserWarning, match="abar_K = 0.432"):
        return NoiseSchedule(3, "by hand")


def double(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_add_noise_by_hand_with_gradients(schedule, step):
    action, noise = double([[0.5, -1.0]], requires_grad=True), double([[2.0, 0.25]], requires_grad=True)
    keep, spread = math.sqrt(ALPHA_BARS[step]), math.sqrt(1 - ALPHA_BARS[step])
    noisy = add_noise(action, noise, torch.tensor([step]), schedule)
    torch.testing.assert_close(noisy, double([[keep * 0.5 + spread * 2, -keep + spread * 0.25]]))
    noisy.sum().backward()
    torch.testing.assert_close(action.grad, double([[keep, keep]]))
    torch.testing.assert_close(noise.grad, double([[spread, spread]]))


@pytest.mark.parametrize("clipped", [False, True])
def test_approximate_action_by_hand_with_gradients(schedule, clipped):
    noisy, noise = double([[0.2], [0.2], [2.0]], requires_grad=True), double([[0.5], [-3.0], [0.0]], requires_grad=True)
    step = torch.tensor([0, 1, 2])
    action = approximate_action(noisy, noise, step, schedule, (-1.0, 1.0) if clipped else None)
    values = [
        (n - math.sqrt(1 - a) * e) / math.sqrt(a)
        for n, e, a in zip([0.2, 0.2, 2.0], [0.5, -3.0, 0.0], ALPHA_BARS, strict=True)
    ]
    assert abs(values[0]) < 1 < min(values[1:]), "one inside, two above"
    torch.testing.assert_close(action, double([[min(v, 1.0) if clipped else v] for v in values]))
    action.sum().backward()
    open_rows = [1.0, 0.0, 0.0] if clipped else [1.0, 1.0, 1.0]
    slopes = [[o / math.sqrt(a)] for o, a in zip(open_rows, ALPHA_BARS, strict=True)]
    torch.testing.assert_close(noisy.grad, double(slopes))
    slopes = [[-o * math.sqrt((1 - a) / a)] for o, a in zip(open_rows, ALPHA_BARS, strict=True)]
    torch.testing.assert_close(noise.grad, double(slopes))


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_posterior_by_hand_with_gradients(schedule, step, variance):
    noisy, clean = double([[0.7]], requires_grad=True), double([[-0.3]], requires_grad=True)
    beta, now, before = BETAS[step], ALPHA_BARS[step], [1.0, *ALPHA_BARS][step]
    mean, spread = posterior(noisy, clean, torch.tensor([step]), schedule, variance)
    clean_share = math.sqrt(before) * beta / (1 - now)
    noisy_share = math.sqrt(1 - beta) * (1 - before) / (1 - now)
    torch.testing.assert_close(mean, double([[clean_share * -0.3 + noisy_share * 0.7]]))
    expected = beta if variance == "beta" else beta * (1 - before) / (1 - now)
    torch.testing.assert_close(spread, double([[expected]]))
    mean.sum().backward()
    torch.testing.assert_close((noisy.grad, clean.grad), (double([[noisy_share]]), double([[clean_share]])))


@pytest.mark.parametrize("step", [0, 7, 99])
def test_the_posterior_mean_is_the_papers_reverse_step(step):
    """Eq. 4: (a - b / sqrt(1 - abar) eps) / sqrt(alpha), if the clean action is the one implied by eps."""
    schedule, steps = NoiseSchedule(100), torch.full((4,), step)
    noisy, noise = torch.randn(2, 4, 3, dtype=torch.float64)
    beta, alpha_bar = schedule.betas[step], schedule.alpha_bars[step]
    mean, _ = posterior(noisy, approximate_action(noisy, noise, steps, schedule), steps, schedule)
    torch.testing.assert_close(mean, (noisy - beta / (1 - alpha_bar).sqrt() * noise) / (1 - beta).sqrt())


def test_float32_loses_nothing_at_the_first_step():
    """1 - abar^1 = 1e-4 computed from a float32 table would be off by 2e-4."""
    schedule, step = NoiseSchedule(1000), torch.tensor([0])
    exact = [add_noise(*torch.tensor([[[0.0]], [[1.0]]]).double(), step, schedule)]
    torch.testing.assert_close(add_noise(torch.zeros(1, 1), torch.ones(1, 1), step, schedule).double(), *exact)
    mean, _ = posterior(torch.zeros(1, 1), torch.ones(1, 1), step, schedule)
    torch.testing.assert_close(mean, torch.ones(1, 1), rtol=1e-6, atol=0)


def test_posterior_refuses_an_unknown_variance():
    action = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="variance must be one of .*'beta'.* got 'fixed'"):
        posterior(action, action, torch.tensor([0]), NoiseSchedule(30), "fixed")


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["linear", "cosine", "vp"]),
    steps=st.integers(21, 200),
    place=st.floats(0, 0.97),
    action=st.lists(st.floats(-1, 1), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
def test_the_true_noise_gives_the_action_back(kind, steps, place, action, seed):
    schedule, step = NoiseSchedule(steps, kind), torch.tensor(int(place * steps))
    action = torch.tensor(action, dtype=torch.float64)
    noise = torch.randn(action.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    noisy = add_noise(action, noise, step, schedule)
    for bounds in (None, (-1.0, 1.0)):
        back = approximate_action(noisy, noise, step, schedule, bounds)
        torch.testing.assert_close(back, action, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_shapes_and_precision_follow_the_action(dtype, batch):
    schedule, action, step = NoiseSchedule(), torch.zeros(*batch, 2, dtype=dtype), torch.full(batch, 999)
    noise = torch.ones_like(action)
    results = [
        add_noise(action, noise, step, schedule),
        approximate_action(action, noise, step, schedule, (-1.0, 1.0)),
        posterior(action, noise, step, schedule)[0],
        clip(action, (torch.tensor([0.5, -1.0]).double(), torch.tensor([1.0, 1.0]).double())),
    ]
    assert {(r.dtype, r.shape) for r in results} == {(dtype, action.shape)}
    assert posterior(action, noise, step, schedule)[1].shape == (*batch, 1)


def test_clip_by_dimension():
    bounds = (torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(clip(torch.tensor([[-3.0, 1.0]]), bounds), torch.tensor([[-2.0, 0.5]]))
