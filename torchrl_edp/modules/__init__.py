"""Networks and TensorDict modules of diffusion policies."""

from torchrl_edp.modules.actor import EDPActor
from torchrl_edp.modules.adapter import ScoreNetworkAdapter, as_edp_actor
from torchrl_edp.modules.feed_forward import tanh_actor, tanh_gaussian_actor
from torchrl_edp.modules.frozen import FrozenPolicy
from torchrl_edp.modules.fused import fused_sampling
from torchrl_edp.modules.fused_mlp import fused_networks
from torchrl_edp.modules.mish import Mish
from torchrl_edp.modules.networks import NoisePredictionMLP, QValueNetwork, StepEmbedding, ValueNetwork
from torchrl_edp.modules.sampler import DiffusionSampler
from torchrl_edp.modules.selection import EnergyBasedActionSelector

__all__ = [
    "DiffusionSampler",
    "EDPActor",
    "EnergyBasedActionSelector",
    "FrozenPolicy",
    "Mish",
    "NoisePredictionMLP",
    "QValueNetwork",
    "ScoreNetworkAdapter",
    "StepEmbedding",
    "ValueNetwork",
    "as_edp_actor",
    "fused_networks",
    "fused_sampling",
    "tanh_actor",
    "tanh_gaussian_actor",
]
