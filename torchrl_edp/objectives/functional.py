"""The pieces of the losses as pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from torchrl_edp.diffusion import NoiseSchedule

WeightNormalization = Literal["mean", "softmax"]
StepWeighting = Literal["uniform", "alpha_bar", "snr"]
Aggregation = Literal["min", "mean", "lcb"]
WeightFunction = Literal["exp", "step"]
LossFunction = Literal["l2", "l1", "smooth_l1"]


def aggregate_qvalues(qvalues: Tensor, aggregation: Aggregation = "min", pessimism: float = 1.0) -> Tensor:
    """One value from those of several critics.

    Args:
        qvalues: [E, *B].
        aggregation: ``"min"`` (the paper), ``"mean"``, or ``"lcb"``, a lower confidence bound: mean - pessimism *
            deviation over critics (of the population, so 0 for a single critic).
        pessimism: of ``"lcb"``.

    Returns:
        [*B].

    Examples:
        >>> aggregate_qvalues(torch.tensor([[1.0], [3.0]]), "lcb", pessimism=0.5)
        tensor([1.5000])

    Source: min: Eq. 6 of https://arxiv.org/abs/2305.20081; bound: https://arxiv.org/abs/2110.01548.
    """
    if aggregation == "min":
        return qvalues.amin(0)
    if aggregation == "mean":
        return qvalues.mean(0)
    if aggregation != "lcb":
        raise ValueError(f"qvalue_aggregation must be 'min', 'mean' or 'lcb', got {aggregation!r}.")
    mean = qvalues.mean(0)
    # Not std: its gradient is infinite where critics agree.
    variance = (qvalues - mean).square().mean(0)
    return mean - pessimism * (variance + torch.finfo(qvalues.dtype).tiny).sqrt()


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Asymmetric square of a difference: abs(expectile - 1[x < 0]) x^2.

    Args:
        difference: Q - V, any shape.
        expectile: in (0, 1); above 0.5 it pushes V towards the best of the data.

    Returns:
        A tensor of the same shape.

    Examples:
        >>> expectile_loss(torch.tensor([2.0, -2.0]), 0.75)
        tensor([3., 1.])

    Source: Eq. 22 of https://arxiv.org/abs/2305.20081; https://arxiv.org/abs/2110.06169.
    """
    square = difference.square()
    return torch.where(difference < 0, (1 - expectile) * square, expectile * square)


def advantage_weight(
    advantage: Tensor,
    temperature: float = 1.0,
    cap: float | None = 100.0,
    normalization: WeightNormalization | None = None,
    mask: Tensor | None = None,
    function: WeightFunction = "exp",
) -> Tensor:
    """Weight of a sample in the policy's likelihood: exp(temperature * advantage), capped, then normalised.

    The exponent is capped, not the weight, so that no advantage overflows.

    Args:
        advantage: Q - V, any shape.
        temperature: multiplies the advantage.
        cap: largest weight; None for no cap, or for weights that are not normalised the cube root of the largest
            number (7e12 in float32).
        normalization: None; ``"mean"`` divides by the mean, so that the average weight is 1 and the guidance does not
            drown when all advantages are low; ``"softmax"`` makes the weights sum to 1 (reference code), without cap.
        mask: samples that count, of the shape of ``advantage``; the others get weight 0.
        function: ``"exp"``, or ``"step"``: 1 where the advantage is positive, else 0 (CRR's binary weights; then
            ``temperature`` and ``cap`` have no effect).

    Returns:
        Weights of the shape of ``advantage``, detached.

    Examples:
        >>> advantage_weight(torch.tensor([0.0, 1.0e4]))
        tensor([  1.0000, 100.0000])

    Source: Sec. 4.3 of https://arxiv.org/abs/2305.20081 and its reference code; https://arxiv.org/abs/2006.15134.
    """
    advantage = advantage.detach()
    if function == "step":
        return _normalized((advantage > 0).to(advantage.dtype), normalization, mask)
    largest = torch.finfo(advantage.dtype).max
    if normalization == "softmax" or (cap is None and normalization == "mean"):
        limit = largest
    elif cap is None:
        limit = math.log(largest) / 3  # of larger weights the gradients' squares would overflow
    else:
        limit = math.log(cap)
    exponent = (temperature * advantage).clamp(-largest, limit)
    if mask is not None:
        exponent = torch.where(mask, exponent, -torch.inf)
    if normalization is None:
        return exponent.exp()
    # A softmax is computed relative to the largest exponent, so that very low advantages do not underflow.
    weight = exponent.reshape(-1).softmax(0).view_as(exponent)
    if mask is not None:
        weight = torch.where(mask, weight, 0.0)  # without any valid sample the softmax is NaN
    if normalization == "mean":
        weight = weight * (weight.numel() if mask is None else mask.sum())
    return weight


