"""EDP's losses as TorchRL LossModules."""

from torchrl_edp.objectives.iql import EDPIQLLoss

__all__ = ["EDPIQLLoss"]
