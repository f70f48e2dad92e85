from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from torchrl_edp.diffusion import NoiseSchedule, schedule

KINDS = ["linear", "cosine", "vp"]


def betas_by_hand(kind: str, steps: int) -> np.ndarray:
    k = np.arange(1, steps + 1, dtype=np.float64)
    if kind == "linear":
        return 1000 / steps * (1e-4 + (0.02 - 1e-4) * (k - 1) / (steps - 1))
    if kind == "cosine":
        keep = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        return np.array([min(1 - keep(i / steps) / keep((i - 1) / steps), 0.999) for i in k])
    return 1 - np.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * k - 1) / steps**2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [21, 100, 1000])
def test_tables_equal_an_independent_computation(kind, steps):
    tables = NoiseSchedule(steps, kind)
    betas = betas_by_hand(kind, steps)
    assert {tables.betas.dtype, tables.alpha_bars.dtype, tables.noise_variances.dtype} == {torch.float64}
    np.testing.assert_allclose(tables.betas, betas, rtol=1e-11)
    np.testing.assert_allclose(tables.alpha_bars, np.cumprod(1 - betas), rtol=1e-11)
    np.testing.assert_allclose(tables.noise_variances, 1 - np.cumprod(1 - betas), rtol=1e-10)
    assert (tables.alpha_bars.diff() < 0).all() and tables.alpha_bars[-1] < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [21, 357, 1000])
def test_the_continuous_view_passes_through_the_tables(kind, steps):
    view = NoiseSchedule(steps, kind)
    times = [(i + 1) / steps for i in range(steps)]
    np.testing.assert_allclose([view.alpha(t) ** 2 for t in times], view.alpha_bars, rtol=1e-11)
    np.testing.assert_allclose([view.sigma(t) ** 2 for t in times], view.noise_variances, rtol=1e-11)
    for t in (0.3 / steps, 1 / steps, 0.1234, 0.5, 0.98765):  # between the steps too
        assert view.alpha(t) ** 2 + view.sigma(t) ** 2 == pytest.approx(1, abs=1e-14)
        assert view.log_snr(t) == pytest.approx(math.log(view.alpha(t) / view.sigma(t)), rel=1e-12)
    assert (view.alpha(0.0), view.sigma(0.0), view.end_time) == (1.0, 0.0, 1 / steps)


def test_vp_is_the_closed_form_between_steps():
    view, t = NoiseSchedule(50, "vp"), 0.4321
    assert view.log_alpha(t) == pytest.approx(-0.25 * t**2 * 9.9 - 0.5 * t * 0.1, rel=1e-14)
    linear = NoiseSchedule(50)
    half_way = 0.5 * (linear.log_alpha(0.4) + linear.log_alpha(0.42))
    assert linear.log_alpha(0.41) == pytest.approx(half_way, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [0.0004, 0.001, 0.01, 0.0305, 0.333, 0.9, 0.99951, 1.0])
def test_time_of_log_snr_is_the_inverse(kind, time):
    view = NoiseSchedule(1000, kind)
    assert view.time_of_log_snr(view.log_snr(time)) == pytest.approx(time, rel=1e-9)


