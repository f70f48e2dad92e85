"""Scaling of actions and observations. Both travel with the policy: their numbers are buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchrl_edp.data.checks import as_bounds, problem


class ActionScaler(nn.Module):
    """Maps actions from their box to [-1, 1], where the policy lives, and back.

    Args:
        low: lower bounds ``[A]``.
        high: upper bounds ``[A]``.

    Raises:
        DatasetError: where a bound is infinite, or not low < high.

    Examples:
        >>> import torch
        >>> from torchrl_edp.data import ActionScaler
        >>> scaler = ActionScaler([-2.0, 0.0], [2.0, 10.0])
        >>> scaler(torch.tensor([1.0, 10.0])), scaler.inverse(torch.tensor([0.5, 1.0]))
        (tensor([0.5000, 1.0000]), tensor([ 1., 10.]))
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, low: Any, high: Any) -> None:
        super().__init__()
        low, high = (torch.from_numpy(bound).double() for bound in as_bounds(low, high))
        self.register_buffer("center", ((high + low) / 2).float())
        self.register_buffer("half_range", ((high - low) / 2).float())

    def forward(self, action: Tensor) -> Tensor:
        """The environment's actions ``[*B, A]`` in [-1, 1]."""
        return (action - self.center) / self.half_range

    def inverse(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1] ``[*B, A]`` as the environment takes them."""
        return self.center + self.half_range * action


class ObservationNormalizer(nn.Module):
    """Shifts and scales observations: ``(observation - loc) / scale``.

    Args:
        loc: ``[O]``.
        scale: ``[O]``, positive.

    Examples:
        >>> import torch
        >>> from torchrl_edp.data import ObservationNormalizer
        >>> normalizer = ObservationNormalizer.from_data(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        >>> normalizer(torch.tensor([2.0, 6.0])).round(decimals=2)
        tensor([1., 1.])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Any, scale: Any) -> None:
        super().__init__()
        self.register_buffer("loc", torch.as_tensor(loc, dtype=torch.float32).clone())
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32).clone())
        if self.loc.ndim != 1 or self.loc.shape != self.scale.shape:
            got = f"{list(self.loc.shape)} and {list(self.scale.shape)}"
            raise problem("loc and scale", "one shape [O]", got, "Give one number per observation entry.")
        good = self.loc.isfinite() & self.scale.isfinite() & (self.scale > 0)
        if not good.all():
            i = int(good.int().argmin())
            got = f"loc {self.loc[i].item()}, scale {self.scale[i].item()}"
            remedy = "Check the observations they come from."
            raise problem(f"loc and scale of entry {i}", "finite numbers, scale > 0", got, remedy)

    @classmethod
    def from_data(cls, observations: Tensor, eps: float = 1e-3) -> ObservationNormalizer:
        """Mean and deviation (plus ``eps``) of ``observations [N, O]``.

        A column that never changes in the data, but for rounding, is shifted and not scaled (unless even its
        rounding exceeds 1): dividing by ``eps`` alone would blow up the first deviation that the policy meets.

        Raises:
            DatasetError: where there are no rows, or they are not finite, or ``eps`` is negative.
        """
        if not isinstance(observations, Tensor) or observations.ndim != 2 or not len(observations):
            got = f"shape {list(observations.shape)}" if isinstance(observations, Tensor) else repr(type(observations))
            raise problem("observations", "a tensor [N, O], N > 0", got, "Give transitions['observation'].")
        if not (finite := observations.isfinite().all(1)).all():
            remedy = "Repair the row, or remove its episode."
            raise problem("observations", "finite numbers", "NaN or infinity", remedy, int(finite.int().argmin()))
        if not eps >= 0:
            raise problem("eps", "a number >= 0", str(eps), "Leave it out: the default is 1e-3.")
        values = observations.double()
        loc, std = values.mean(0), values.std(0, correction=0)
        constant = std <= 1e-6 * loc.abs().clamp_min(1)
        return cls(loc, torch.where(constant, std.clamp_min(1), std + eps))

    @classmethod
    def identity(cls, size: int) -> ObservationNormalizer:
        """Leaves observations of ``size`` entries as they are."""
        return cls(torch.zeros(size), torch.ones(size))

    def forward(self, observation: Tensor) -> Tensor:
        """Raw observations ``[*B, O]`` normalised."""
        return (observation - self.loc) / self.scale

    def inverse(self, observation: Tensor) -> Tensor:
        """Normalised observations ``[*B, O]`` back in the environment's units."""
        return observation * self.scale + self.loc
