"""EDP's losses as TorchRL LossModules, and the one feed-forward counterpart that TorchRL has not."""

from torchrl_edp.objectives.crr import EDPCRRLoss
from torchrl_edp.objectives.diagnostics import (
    clipped_share_by_step,
    guidance_share_by_step,
    qvalue_bound,
    qvalue_spread,
    weight_saturation,
)
from torchrl_edp.objectives.feed_forward_crr import CRRLoss
from torchrl_edp.objectives.iql import EDPIQLLoss
from torchrl_edp.objectives.seeds import MultiSeedLoss
from torchrl_edp.objectives.td3 import EDPTD3Loss

__all__ = [
    "CRRLoss",
    "EDPCRRLoss",
    "EDPIQLLoss",
    "EDPTD3Loss",
    "MultiSeedLoss",
    "clipped_share_by_step",
    "guidance_share_by_step",
    "qvalue_bound",
    "qvalue_spread",
    "weight_saturation",
]
