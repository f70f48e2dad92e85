"""Sampling part of the way: from corrupted actions, each at a diffusion step of its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from torchrl_edp.diffusion.process import Bounds, add_noise, approximate_action
from torchrl_edp.diffusion.schedule import NoiseSchedule


def ddim_from_step(
    model: Callable[[Tensor, Tensor], Tensor],
    noisy_action: Tensor,
    diffusion_step: Tensor,
    schedule: NoiseSchedule,
    *,
    num_calls: int = 1,
    bounds: Bounds | None = None,
    predicted_noise: Tensor | None = None,
) -> Tensor:
    """Rebuild clean actions from noisy ones by ``num_calls`` deterministic DDIM steps: action approximation and beyond.

    One call is the action approximation of Eq. 9. With m calls, the steps left to every sample are divided into m equal
    parts (rounded up to whole steps), so that actions corrupted heavily and lightly take the same number of calls.

    Args:
        model: ``model(noisy_action [*B, A], diffusion_step [*B])`` predicts the noise [*B, A].
        noisy_action: [*B, A].
        diffusion_step: the steps of ``noisy_action``, integers [*B] in 0..K-1.
        schedule: the noise schedule.
        num_calls: number of model calls m.
        bounds: clip every implied clean action to (low, high); None for no clipping.
        predicted_noise: the model's output for the first call, if it is known already.

    Returns:
        The clean action [*B, A], differentiable.

    Raises:
        ValueError: if ``num_calls`` is less than 1.

    Examples:
        >>> import torch
        >>> action, step = torch.randn(4, 3), torch.tensor([0, 10, 500, 999])
        >>> ddim_from_step(lambda noisy, step: noisy, action, step, NoiseSchedule(1000), num_calls=3).shape
        torch.Size([4, 3])

    Source: Eq. 9 of https://arxiv.org/abs/2305.20081; https://arxiv.org/abs/2010.02502.
    """
    if num_calls < 1:
        raise ValueError(f"num_calls must be at least 1, got {num_calls}.")
    noisy, step = noisy_action, diffusion_step
    predicted = model(noisy, step) if predicted_noise is None else predicted_noise
    clean = approximate_action(noisy, predicted, step, schedule, bounds)
    for left in range(num_calls - 1, 0, -1):
        if bounds is not None:
            predicted = _implied_noise(noisy, clean, step, schedule)
        step = ((diffusion_step + 1) * left + num_calls - 1) // num_calls - 1
        noisy = add_noise(clean, predicted, step, schedule)
        predicted = model(noisy, step)
        clean = approximate_action(noisy, predicted, step, schedule, bounds)
    return clean


def _implied_noise(noisy: Tensor, clean: Tensor, step: Tensor, schedule: NoiseSchedule) -> Tensor:
    alpha, sigma = schedule.scales(step, noisy)
    return ((noisy - alpha * clean) / sigma).to(noisy.dtype)
