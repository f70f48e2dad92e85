from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import nn

from torchrl_edp.diffusion import NoiseSchedule
from torchrl_edp.modules import EDPActor, NoisePredictionMLP

OBSERVATION, ACTION = 4, 2


def make_network(hidden: int = 16, observation: int = OBSERVATION, action: int = ACTION) -> NoisePredictionMLP:
    return NoisePredictionMLP(observation, action, hidden_sizes=(hidden,))


def make_actor(network: nn.Module | None = None, **options) -> EDPActor:
    options = {"schedule": NoiseSchedule(50, "vp"), "num_calls": 4} | options
    return EDPActor(make_network() if network is None else network, **options)


def make_data(*batch: int, key="observation", **more) -> TensorDict:
    return TensorDict({key: torch.randn(*batch, OBSERVATION), **more}, batch)


class Recorder(nn.Module):
    """A noise network that notes the steps it is asked about."""

    action_size = ACTION

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[torch.Tensor] = []

    def forward(self, noisy_action, diffusion_step, observation):
        self.steps.append(diffusion_step)
        return 0.1 * noisy_action
