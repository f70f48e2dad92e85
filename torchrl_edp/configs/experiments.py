"""Typed configurations of the example scripts; their defaults are the preset ``default``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any, get_args

from torchrl_edp.configs.signature import loss_fields
from torchrl_edp.objectives import CRRLoss, EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.objectives.common import EDPLoss
from torchrl_edp.objectives.functional import LossFunction
from torchrl_edp.training.build import DiffusionSettings, choice
from torchrl_edp.training.settings import (
    ALGORITHMS,
    DataSettings,
    ExperimentSettings,
    FeedForwardOptimSettings,
    FeedForwardSettings,
    PolicySettings,
    RunSettings,
)

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


def _several_steps() -> DataSettings:
    """For critics that ask what the policy would do next: one step says too little of it (examples/results)."""
    return DataSettings(return_steps=10)


@dataclass
class EDPIQLConfig(ExperimentSettings):
    """Everything ``examples/edp_iql.py`` can be told."""

    loss: Any = field(default_factory=EDPIQLLossSettings)


@dataclass
class _SelectingSettings(ExperimentSettings):
    """Acting by one of ten candidates, as in the paper, and critics that can tell them apart (examples/results)."""

    diffusion: DiffusionSettings = field(
        default_factory=lambda: replace(ExperimentSettings().diffusion, initial_noise_scale=1.0)
    )
    policy: PolicySettings = field(default_factory=lambda: PolicySettings(num_action_samples=10))
    data: DataSettings = field(default_factory=_several_steps)


@dataclass
class EDPTD3Config(_SelectingSettings):
    """Everything ``examples/edp_td3.py`` can be told."""

    loss: Any = field(default_factory=EDPTD3LossSettings)


@dataclass
class EDPCRRConfig(_SelectingSettings):
    """Everything ``examples/edp_crr.py`` can be told."""

    loss: Any = field(default_factory=EDPCRRLossSettings)


EXPERIMENTS: dict[str, type[ExperimentSettings]] = {
    "edp_iql": EDPIQLConfig,
    "edp_td3": EDPTD3Config,
    "edp_crr": EDPCRRConfig,
}


@dataclass
class TD3BCLossSettings:
    """Arguments of ``torchrl.objectives.TD3BCLoss``. Defaults: the paper's, https://arxiv.org/abs/2106.06860."""

    gamma: float = 0.99
    num_qvalue_nets: int = 2
    loss_function: str = choice("l2", get_args(LossFunction))
    alpha: float = 2.5
    policy_noise: float = 0.2
    noise_clip: float = 0.5


@dataclass
class IQLLossSettings:
    """Arguments of ``torchrl.objectives.IQLLoss``. Defaults: the paper's, https://arxiv.org/abs/2110.06169."""

    gamma: float = 0.99
    num_qvalue_nets: int = 2
    loss_function: str = choice("l2", get_args(LossFunction))
    temperature: float = 3.0
    expectile: float = 0.7


@dataclass
class BCLossSettings:
    """Behaviour cloning has none."""


CRRLossSettings = _loss_settings(CRRLoss)


@dataclass
class TD3BCConfig(FeedForwardSettings):
    """Everything ``examples/feed_forward.py algorithm=td3_bc`` can be told."""

    algorithm: str = choice("td3_bc", ALGORITHMS)
    data: DataSettings = field(default_factory=_several_steps)
    loss: Any = field(default_factory=TD3BCLossSettings)
    optim: FeedForwardOptimSettings = field(default_factory=lambda: FeedForwardOptimSettings(policy_every=2))


@dataclass
class IQLConfig(FeedForwardSettings):
    """Everything ``examples/feed_forward.py algorithm=iql`` can be told."""

    algorithm: str = choice("iql", ALGORITHMS)
    loss: Any = field(default_factory=IQLLossSettings)
    optim: FeedForwardOptimSettings = field(default_factory=lambda: FeedForwardOptimSettings(decay="cosine"))


@dataclass
class CRRConfig(FeedForwardSettings):
    """Everything ``examples/feed_forward.py algorithm=crr`` can be told."""

    algorithm: str = choice("crr", ALGORITHMS)
    data: DataSettings = field(default_factory=_several_steps)
    loss: Any = field(default_factory=CRRLossSettings)


@dataclass
class BCConfig(FeedForwardSettings):
    """Everything ``examples/feed_forward.py algorithm=bc`` can be told."""

    algorithm: str = choice("bc", ALGORITHMS)
    loss: Any = field(default_factory=BCLossSettings)


FEED_FORWARD: dict[str, type[FeedForwardSettings]] = {
    "td3_bc": TD3BCConfig,
    "iql": IQLConfig,
    "crr": CRRConfig,
    "bc": BCConfig,
}
COUNTERPARTS = {"td3_bc": "edp_td3", "iql": "edp_iql", "crr": "edp_crr", "bc": "edp_iql"}
SCHEMAS: dict[str, type[RunSettings]] = {**EXPERIMENTS, **FEED_FORWARD}
