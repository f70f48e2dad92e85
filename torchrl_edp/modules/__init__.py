"""Networks and TensorDict modules of diffusion policies."""

from torchrl_edp.modules.actor import DiffusionSampler, EDPActor
from torchrl_edp.modules.networks import Mish, NoisePredictionMLP, QValueNetwork, StepEmbedding, ValueNetwork
from torchrl_edp.modules.selection import EnergyBasedActionSelector

__all__ = [
    "DiffusionSampler",
    "EDPActor",
    "EnergyBasedActionSelector",
    "Mish",
    "NoisePredictionMLP",
    "QValueNetwork",
    "StepEmbedding",
    "ValueNetwork",
]
