from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_edp.diffusion import NoiseSchedule

SIZE = 3


def noise_model(noisy_action: Tensor, step: float) -> Tensor:
    """A smooth nonlinear stand-in for a trained network, float64."""
    weight = torch.linspace(-1, 1, SIZE**2, dtype=torch.float64).view(SIZE, SIZE)
    return torch.tanh(noisy_action @ weight + 0.003 * step) + 0.5 * noisy_action


class Mixture:
    """Mixture of two Gaussians per dimension: its exact noise prediction under a schedule."""

    means, deviations, weights = (-0.6, 0.8), (0.3, 0.5), (0.4, 0.6)

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def __call__(self, noisy_action: Tensor, step: float) -> Tensor:
        time = (step + 1) / self.schedule.num_steps
        alpha, sigma = self.schedule.alpha(time), self.schedule.sigma(time)
        logs, scores = [], []
        for mean, deviation, weight in zip(self.means, self.deviations, self.weights, strict=True):
            variance = alpha**2 * deviation**2 + sigma**2
            offset = noisy_action - alpha * mean
            logs.append(math.log(weight) - 0.5 * math.log(variance) - offset**2 / (2 * variance))
            scores.append(-offset / variance)
        shares = torch.stack(logs).softmax(0)
        return -sigma * (shares * torch.stack(scores)).sum(0)


class Gaussian:
    """N(mean, deviation^2): its exact noise prediction and the exact solution of the ODE."""

    def __init__(self, schedule: NoiseSchedule, mean: float, deviation: float) -> None:
        self.schedule, self.mean, self.deviation = schedule, mean, deviation

    def __call__(self, noisy_action: Tensor, step: float) -> Tensor:
        alpha, sigma, spread = self._at((step + 1) / self.schedule.num_steps)
        return sigma * (noisy_action - alpha * self.mean) / spread**2

    def solve(self, noise: Tensor, end: float) -> Tensor:
        """Where the probability-flow ODE takes ``noise`` from time 1 to ``end``."""
        first, _, wide = self._at(1.0)
        last, _, narrow = self._at(end)
        return last * self.mean + narrow / wide * (noise - first * self.mean)

    def _at(self, time: float) -> tuple[float, float, float]:
        alpha, sigma = self.schedule.alpha(time), self.schedule.sigma(time)
        return alpha, sigma, math.sqrt(alpha**2 * self.deviation**2 + sigma**2)
