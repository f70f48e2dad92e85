"""Typed configurations of the example scripts."""

from torchrl_edp.configs.cli import check_overrides
from torchrl_edp.configs.iql import EDPIQLConfig

__all__ = ["EDPIQLConfig", "check_overrides"]