@pytest.mark.parametrize(
    ("steps", "kind", "message"),
    [
        (0, "vp", "num_steps must be at least 1, got 0"),
        (-3, "linear", "at least 1"),
        (100, "sigmoid", r"Unknown schedule kind 'sigmoid': choose one of \['cosine', 'linear', 'vp'\]"),
        (20, "linear", r"b\^20 = 1, outside \(0, 1\).*num_steps > 20"),
        (5, "linear", r"b\^2 = 1.\d+, outside"),
        (1, "linear", r"b\^1 = 20, outside.*num_steps > 20"),
    ],
)
def test_bad_arguments_are_refused(steps, kind, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(steps, kind)


@pytest.mark.parametrize(("steps", "kind"), [(21, "linear"), (1, "cosine"), (1, "vp"), (7, "vp")])
def test_the_smallest_settings_that_work(steps, kind):
    tables = NoiseSchedule(steps, kind)  # without a warning
    assert ((tables.betas > 0) & (tables.betas < 1)).all()


def test_a_schedule_that_never_reaches_noise_warns(monkeypatch):
    # None of the three kinds ends above 0.01; any new kind may.
    monkeypatch.setitem(schedule._BETAS, "unscaled", lambda k: torch.linspace(1e-4, 0.02, k, dtype=torch.float64))
    with pytest.warns(UserWarning, match=r"unscaled schedule with num_steps=100 ends at abar_K = 0.36"):
        NoiseSchedule(100, "unscaled")


def test_repr():
    assert eval(repr(NoiseSchedule(30, "vp")), {"NoiseSchedule": NoiseSchedule}).kind == "vp"
    assert repr(NoiseSchedule(30, "vp")) == "NoiseSchedule(num_steps=30, kind='vp')"


@pytest.mark.parametrize(
    ("dtype", "read_as"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_tables_are_read_in_float32_or_better(dtype, read_as):
    tables, like = NoiseSchedule(1000), torch.zeros(2, 3, dtype=dtype)
    read = tables.table("alpha_bars", like)
    torch.testing.assert_close(read, tables.alpha_bars.to(read_as), rtol=0, atol=0)
    assert tables.table("alpha_bars", like) is read, "read once, then cached"
    assert tables.table("betas", like) is not read
    step = torch.tensor([[0, 3, 999]])
    torch.testing.assert_close(tables.at("betas", step, like), tables.betas[step].unsqueeze(-1).to(read_as))


def test_scales_are_the_roots_of_the_tables():
    tables, step = NoiseSchedule(1000), torch.tensor([[0, 3, 999]])
    for found, squared in zip(tables.scales(step, torch.zeros(1)), ("alpha_bars", "noise_variances"), strict=True):
        expected = getattr(tables, squared)[step].sqrt().float().unsqueeze(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_keep_the_tables_and_drop_the_cache(copied):
    original = NoiseSchedule(40, "cosine")
    cached = original.table("betas", torch.zeros(1))
    other = copied(original)
    assert other._cache == {} and original.table("betas", torch.zeros(1)) is cached
    assert repr(other) == repr(original)
    assert torch.equal(other.betas, original.betas) and other.log_snr(0.3) == original.log_snr(0.3)
    assert torch.equal(other.table("betas", torch.zeros(1)), cached)


def test_tables_first_read_in_inference_mode_still_serve_training():
    tables, action = NoiseSchedule(40), torch.zeros(1, 1, requires_grad=True)
    with torch.inference_mode():
        tables.table("alpha_bars", action)
    (tables.at("alpha_bars", torch.tensor([3]), action).sqrt() * action).sum().backward()
    assert action.grad.item() == pytest.approx(tables.alpha(0.1), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_from_betas_rebuilds_every_table(kind):
    original = NoiseSchedule(30, kind)
    betas = original.betas.clone().requires_grad_()
    custom = NoiseSchedule.from_betas(betas)
    assert (custom.kind, custom.num_steps, custom.betas.requires_grad) == ("custom", 30, False)
    for name in ("betas", "alpha_bars", "noise_variances"):
        assert torch.equal(getattr(custom, name), getattr(original, name))
    for time in (1 / 30, 0.5, 1.0):
        assert custom.log_alpha(time) == pytest.approx(original.log_alpha(time), rel=1e-12)
        assert custom.time_of_log_snr(custom.log_snr(time)) == pytest.approx(time, rel=1e-9)
    with torch.no_grad():
        betas.zero_()
    assert (custom.betas > 0).all(), "it keeps a copy"


def test_from_betas_takes_other_precisions_without_a_warning():
    custom = NoiseSchedule.from_betas(torch.tensor([0.5, 0.25], dtype=torch.float32))  # ends at abar = 0.375
    assert custom.alpha_bars.dtype == torch.float64
    torch.testing.assert_close(custom.alpha_bars, torch.tensor([0.5, 0.375], dtype=torch.float64))
    assert repr(custom) == "NoiseSchedule(num_steps=2, kind='custom')"


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, 0.0], r"custom schedule with num_steps=2 has b\^2 = 0, outside \(0, 1\)\.$"),
        ([1.0], r"b\^1 = 1, outside"),
        ([0.1, math.nan], r"b\^2 = nan, outside"),
        ([], r"shape \[K\] with K at least 1, got \(0,\)"),
        ([[0.1, 0.2]], r"got \(1, 2\)"),
    ],
)
def test_from_betas_refuses(betas, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_betas(torch.tensor(betas))
