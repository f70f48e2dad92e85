"""The forward process and its inversions, as pure functions.

Shapes: ``*B`` batch, ``A`` action. Diffusion steps are integers in 0..K-1 (the paper's k - 1).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchrl_edp.diffusion.schedule import NoiseSchedule

Bounds = tuple[float, float] | tuple[Tensor, Tensor]
Variance = Literal["beta", "posterior"]


def add_noise(action: Tensor, noise: Tensor, diffusion_step: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Corrupt a clean action in one step: sqrt(abar) a + sqrt(1 - abar) eps.

    Args:
        action: clean action [*B, A].
        noise: standard normal noise [*B, A].
        diffusion_step: integers [*B] in 0..K-1.
        schedule: the noise schedule.

    Returns:
        The noisy action [*B, A], in the precision of ``action``.

    Examples:
        >>> step = torch.tensor([0, 999])
        >>> add_noise(torch.ones(2, 3), torch.zeros(2, 3), step, NoiseSchedule(1000)).shape
        torch.Size([2, 3])

    Source: Eq. 8 of https://arxiv.org/abs/2305.20081.
    """
    alpha, sigma = schedule.scales(diffusion_step, action)
    return (alpha * action + sigma * noise).to(action.dtype)


def approximate_action(
    noisy_action: Tensor,
    predicted_noise: Tensor,
    diffusion_step: Tensor,
    schedule: NoiseSchedule,
    bounds: Bounds | None = None,
) -> Tensor:
    """Rebuild the clean action from a noisy one with one noise prediction: action approximation.

    Args:
        noisy_action: [*B, A].
        predicted_noise: [*B, A].
        diffusion_step: integers [*B] in 0..K-1.
        schedule: the noise schedule.
        bounds: clip to (low, high), as the reference code does; ``None`` leaves it unclipped, as in the paper.
            Where it clips, the gradient is zero.

    Returns:
        The approximated action [*B, A].

    Examples:
        >>> step, schedule = torch.tensor([3]), NoiseSchedule(1000)
        >>> action, noise = torch.tensor([[0.5]]), torch.tensor([[1.0]])
        >>> noisy = add_noise(action, noise, step, schedule)
        >>> torch.allclose(approximate_action(noisy, noise, step, schedule), action)
        True

    Source: Eq. 9 of https://arxiv.org/abs/2305.20081.
    """
    alpha, sigma = schedule.scales(diffusion_step, noisy_action)
    action = ((noisy_action - sigma * predicted_noise) / alpha).to(noisy_action.dtype)
    return action if bounds is None else clip(action, bounds)


def posterior(
    noisy_action: Tensor,
    clean_action: Tensor,
    diffusion_step: Tensor,
    schedule: NoiseSchedule,
    variance: Variance = "posterior",
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the reverse step q(a^{k-1} given a^k, a^0).

    Args:
        noisy_action: a^k [*B, A].
        clean_action: a^0, or its estimate, [*B, A].
        diffusion_step: integers [*B] in 0..K-1 (k - 1).
        schedule: the noise schedule.
        variance: ``"posterior"`` is the exact (1 - abar^{k-1}) / (1 - abar^k) b^k, the reference's choice;
            ``"beta"`` is b^k, the paper's.

    Returns:
        The mean [*B, A] and the variance [*B, 1].

    Raises:
        ValueError: if ``variance`` is neither of the two.

    Examples:
        >>> step, zeros = torch.tensor([0]), torch.zeros(1, 2)
        >>> mean, variance = posterior(zeros, zeros + 0.5, step, NoiseSchedule(1000))
        >>> mean, float(variance)
        (tensor([[0.5000, 0.5000]]), 0.0)

    Source: Eq. 4 of https://arxiv.org/abs/2305.20081; Eq. 6 and 7 of https://arxiv.org/abs/2006.11239.
    """
    check_variance(variance)
    previous_step, is_first = (diffusion_step - 1).clamp_min(0), (diffusion_step == 0).unsqueeze(-1)
    beta = schedule.at("betas", diffusion_step, noisy_action)
    noise_variance = schedule.at("noise_variances", diffusion_step, noisy_action)
    previous_alpha_bar = torch.where(is_first, 1.0, schedule.at("alpha_bars", previous_step, noisy_action))
    previous_variance = torch.where(is_first, 0.0, schedule.at("noise_variances", previous_step, noisy_action))
    clean_share = previous_alpha_bar.sqrt() * beta / noise_variance
    noisy_share = (1 - beta).sqrt() * previous_variance / noise_variance
    mean = (clean_share * clean_action + noisy_share * noisy_action).to(noisy_action.dtype)
    return mean, beta if variance == "beta" else beta * previous_variance / noise_variance


def check_variance(variance: str) -> None:
    """Refuse the name of a reverse variance that does not exist."""
    if variance not in get_args(Variance):
        raise ValueError(f"variance must be one of {get_args(Variance)}, got {variance!r}.")


def check_bounds(bounds: Any, action_size: int) -> Bounds:
    """Two floats, or two tensors [A] where an entry has bounds of its own, from numbers, arrays, lists or tensors.

    Raises:
        ValueError: if a low bound exceeds its high one, or if they are neither numbers nor of ``action_size`` entries.
    """
    low, high = map(torch.as_tensor, bounds)
    for bound in (low, high):
        if bound.shape not in ((), (action_size,)):
            raise ValueError(f"Bounds must be two numbers or two tensors [{action_size}], got {bounds}.")
    if not bool((low <= high.to(low.device)).all()):
        raise ValueError(f"The low bound is higher than the high bound: {bounds}.")
    if low.ndim == high.ndim == 0:
        return float(bounds[0]), float(bounds[1])
    return low.expand(action_size), high.expand(action_size)


def clip(action: Tensor, bounds: Bounds) -> Tensor:
    """Clip an action [*B, A] to ``(low, high)``: two floats, or two tensors [A] of any precision and device."""
    low, high = bounds
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return action.clamp(low.to(action), high.to(action))
    return action.clamp(*bounds)
