"""The policy as it is shipped: raw observations in, actions of the environment out, in two plain files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_edp.data import ActionScaler, ObservationNormalizer
from torchrl_edp.modules import EnergyBasedActionSelector
from torchrl_edp.training.build import (
    DiffusionSettings,
    NetworkSettings,
    SelectionSettings,
    build_actor,
    build_qvalue,
    build_selector,
)

FORMAT = 1


class EnvironmentPolicy(TensorDictModuleBase):
    """A policy on normalised data, wrapped for the environment.

    Args:
        policy: reads ``observation``, writes ``action`` in [-1, 1]: an actor or a selector.
        observation_normalizer: raw observation to the policy's.
        action_scaler: the environment's bounds; its ``inverse`` maps [-1, 1] to them.

    Examples:
        >>> import torch
        >>> from torchrl_edp.modules import EDPActor, NoisePredictionMLP
        >>> actor = EDPActor(NoisePredictionMLP(11, 3))
        >>> policy = EnvironmentPolicy(actor, ObservationNormalizer.identity(11), ActionScaler([-2.0] * 3, [2.0] * 3))
        >>> policy(TensorDict({"observation": torch.zeros(4, 11)}, [4]))["action"].shape
        torch.Size([4, 3])
    """

    in_keys = ["observation"]
    out_keys = ["action"]

    def __init__(
        self,
        policy: TensorDictModuleBase,
        observation_normalizer: ObservationNormalizer,
        action_scaler: ActionScaler,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.observation_normalizer = observation_normalizer
        self.action_scaler = action_scaler

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action into ``tensordict`` and return it."""
        observation = self.observation_normalizer(tensordict.get("observation"))
        inner = self.policy(TensorDict({"observation": observation}, tensordict.batch_size))
        return tensordict.set("action", self.action_scaler.inverse(inner.get("action")))


def save_policy(
    path: str | Path,
    policy: EnvironmentPolicy,
    *,
    network: NetworkSettings,
    diffusion: DiffusionSettings,
    selection: SelectionSettings,
    info: dict[str, Any] | None = None,
) -> None:
    """Write ``path``.safetensors (weights, normaliser) and ``path``.json (how to build the policy again).

    Args:
        path: where to write, without suffix.
        policy: an :class:`EnvironmentPolicy` around an :class:`~torchrl_edp.modules.EnergyBasedActionSelector`.
        network: what the networks were built with.
        diffusion: what the actor was built with.
        selection: what the selector was built with.
        info: anything else worth keeping, JSON-able.
    """
    selector = policy.policy
    if not isinstance(selector, EnergyBasedActionSelector):
        found = type(selector).__name__
        raise TypeError(f"save_policy needs a policy around an EnergyBasedActionSelector, got {found}.")
    groups = {
        "actor": _params(selector.actor_network, selector.actor_params),
        "qvalue": _params(selector.qvalue_network, selector.qvalue_params),
        "observation_normalizer": policy.observation_normalizer.state_dict(),
        "action_scaler": policy.action_scaler.state_dict(),
    }
    tensors = {f"{group}.{key}": value for group, items in groups.items() for key, value in items.items()}
    card = {
        "format": FORMAT,
        "observation_size": policy.observation_normalizer.loc.shape[-1],
        "action_size": selector.actor_network.module.action_size,
        "network": asdict(network),
        "diffusion": asdict(diffusion),
        "selection": asdict(selection),
        "info": info or {},
    }
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, f"{path}.safetensors")
    Path(f"{path}.json").write_text(json.dumps(card, indent=2) + "\n")


def load_policy(path: str | Path) -> EnvironmentPolicy:
    """The policy that :func:`save_policy` wrote under ``path``; no code is executed by loading it.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are of another format, or do not fit each other.
    """
    path = str(path).removesuffix(".safetensors").removesuffix(".json")
    card = json.loads(Path(f"{path}.json").read_text())
    if card.get("format") != FORMAT:
        raise ValueError(f"{path}.json: expected format {FORMAT}, got {card.get('format')!r}.")
    tensors = load_file(f"{path}.safetensors")

    def group(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

    sizes = card["observation_size"], card["action_size"]
    network = NetworkSettings(**card["network"])
    actor = build_actor(*sizes, network, DiffusionSettings(**card["diffusion"]))
    qvalue = build_qvalue(*sizes, network)
    actor.load_state_dict(group("actor"))
    values = TensorDict(group("qvalue")).unflatten_keys(".")
    values = values.auto_batch_size_(1)
    qvalue_params = TensorDictParams(values, no_convert=True)
    selector = build_selector(actor, qvalue, SelectionSettings(**card["selection"]), qvalue_params=qvalue_params)
    normalizer, scaler = group("observation_normalizer"), group("action_scaler")
    observation_normalizer = ObservationNormalizer(normalizer["loc"], normalizer["scale"])
    action_scaler = ActionScaler(scaler["center"] - scaler["half_range"], scaler["center"] + scaler["half_range"])
    return EnvironmentPolicy(selector, observation_normalizer, action_scaler).requires_grad_(False).eval()


def _params(network: TensorDictModuleBase, params: TensorDictParams | None) -> dict[str, Tensor]:
    if params is None:
        return dict(network.state_dict())
    return {key if isinstance(key, str) else ".".join(key): value for key, value in params.items(True, True)}
