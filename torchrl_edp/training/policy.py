"""The policy as it is shipped: raw observations in, actions of the environment out, in two plain files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_edp.data import ActionScaler, ObservationNormalizer
from torchrl_edp.modules import EnergyBasedActionSelector
from torchrl_edp.training.build import (
    DiffusionSettings,
    NetworkSettings,
    SelectionSettings,
    TrunkSettings,
    build_actor,
    build_feed_forward,
    build_qvalue,
    build_selector,
)
from torchrl_edp.training.files import from_json, replace_file, to_json

FORMAT = 1


class EnvironmentPolicy(TensorDictModuleBase):
    """A policy on normalised data, wrapped for the environment.

    Args:
        policy: reads ``observation``, writes ``action`` in [-1, 1]: an actor or a selector.
        observation_normalizer: raw observation to the policy's.
        action_scaler: the environment's bounds; its ``inverse`` maps [-1, 1] to them.
        observation_keys: of an environment with dict observations, the entries that ``observation`` consists of. Where
            they come one by one, as from TorchRL's ``GymEnv``, they are flattened and concatenated in this order.

    Raises:
        ValueError: on acting, if there is no observation of the right size.

    Examples:
        >>> import torch
        >>> from torchrl_edp.modules import EDPActor, NoisePredictionMLP
        >>> actor = EDPActor(NoisePredictionMLP(11, 3))
        >>> policy = EnvironmentPolicy(actor, ObservationNormalizer.identity(11), ActionScaler([-2.0] * 3, [2.0] * 3))
        >>> policy(TensorDict({"observation": torch.zeros(4, 11)}, [4]))["action"].shape
        torch.Size([4, 3])
    """

    out_keys = ["action"]

    def __init__(
        self,
        policy: TensorDictModuleBase,
        observation_normalizer: ObservationNormalizer,
        action_scaler: ActionScaler,
        observation_keys: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.in_keys = list(dict.fromkeys(["observation", *(observation_keys or ())]))
        self.policy = policy
        self.observation_normalizer = observation_normalizer
        self.action_scaler = action_scaler
        self.observation_keys = tuple(observation_keys or ())

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action into ``tensordict`` and return it."""
        # In the networks' precision: MuJoCo's environments give float64.
        observation = self._observation(tensordict).to(self.observation_normalizer.loc.dtype)
        observation = self.observation_normalizer(observation)
        inner = self.policy(TensorDict({"observation": observation}, tensordict.batch_size))
        return tensordict.set("action", self.action_scaler.inverse(inner.get("action")))

    def _observation(self, tensordict: TensorDictBase) -> Tensor:
        """The observation [*B, O], concatenated or still to be so."""
        size, keys = self.observation_normalizer.loc.shape[-1], list(self.observation_keys)
        observation = tensordict.get("observation", None)
        if observation is not None and observation.shape[-1:] == (size,):
            return observation
        parts = [part for key in keys if (part := tensordict.get(key, None)) is not None]
        if keys and len(parts) == len(keys):
            observation = torch.cat([part.reshape(*tensordict.batch_size, -1) for part in parts], -1)
            if observation.shape[-1] == size:
                return observation
        found = "none" if observation is None else observation.shape[-1]
        entries = keys or "[...]"
        raise ValueError(
            f"observation: expected {size} entries per row, {f'those of {keys}' if keys else 'as in the data'}, got "
            f"{found}. Take the environment of the data; join the entries of dict observations in the data's order, by "
            f'CatTensors({entries}, out_key="observation", sort=False).'
        )


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

    Each file is replaced as a whole, and the second one has the SHA-256 of the first.

    Args:
        path: where to write, without suffix.
        policy: an :class:`EnvironmentPolicy` around an :class:`~torchrl_edp.modules.EnergyBasedActionSelector`.
        network: what the networks were built with.
        diffusion: what the actor was built with.
        selection: what the selector was built with.
        info: anything else worth keeping, strict JSON.

    Raises:
        TypeError: if ``policy`` acts by anything but a selector.
        ValueError: if ``info`` has what JSON cannot hold, as NaN.
    """
    selector = policy.policy
    if not isinstance(selector, EnergyBasedActionSelector):
        found = type(selector).__name__
        raise TypeError(f"save_policy needs a policy around an EnergyBasedActionSelector, got {found}.")
    groups = {
        "actor": _params(selector.actor_network, selector.actor_params),
        "qvalue": _params(selector.qvalue_network, selector.qvalue_params),
    }
    built = {"network": asdict(network), "diffusion": asdict(diffusion), "selection": asdict(selection)}
    _write(path, policy, groups, built, info)


def save_feed_forward_policy(
    path: str | Path,
    policy: EnvironmentPolicy,
    *,
    network: TrunkSettings,
    kind: str,
    info: dict[str, Any] | None = None,
) -> None:
    """Write a feed-forward policy as :func:`save_policy` writes a diffusion policy; :func:`load_policy` reads both.

    Args:
        path: where to write, without suffix.
        policy: an :class:`EnvironmentPolicy` around an actor of ``build_feed_forward``.
        network: what the actor was built with.
        kind: of the actor, ``"tanh"`` or ``"tanh_gaussian"``.
        info: anything else worth keeping, strict JSON.

    Raises:
        ValueError: if ``info`` has what JSON cannot hold, as NaN.
    """
    built = {"feed_forward": kind, "network": asdict(network)}
    _write(path, policy, {"actor": dict(policy.policy.state_dict())}, built, info)


def _write(
    path: str | Path,
    policy: EnvironmentPolicy,
    groups: dict[str, dict[str, Tensor]],
    built: dict[str, Any],
    info: dict[str, Any] | None,
) -> None:
    groups |= {
        "observation_normalizer": policy.observation_normalizer.state_dict(),
        "action_scaler": policy.action_scaler.state_dict(),
    }
    tensors = {f"{group}.{key}": value for group, items in groups.items() for key, value in items.items()}
    weights = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    card = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "observation_size": policy.observation_normalizer.loc.shape[-1],
        "action_size": policy.action_scaler.center.shape[-1],
        "observation_keys": list(policy.observation_keys),
        **built,
        "info": info or {},
    }
    text = to_json(card)
    replace_file(f"{path}.safetensors", weights)
    replace_file(f"{path}.json", text)


def load_policy(path: str | Path) -> EnvironmentPolicy:
    """The policy that was saved under ``path``, or as ``policy`` in the folder ``path``; loading executes no code.

    A diffusion policy draws its actions; a feed-forward policy acts deterministically, unless an exploration type says
    otherwise.

    Raises:
        FileNotFoundError: if one of the two files is missing; the message says what there is to load instead.
        ValueError: if they are of another format, damaged, or do not fit each other.
    """
    path = Path(path, "policy") if Path(path).is_dir() else path
    path = str(path).removesuffix(".safetensors").removesuffix(".json")
    file = Path(f"{path}.safetensors")
    if not file.exists():
        raise FileNotFoundError(f"{file}: expected a policy's weights, found none. {_instead(file.parent)}")
    weights = file.read_bytes()
    try:
        card = from_json(Path(f"{path}.json").read_bytes())
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        if found != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {found!r}")
    except ValueError as error:
        raise ValueError(f"{path}.json is no policy's card: {error}. Get both files again.") from error
    digest = hashlib.sha256(weights).hexdigest()
    if card.get("weights_sha256", digest) != digest:  # the first policies were saved without
        raise ValueError(f"{path}.safetensors is damaged or of another save than {path}.json. Get both files again.")
    try:
        return _build(card, safetensors.torch.load(weights))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path}.safetensors does not make the policy of its card: {error}. Get both files again."
        ) from error


def _instead(folder: Path) -> str:
    """What to load where ``folder`` has not the policy that was asked for."""
    if not folder.is_dir():
        return f"There is no folder {folder}: give that of a run, or the path of a policy without suffix."
    if found := sorted(str(file.with_suffix("")) for file in folder.glob("policy*.safetensors")):
        return f"A run has `policy` once it ends and `policy_best` once it is evaluated: load one of {found}."
    if seeds := sorted(str(file.parent) for file in folder.glob("seed*/.lock")):
        return f"Several seeds were trained here, each with a policy of its own: load one of {seeds}."
    if (folder / "config.yaml").exists():
        return f"The run in {folder} failed or has saved no policy yet: wait for it, or go on with resume={folder}."
    return "Give the folder of a run, or the path of a policy without suffix."


def _build(card: dict[str, Any], tensors: dict[str, Tensor]) -> EnvironmentPolicy:
    """The policy of a card and its weights."""

    def group(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

    normalizer, scaler = group("observation_normalizer"), group("action_scaler")
    observation_normalizer = ObservationNormalizer(normalizer["loc"], normalizer["scale"])
    action_scaler = ActionScaler(scaler["center"] - scaler["half_range"], scaler["center"] + scaler["half_range"])
    build = _build_feed_forward if "feed_forward" in card else _build_selector
    keys = card.get("observation_keys")  # the first policies were saved without
    policy = EnvironmentPolicy(build(card, group), observation_normalizer, action_scaler, keys)
    return policy.requires_grad_(False).eval()


def _build_feed_forward(card: dict[str, Any], group: Callable[[str], dict[str, Tensor]]) -> TensorDictModuleBase:
    sizes = card["observation_size"], card["action_size"]
    actor = build_feed_forward(*sizes, TrunkSettings(**card["network"]), card["feed_forward"])
    actor.load_state_dict(group("actor"))
    if card["feed_forward"] == "tanh_gaussian":  # for acting alone; TorchRL's safe tanh cannot be exported
        actor[-1].distribution_kwargs["safe_tanh"] = False
    return actor


def _build_selector(card: dict[str, Any], group: Callable[[str], dict[str, Tensor]]) -> TensorDictModuleBase:
    sizes = card["observation_size"], card["action_size"]
    network = NetworkSettings(**card["network"])
    actor = build_actor(*sizes, network, DiffusionSettings(**card["diffusion"]))
    qvalue = build_qvalue(*sizes, network)
    actor.load_state_dict(group("actor"))
    values = TensorDict(group("qvalue")).unflatten_keys(".")
    values = values.auto_batch_size_(1)
    qvalue_params = TensorDictParams(values, no_convert=True)
    return build_selector(actor, qvalue, SelectionSettings(**card["selection"]), qvalue_params=qvalue_params)


def _params(network: TensorDictModuleBase, params: TensorDictParams | None) -> dict[str, Tensor]:
    if params is None:
        return dict(network.state_dict())
    return {key if isinstance(key, str) else ".".join(key): value for key, value in params.items(True, True)}
