"""The losses as Hydra configurations in TorchRL's own ``loss`` group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from torchrl.trainers.algorithms.configs.objectives import LossConfig

from torchrl_edp.objectives import EDPIQLLoss


@dataclass
class EDPIQLLossConfig(LossConfig):
    """Hydra configuration of :class:`~torchrl_edp.EDPIQLLoss`.

    Its fields are the loss's constructor arguments. ``gamma`` becomes the discount of the value estimator.

    Examples:
        >>> register_losses()
        >>> ConfigStore.instance().load("loss/edp_iql.yaml").node.loss_function
        'l2'
    """

    actor_network: Any = None
    qvalue_network: Any = None
    value_network: Any = None
    num_qvalue_nets: int = 2
    loss_function: str = "l2"
    temperature: float = 3.0
    expectile: float = 0.7
    weight_cap: float | None = 100.0
    weight_normalization: str | None = "mean"
    likelihood: str = "noise"
    deviation: Any = 1.0
    guidance_weight: float = 10.0
    guidance_weighting: str = "uniform"
    guidance_steps: Any = None
    clip_approximation: bool = True
    action_reduction: str = "mean"
    gamma: float | None = None
    priority_key: str | None = None
    delay_actor: bool = True
    delay_qvalue: bool = True
    separate_losses: bool = False
    reduction: str | None = None
    scalar_output_mode: str | None = None
    deactivate_vmap: bool = False
    use_prioritized_weights: Any = "auto"
    _target_: str = "torchrl_edp.configs.losses.make_iql_loss"


def make_iql_loss(**kwargs: Any) -> EDPIQLLoss:
    """Build the loss from a configuration's values; networks may be factories, as with TorchRL's own losses."""
    gamma = kwargs.pop("gamma", None)
    for name in ("actor_network", "qvalue_network", "value_network"):
        if hasattr(kwargs.get(name), "_target_"):
            kwargs[name] = kwargs[name]()
    if kwargs.get("guidance_steps") is not None:
        kwargs["guidance_steps"] = tuple(kwargs["guidance_steps"])
    if isinstance(kwargs.get("qvalue_network"), Sequence):
        kwargs["qvalue_network"] = list(kwargs["qvalue_network"])
    loss = EDPIQLLoss(**kwargs)
    if gamma is not None:
        loss.make_value_estimator(gamma=gamma)
    return loss


def register_losses() -> None:
    """Add the losses to Hydra's ConfigStore, in TorchRL's ``loss`` group."""
    ConfigStore.instance().store(group="loss", name="edp_iql", node=EDPIQLLossConfig)
