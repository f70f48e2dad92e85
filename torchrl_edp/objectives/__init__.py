"""EDP's losses as TorchRL LossModules."""

from torchrl_edp.objectives.crr import EDPCRRLoss
from torchrl_edp.objectives.diagnostics import guidance_share_by_step
from torchrl_edp.objectives.iql import EDPIQLLoss
from torchrl_edp.objectives.td3 import EDPTD3Loss

__all__ = ["EDPCRRLoss", "EDPIQLLoss", "EDPTD3Loss", "guidance_share_by_step"]
