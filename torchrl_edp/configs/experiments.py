"""Typed configurations of the example scripts; their defaults are the preset ``default``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from torchrl_edp.configs.signature import loss_fields
from torchrl_edp.objectives import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.objectives.common import EDPLoss
from torchrl_edp.training.settings import ExperimentSettings

# Arguments that a script sets itself, or that concern other pipelines than its own.
_NOT_SETTINGS = (
    "action_spec",
    "bounds",
    "priority_key",
    "delay_actor",
    "delay_qvalue",
    "separate_losses",
    "reduction",
    "scalar_output_mode",
    "deactivate_vmap",
    "use_prioritized_weights",
)


def _loss_settings(loss: type) -> type:
    """A dataclass of the loss's arguments that are settings of an experiment, and the discount."""
    fields: list[Any] = [("gamma", float, field(default=0.99))]
    fields += [item for item in loss_fields(loss) if item[0] not in (*_NOT_SETTINGS, "gamma")]
    return make_dataclass(f"{loss.__name__}Settings", fields, namespace={"__module__": __name__})


EDPIQLLossSettings = _loss_settings(EDPIQLLoss)
EDPTD3LossSettings = _loss_settings(EDPTD3Loss)
EDPCRRLossSettings = _loss_settings(EDPCRRLoss)
LOSSES: dict[type, Callable[..., EDPLoss]] = {
    EDPIQLLossSettings: EDPIQLLoss,
    EDPTD3LossSettings: EDPTD3Loss,
    EDPCRRLossSettings: EDPCRRLoss,
}


@dataclass
class EDPIQLConfig(ExperimentSettings):
    """Everything ``examples/edp_iql.py`` can be told."""

    loss: Any = field(default_factory=EDPIQLLossSettings)


@dataclass
class EDPTD3Config(ExperimentSettings):
    """Everything ``examples/edp_td3.py`` can be told."""

    loss: Any = field(default_factory=EDPTD3LossSettings)


@dataclass
class EDPCRRConfig(ExperimentSettings):
    """Everything ``examples/edp_crr.py`` can be told."""

    loss: Any = field(default_factory=EDPCRRLossSettings)


EXPERIMENTS: dict[str, type[ExperimentSettings]] = {
    "edp_iql": EDPIQLConfig,
    "edp_td3": EDPTD3Config,
    "edp_crr": EDPCRRConfig,
}
