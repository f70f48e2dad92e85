"""Noise schedules: how much of the clean action is left at every diffusion step."""

from __future__ import annotations

import bisect
import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

ScheduleKind = Literal["linear", "cosine", "vp"]


class NoiseSchedule:
    """The variance schedule b^1..b^K and everything derived from it.

    Diffusion step ``i`` in ``0..K-1`` is the paper's k - 1, and lives at time ``t = (i + 1) / K``. Tables are
    float64 on the CPU and are read at the precision and on the device of the data. They are deliberately
    neither parameters nor buffers: a schedule is a constant, not state of a network.

    The continuous view (``alpha``, ``sigma``, ``log_snr``, ``time_of_log_snr``) serves ODE solvers. It takes and
    returns Python floats, so that solver coefficients are computed once, in float64. For ``vp`` it is the closed form;
    for the others log(alpha) is interpolated linearly between steps.

    Args:
        num_steps: number of diffusion steps K. The paper trains with 1000.
        kind: ``"linear"`` (b from 1e-4 to 0.02, scaled by 1000 / K), ``"cosine"`` or ``"vp"`` (rate 0.1 to 10).

    Raises:
        ValueError: if ``num_steps`` is not positive, ``kind`` is unknown, or some b^k leaves (0, 1).

    Examples:
        >>> schedule = NoiseSchedule(1000)
        >>> schedule.alpha_bars.shape
        torch.Size([1000])
        >>> schedule.end_time
        0.001

    Source: Eq. 1 of https://arxiv.org/abs/2305.20081; linear: https://arxiv.org/abs/2006.11239; cosine:
    https://arxiv.org/abs/2102.09672; vp: https://arxiv.org/abs/2112.07804.
    """

    def __init__(self, num_steps: int = 1000, kind: ScheduleKind = "linear") -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        if kind not in _BETAS:
            raise ValueError(f"Unknown schedule kind {kind!r}: choose one of {sorted(_BETAS)}.")
        self._set(_BETAS[kind](num_steps), kind)
        if self.alpha_bars[-1] > 0.01:
            warnings.warn(
                f"The {kind} schedule with num_steps={num_steps} ends at abar_K = {float(self.alpha_bars[-1]):.3g} "
                "> 0.01: noised actions keep a trace of the clean action, while sampling starts from pure noise.",
                stacklevel=2,
            )

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """A schedule of given variances b^1..b^K [K], each in (0, 1); its ``kind`` is ``"custom"``.

        Examples:
            >>> NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 100))
            NoiseSchedule(num_steps=100, kind='custom')
        """
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas must have shape [K] with K at least 1, got {tuple(betas.shape)}.")
        schedule = cls.__new__(cls)
        schedule._set(betas.detach().to("cpu", torch.float64, copy=True), "custom")
        return schedule

    def _set(self, betas: Tensor, kind: str) -> None:
        num_steps = len(betas)
        self.num_steps = num_steps
        self.kind = kind
        self.betas = betas
        outside = (~((self.betas > 0) & (self.betas < 1))).nonzero()
        if len(outside):
            first = int(outside[0])
            raise ValueError(
                f"The {kind} schedule with num_steps={num_steps} has b^{first + 1} = {float(self.betas[first]):.4g}, "
                "outside (0, 1)." + (" It needs num_steps > 20; use kind='vp' for fewer." if kind == "linear" else "")
            )
        self._log_alphas = [0.0, *(0.5 * torch.log1p(-self.betas).cumsum(0)).tolist()]
        log_alpha_bars = torch.tensor(self._log_alphas[1:], dtype=torch.float64).mul(2)
        self.alpha_bars = log_alpha_bars.exp()
        # A table of its own: 1 - abar^1 computed in float32 would be off by 2e-4.
        self.noise_variances = -log_alpha_bars.expm1()
        self.scales_by_step = torch.stack([self.alpha_bars, self.noise_variances], -1).sqrt()
        self._cache: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def __repr__(self) -> str:
        return f"NoiseSchedule(num_steps={self.num_steps}, kind={self.kind!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}

    def table(self, name: str, like: Tensor) -> Tensor:
        """A table on the device of ``like``, in its precision (float32 at least).

        ``name`` is ``"betas"``, ``"alpha_bars"``, ``"noise_variances"`` (1 - abar) or ``"scales_by_step"`` [K, 2].
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (name, like.device, dtype)
        if key not in self._cache:
            values = getattr(self, name).to(device=like.device, dtype=dtype)
            if torch.compiler.is_compiling():
                return values
            self._cache[key] = values
        return self._cache[key]

    def at(self, name: str, diffusion_step: Tensor, like: Tensor) -> Tensor:
        """Entries of a table for each element: ``diffusion_step`` [*B] in 0..K-1 gives [*B, 1]."""
        return self.table(name, like)[diffusion_step].unsqueeze(-1)

    def scales(self, diffusion_step: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The shares sqrt(abar) of the clean action and sqrt(1 - abar) of the noise, each [*B, 1], at steps [*B]."""
        alpha, sigma = self.table("scales_by_step", like)[diffusion_step].chunk(2, -1)
        return alpha, sigma

    @property
    def end_time(self) -> float:
        """The time 1 / K of the first diffusion step, where ODE solvers stop."""
        return 1 / self.num_steps

    @torch.compiler.assume_constant_result
    def log_alpha(self, time: float) -> float:
        """log(alpha(t)) = log(abar(t)) / 2 at a time in [0, 1]."""
        if self.kind == "vp":
            return -0.5 * (_VP_MIN * time + 0.5 * (_VP_MAX - _VP_MIN) * time**2)
        position = min(max(time * self.num_steps, 0.0), float(self.num_steps))
        low = min(int(position), self.num_steps - 1)
        left, right = self._log_alphas[low], self._log_alphas[low + 1]
        return left + (position - low) * (right - left)

    def alpha(self, time: float) -> float:
        """The share sqrt(abar(t)) of the clean action at a time in [0, 1]."""
        return math.exp(self.log_alpha(time))

    def sigma(self, time: float) -> float:
        """The share sqrt(1 - abar(t)) of the noise at a time in [0, 1]."""
        return math.sqrt(-math.expm1(2 * self.log_alpha(time)))

    def log_snr(self, time: float) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma), at a time in (0, 1]."""
        return self.log_alpha(time) - math.log(self.sigma(time))

    @torch.compiler.assume_constant_result
    def time_of_log_snr(self, log_snr: float) -> float:
        """The time at which ``log_snr`` is reached: the inverse of :meth:`log_snr`."""
        log_alpha = -0.5 * (max(-2 * log_snr, 0.0) + math.log1p(math.exp(-abs(2 * log_snr))))
        if self.kind == "vp":
            slope = _VP_MAX - _VP_MIN
            return -4 * log_alpha / (_VP_MIN + math.sqrt(_VP_MIN**2 - 4 * slope * log_alpha))
        right = bisect.bisect_left(self._log_alphas, -log_alpha, key=lambda value: -value)
        right = min(max(right, 1), self.num_steps)
        high, low = self._log_alphas[right - 1], self._log_alphas[right]
        return (right - 1 + (high - log_alpha) / (high - low)) / self.num_steps


_VP_MIN, _VP_MAX = 0.1, 10.0


def _linear_betas(num_steps: int) -> Tensor:
    scale = 1000 / num_steps
    if num_steps == 1:
        return torch.tensor([0.02 * scale], dtype=torch.float64)  # linspace would take the first value, not the last
    return torch.linspace(1e-4 * scale, 0.02 * scale, num_steps, dtype=torch.float64)


def _cosine_betas(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    times = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bars = torch.cos((times + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=max_beta)


def _vp_betas(num_steps: int) -> Tensor:
    steps = torch.arange(1, num_steps + 1, dtype=torch.float64)
    rate = _VP_MIN / num_steps + 0.5 * (_VP_MAX - _VP_MIN) * (2 * steps - 1) / num_steps**2
    return -torch.expm1(-rate)


_BETAS = {"linear": _linear_betas, "cosine": _cosine_betas, "vp": _vp_betas}
