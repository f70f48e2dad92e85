"""The losses as Hydra configurations in TorchRL's own ``loss`` group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from torchrl.trainers.algorithms.configs.objectives import LossConfig

from torchrl_edp.configs.signature import NETWORKS, loss_fields
from torchrl_edp.objectives import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.objectives.common import EDPLoss

LOSSES: dict[str, type[EDPLoss]] = {"edp_iql": EDPIQLLoss, "edp_td3": EDPTD3Loss, "edp_crr": EDPCRRLoss}


def _config(name: str) -> type:
    """The configuration class of a loss: its constructor's arguments and defaults."""
    loss = LOSSES[name]
    networks = [network for network in NETWORKS if network in loss.__init__.__annotations__]
    fields: list[Any] = [(network, Any, field(default=None)) for network in networks]
    fields += loss_fields(loss)
    fields += [("name", str, field(default=name)), ("_target_", str, field(default=f"{__name__}.make_loss"))]
    doc = f"Hydra configuration of :class:`~torchrl_edp.{loss.__name__}`; ``gamma`` is its value estimator's discount."
    namespace = {"__doc__": doc, "__module__": __name__}
    return make_dataclass(f"{loss.__name__}Config", fields, bases=(LossConfig,), namespace=namespace)


EDPIQLLossConfig = _config("edp_iql")
EDPTD3LossConfig = _config("edp_td3")
EDPCRRLossConfig = _config("edp_crr")


def make_loss(name: str, **kwargs: Any) -> EDPLoss:
    """Build a loss from a configuration's values; networks may be factories, as with TorchRL's own losses."""
    gamma = kwargs.pop("gamma", None)
    for network in NETWORKS:
        if hasattr(kwargs.get(network), "_target_"):
            kwargs[network] = kwargs[network]()
    for key, value in kwargs.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            kwargs[key] = list(value) if key in NETWORKS else tuple(value)
    loss = LOSSES[name](**kwargs)
    if gamma is not None:
        loss.make_value_estimator(gamma=gamma)
    return loss


def register_losses() -> None:
    """Add the losses to Hydra's ConfigStore, in TorchRL's ``loss`` group: ``+loss=edp_td3``.

    Examples:
        >>> register_losses()
        >>> ConfigStore.instance().load("loss/edp_iql.yaml").node.loss_function
        'l2'
    """
    nodes = {"edp_iql": EDPIQLLossConfig, "edp_td3": EDPTD3LossConfig, "edp_crr": EDPCRRLossConfig}
    for name, node in nodes.items():
        ConfigStore.instance().store(group="loss", name=name, node=node)
