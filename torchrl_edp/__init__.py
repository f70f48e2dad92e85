"""Efficient diffusion policies for offline reinforcement learning, as TorchRL modules and losses."""

from torchrl_edp.diffusion import NoiseSchedule
from torchrl_edp.modules import EDPActor, EnergyBasedActionSelector
from torchrl_edp.objectives import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss

__all__ = [
    "EDPActor",
    "EDPCRRLoss",
    "EDPIQLLoss",
    "EDPTD3Loss",
    "EnergyBasedActionSelector",
    "NoiseSchedule",
]
__version__ = "0.1.0"
