"""Samplers: from noise to a clean action, by a model that predicts noise.

Every solver is a function of (model, noise, schedule) with the same options:

- ``model(noisy_action, diffusion_step)`` predicts the noise [*B, A]; ``diffusion_step`` is a Python float in 0..K-1,
  t K - 1 at time t, fractional between the steps the model was trained on;
- ``noise`` [*B, A] is a^K, drawn by the caller; ``initial_noise_scale`` multiplies it (App. C.4, "low-noise start");
- ``num_calls`` is the number of model calls (nfe);
- ``bounds`` clips the action implied by every noise prediction to (low, high), and the noise with it;
- ``policy_scale`` multiplies the predicted noise (App. C.4, "policy scaling").

Coefficients are Python floats computed in float64, nothing is detached and no tensor decides a branch: solvers
differentiate, compile to one graph and export.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from torchrl_edp.diffusion.process import Bounds, Variance, check_variance, clip
from torchrl_edp.diffusion.schedule import NoiseSchedule

Model = Callable[[Tensor, float], Tensor]
Spacing = Literal["time", "log_snr"]


def ddpm(  # noqa: D417
    model: Model,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    num_calls: int | None = None,
    bounds: Bounds | None = None,
    initial_noise_scale: float = 1.0,
    policy_scale: float = 1.0,
    variance: Variance = "posterior",
    step_noise: Tensor | None = None,
) -> Tensor:
    """Ancestral sampling over all K steps: DDPM.

    Args:
        model, noise, schedule, bounds, initial_noise_scale, policy_scale: see the module's docstring.
        num_calls: K or None; DDPM skips no step.
        variance: ``"posterior"`` (reference code) or ``"beta"`` (the paper's b^k) for the reverse step.
        step_noise: [K - 1, *B, A], what is added after each call but the last; ``None`` draws it.

    Returns:
        The action [*B, A].

    Examples:
        >>> ddpm(lambda action, step: action, torch.zeros(2, 3), NoiseSchedule(50)).shape
        torch.Size([2, 3])

    Source: Eq. 4 of https://arxiv.org/abs/2305.20081; https://arxiv.org/abs/2006.11239.
    """
    steps = schedule.num_steps
    if num_calls not in (None, steps):
        raise ValueError(f"ddpm takes one call per diffusion step: expected num_calls={steps}, got {num_calls}.")
    check_variance(variance)
    action = initial_noise_scale * noise
    for i in range(steps):
        time, previous = (steps - i) / steps, (steps - i - 1) / steps
        _, clean = _predict(model, action, time, schedule, bounds, policy_scale)
        beta = float(schedule.betas[steps - i - 1])
        remaining = schedule.sigma(previous) ** 2 / schedule.sigma(time) ** 2
        action = (
            schedule.alpha(previous) * beta / schedule.sigma(time) ** 2 * clean
            + math.sqrt(1 - beta) * remaining * action
        )
        if i < steps - 1:
            deviation = math.sqrt(beta if variance == "beta" else beta * remaining)
            action = action + deviation * _draw(step_noise, i, action)
    return action


def ddim(  # noqa: D417
    model: Model,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    num_calls: int = 15,
    bounds: Bounds | None = None,
    initial_noise_scale: float = 1.0,
    policy_scale: float = 1.0,
    eta: float = 0.0,
    end_time: float = 0.0,
    step_noise: Tensor | None = None,
) -> Tensor:
    """DDIM on a uniform grid of times: deterministic with ``eta`` 0, DDPM's posterior sampler with 1 and all K steps.

    Args:
        model, noise, schedule, num_calls, bounds, initial_noise_scale, policy_scale: see the module's docstring.
        eta: share of the posterior deviation that is injected at each step, in [0, 1].
        end_time: time of the result: 0 ends at the predicted clean action; 1 / K stops where DPM-Solver does.
        step_noise: [num_calls, *B, A] (or one fewer: none is added at time 0), used when ``eta`` > 0.

    Returns:
        The action [*B, A].

    Examples:
        >>> ddim(lambda action, step: action, torch.zeros(2, 3), NoiseSchedule(1000)).shape
        torch.Size([2, 3])

    Source: https://arxiv.org/abs/2010.02502.
    """
    times = _uniform_times(num_calls, end_time)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    action = initial_noise_scale * noise
    for i in range(num_calls):
        predicted, clean = _predict(model, action, times[i], schedule, bounds, policy_scale)
        alpha, sigma = schedule.alpha(times[i + 1]), schedule.sigma(times[i + 1])
        ratio = schedule.alpha(times[i]) / alpha
        deviation = eta * sigma / schedule.sigma(times[i]) * math.sqrt(1 - ratio**2)
        action = alpha * clean + math.sqrt(sigma**2 - deviation**2) * predicted
        if deviation > 0:
            action = action + deviation * _draw(step_noise, i, action)
    return action


def dpm_solver(  # noqa: D417
    model: Model,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    num_calls: int = 15,
    bounds: Bounds | None = None,
    initial_noise_scale: float = 1.0,
    policy_scale: float = 1.0,
    order: int = 3,
    spacing: Spacing = "time",
    end_time: float | None = None,
) -> Tensor:
    """Single-step DPM-Solver of order 1 to 3, the paper's sampler.

    ``num_calls`` is spent in steps of the highest order; what remains goes to one or two steps of lower order (see
    :func:`plan_orders`). The steps end at the points of a uniform grid of ``num_calls`` intervals. Order 3 costs
    three calls per step; use it with 9 calls or more, below that order 2 or :func:`dpm_solver_pp` is more accurate.

    Args:
        model, noise, schedule, num_calls, bounds, initial_noise_scale, policy_scale: see the module's docstring.
        order: 1, 2 or 3. The paper uses 3.
        spacing: grid uniform in ``"time"`` (reference code) or in ``"log_snr"``.
        end_time: last time, 1 / K by default: the first step the model has seen.

    Returns:
        The action [*B, A], at ``end_time`` (it still holds sigma(end_time) of the predicted noise).

    Raises:
        ValueError: if ``order``, ``num_calls`` or ``end_time`` is out of range.

    Examples:
        >>> dpm_solver(lambda action, step: action, torch.zeros(2, 3), NoiseSchedule(1000)).shape
        torch.Size([2, 3])

    Source: Algorithms 1 and 2 of https://arxiv.org/abs/2206.00927, orders planned as in the EDP reference code.
    """
    times = _times(schedule, num_calls, end_time, spacing)
    if times[-1] <= 0:
        raise ValueError(f"dpm_solver integrates over the log-SNR, infinite at time 0: got end_time={end_time}.")
    action = initial_noise_scale * noise
    done = 0
    for step_order in plan_orders(num_calls, order):
        start, end = times[done], times[done + step_order]
        action = _dpm_step(model, action, start, end, step_order, schedule, bounds, policy_scale)
        done += step_order
    return action


def dpm_solver_pp(  # noqa: D417
    model: Model,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    num_calls: int = 15,
    bounds: Bounds | None = None,
    initial_noise_scale: float = 1.0,
    policy_scale: float = 1.0,
    spacing: Spacing = "time",
    end_time: float | None = None,
) -> Tensor:
    """Multistep DPM-Solver++ of order 2 (2M): one call per step, the previous prediction is reused.

    Args:
        model, noise, schedule, num_calls, bounds, initial_noise_scale, policy_scale: see the module's docstring.
        spacing: grid uniform in ``"time"`` or in ``"log_snr"``.
        end_time: last time, 1 / K by default; 0 ends at the last predicted clean action.

    Returns:
        The action [*B, A].

    Examples:
        >>> dpm_solver_pp(lambda action, step: action, torch.zeros(2, 3), NoiseSchedule(1000), num_calls=8).shape
        torch.Size([2, 3])

    Source: Algorithm 2 of https://arxiv.org/abs/2211.01095.
    """
    times = _times(schedule, num_calls, end_time, spacing)
    action = initial_noise_scale * noise
    last_clean, last_width = None, 0.0
    for start, end in zip(times, times[1:], strict=False):
        _, clean = _predict(model, action, start, schedule, bounds, policy_scale)
        if end <= 0:
            return clean
        width = schedule.log_snr(end) - schedule.log_snr(start)
        slope = clean
        if last_clean is not None:
            share = width / (2 * last_width)
            slope = (1 + share) * clean - share * last_clean
        action = schedule.sigma(end) / schedule.sigma(start) * action - schedule.alpha(end) * math.expm1(-width) * slope
        last_clean, last_width = clean, width
    return action


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "dpm_solver_pp": dpm_solver_pp,
}


def plan_orders(num_calls: int, order: int) -> list[int]:
    """Orders of the single steps that use ``num_calls`` calls in all.

    Order 3: all threes, then 2, 1 (num_calls divisible by 3), 1 (remainder 1) or 2 (remainder 2). Order 2: all twos,
    and a 1 when odd. Source: https://arxiv.org/abs/2206.00927, App. D, and the EDP reference code.

    Examples:
        >>> plan_orders(15, 3)
        [3, 3, 3, 3, 2, 1]
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}.")
    if num_calls < 1:
        raise ValueError(f"num_calls must be at least 1, got {num_calls}.")
    if order == 3 and num_calls >= 3 and num_calls % 3 == 0:
        return [3] * (num_calls // 3 - 1) + [2, 1]
    return [order] * (num_calls // order) + [num_calls % order] * (num_calls % order > 0)


def _dpm_step(
    model: Model,
    action: Tensor,
    start: float,
    end: float,
    order: int,
    schedule: NoiseSchedule,
    bounds: Bounds | None,
    policy_scale: float,
) -> Tensor:
    """One DPM-Solver step of the given order from ``start`` to ``end``."""
    start_snr = schedule.log_snr(start)
    width = schedule.log_snr(end) - start_snr
    first, _ = _predict(model, action, start, schedule, bounds, policy_scale)

    def advance(time: float, share: float) -> Tensor:
        """The first-order step to ``time``, ``share`` of the width away."""
        ratio = schedule.alpha(time) / schedule.alpha(start)
        return ratio * action - schedule.sigma(time) * math.expm1(share * width) * first

    def difference(at: Tensor, time: float) -> Tensor:
        return _predict(model, at, time, schedule, bounds, policy_scale)[0] - first

    if order == 1:
        return advance(end, 1.0)
    share = 1 / order
    middle = schedule.time_of_log_snr(start_snr + share * width)
    change = difference(advance(middle, share), middle)
    if order == 2:
        return advance(end, 1.0) - schedule.sigma(end) * math.expm1(width) * change
    late = schedule.time_of_log_snr(start_snr + 2 * share * width)
    at_late = advance(late, 2 * share) - 2 * schedule.sigma(late) * _second_phi(2 * share * width) * change
    change = difference(at_late, late)
    return advance(end, 1.0) - schedule.sigma(end) / (2 * share) * _second_phi(width) * change


def _second_phi(width: float) -> float:
    return math.expm1(width) / width - 1


def _predict(
    model: Model, action: Tensor, time: float, schedule: NoiseSchedule, bounds: Bounds | None, policy_scale: float
) -> tuple[Tensor, Tensor]:
    """The predicted noise and the clean action it implies, both clipped to ``bounds``."""
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    predicted = model(action, time * schedule.num_steps - 1)
    if policy_scale != 1:
        predicted = policy_scale * predicted
    clean = (action - sigma * predicted) / alpha
    if bounds is None:
        return predicted, clean
    clean = clip(clean, bounds)
    return (action - alpha * clean) / sigma, clean


def _draw(step_noise: Tensor | None, index: int, like: Tensor) -> Tensor:
    return torch.randn_like(like) if step_noise is None else step_noise[index]


def _uniform_times(num_calls: int | None, end_time: float) -> list[float]:
    if num_calls is None or num_calls < 1:
        raise ValueError(f"num_calls must be at least 1, got {num_calls}.")
    if not 0 <= end_time < 1:
        raise ValueError(f"end_time must lie in [0, 1), got {end_time}.")
    return [1 + (end_time - 1) * i / num_calls for i in range(num_calls + 1)]


def _times(schedule: NoiseSchedule, num_calls: int, end_time: float | None, spacing: Spacing) -> list[float]:
    """``num_calls + 1`` times from 1 down to ``end_time``, 1 / K by default."""
    if end_time is None:
        if schedule.num_steps == 1:
            raise ValueError("K = 1 leaves nothing to solve down to time 1 / K: choose ddim, ddpm or more steps.")
        end_time = schedule.end_time
    times = _uniform_times(num_calls, end_time)
    if spacing not in ("time", "log_snr"):
        raise ValueError(f"spacing must be 'time' or 'log_snr', got {spacing!r}.")
    if spacing == "time" or num_calls == 1:
        return times
    # The log-SNR is infinite at time 0: the grid then ends at 1 / K, and one last step goes to the clean action.
    last = schedule.log_snr(end_time or schedule.end_time)
    intervals = num_calls if end_time > 0 else num_calls - 1
    first = schedule.log_snr(1.0)
    inner = [schedule.time_of_log_snr(first + (last - first) * i / intervals) for i in range(1, intervals)]
    return [1.0, *inner, *([end_time] if end_time > 0 else [schedule.end_time, 0.0])]
