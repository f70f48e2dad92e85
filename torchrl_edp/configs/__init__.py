"""Typed configurations of the example scripts.

``torchrl_edp.configs.losses`` holds the losses' entries for TorchRL's own Hydra groups. It is not imported: it
brings those groups along, which would stand beside every example's settings.
"""

from torchrl_edp.configs.cli import check_overrides
from torchrl_edp.configs.iql import EDPIQLConfig

__all__ = ["EDPIQLConfig", "check_overrides"]