def _normalized(weight: Tensor, normalization: WeightNormalization | None, mask: Tensor | None) -> Tensor:
    if mask is not None:
        weight = torch.where(mask, weight, 0.0)
    if normalization is None:
        return weight
    share = weight / weight.sum().clamp_min(1.0)  # all 0 if no advantage is positive
    return share if normalization == "softmax" else share * (weight.numel() if mask is None else mask.sum())


def mean_of_each(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of every entry; eagerly all at once if they have one shape, which is fewer calls.

    Examples:
        >>> mean_of_each({"error": torch.tensor([1.0, 3.0]), "value": torch.tensor([2.0, 2.0])})
        {'error': tensor(2.), 'value': tensor(2.)}
    """
    if torch.compiler.is_compiling() or len({value.shape for value in values.values()}) != 1:
        return {name: value.mean() for name, value in values.items()}
    rows = torch.stack(list(values.values())).reshape(len(values), -1)
    return dict(zip(values, rows.mean(1).unbind(), strict=True))


def elbo_weights(schedule: NoiseSchedule, kind: Literal["posterior", "beta", "normalized"] = "posterior") -> Tensor:
    """Weight of the squared noise error in the evidence lower bound, by diffusion step: float64 [K].

    ``"posterior"`` is Eq. 12, b / (2 alpha (1 - abar^{k-1})), with 1 - abar^0 = 0 replaced by 1 - abar^1;
    ``"beta"`` uses the reverse variance b instead: b / (2 alpha (1 - abar^k)); ``"normalized"`` rescales the latter to
    mean 1, as the reference code does.

    Examples:
        >>> elbo_weights(NoiseSchedule(1000), "normalized").mean().round(decimals=6)
        tensor(1., dtype=torch.float64)

    Source: Eq. 12 of https://arxiv.org/abs/2305.20081 and its reference code.
    """
    alpha_bars, betas = schedule.alpha_bars, schedule.betas
    if kind == "posterior":
        alpha_bars = torch.cat([alpha_bars[:1], alpha_bars[:-1]])
    weights = betas / (2 * (1 - betas) * (1 - alpha_bars))
    return weights / weights.mean() if kind == "normalized" else weights


def step_weights(
    schedule: NoiseSchedule,
    weighting: StepWeighting = "uniform",
    limits: tuple[int, int] | None = None,
    max_snr: float = 5.0,
) -> Tensor:
    """Weight of the guidance term by diffusion step: float64 [K].

    An approximated action is only as good as its corrupted start: near step K the error of the noise prediction is
    multiplied by sqrt(1 - abar) / sqrt(abar), beyond 100, and a few such samples dominate the guidance gradient.

    Args:
        schedule: the noise schedule.
        weighting: ``"uniform"`` (the paper), ``"alpha_bar"``, or ``"snr"``: min(abar / (1 - abar), max_snr) / max_snr.
        limits: (first, last) steps in 0..K-1 that are guided, inclusive; all others get weight 0.
        max_snr: truncation of the signal-to-noise ratio.

    Examples:
        >>> step_weights(NoiseSchedule(1000), limits=(0, 499)).sum()
        tensor(500., dtype=torch.float64)
    """
    alpha_bars = schedule.alpha_bars
    if weighting == "uniform":
        weights = torch.ones_like(alpha_bars)
    elif weighting == "alpha_bar":
        weights = alpha_bars.clone()
    elif weighting == "snr":
        weights = (alpha_bars / (1 - alpha_bars)).clamp_max(max_snr) / max_snr
    else:
        raise ValueError(f"guidance_weighting must be one of {get_args(StepWeighting)}, got {weighting!r}.")
    if limits is not None:
        if len(limits) != 2 or not 0 <= limits[0] <= limits[1] < schedule.num_steps:
            raise ValueError(
                "guidance_steps must be None or (first, last) and satisfy 0 <= first <= last < "
                f"{schedule.num_steps}, got {limits}."
            )
        first, last = limits
        steps = torch.arange(schedule.num_steps)
        weights = torch.where((steps >= first) & (steps <= last), weights, 0.0)
    return weights


class StepTable:
    """Look-up of a float64 table [K] by diffusion step, neither parameter nor buffer (trained, or recast, then).

    Args:
        values: the table, float64 [K].

    Examples:
        >>> StepTable(torch.tensor([1.0, 2.0]))(torch.tensor([1, 1, 0]), like=torch.zeros(3))
        tensor([2., 2., 1.])
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._cache: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, diffusion_step: Tensor, like: Tensor) -> Tensor:
        """Entries for ``diffusion_step`` [*B], in the precision and on the device of ``like``."""
        key = (like.device, like.dtype)
        if key not in self._cache:
            values = self.values.to(device=like.device, dtype=like.dtype)
            if torch.compiler.is_compiling():
                return values[diffusion_step]
            self._cache[key] = values
        return self._cache[key][diffusion_step]
