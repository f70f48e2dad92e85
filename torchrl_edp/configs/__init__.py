"""Typed configurations of the example scripts.

``torchrl_edp.configs.losses`` holds the losses' entries for TorchRL's own Hydra groups. It is not imported: it
brings those groups along, which would stand beside every example's settings.
"""

from torchrl_edp.configs.checks import check_settings
from torchrl_edp.configs.cli import check_overrides, launch, start
from torchrl_edp.configs.experiments import EXPERIMENTS, FEED_FORWARD, SCHEMAS, EDPCRRConfig, EDPIQLConfig, EDPTD3Config
from torchrl_edp.configs.feed_forward import chosen_algorithm
from torchrl_edp.configs.presets import apply_preset, domain_of, preset_values

__all__ = [
    "EXPERIMENTS",
    "FEED_FORWARD",
    "SCHEMAS",
    "EDPCRRConfig",
    "EDPIQLConfig",
    "EDPTD3Config",
    "apply_preset",
    "check_overrides",
    "check_settings",
    "chosen_algorithm",
    "domain_of",
    "launch",
    "preset_values",
    "start",
]
