"""Typed configurations: of the example scripts, and of the losses for TorchRL's own Hydra trees."""

from torchrl_edp.configs.cli import check_overrides
from torchrl_edp.configs.iql import EDPIQLConfig
from torchrl_edp.configs.losses import EDPIQLLossConfig, register_losses

__all__ = ["EDPIQLConfig", "EDPIQLLossConfig", "check_overrides", "register_losses"]
