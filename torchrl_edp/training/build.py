"""Networks and policies from plain settings: what training builds, and a saved policy builds again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from tensordict import TensorDictParams
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

from torchrl_edp.diffusion import SOLVERS, NoiseSchedule
from torchrl_edp.diffusion.schedule import ScheduleKind
from torchrl_edp.modules import (
    EDPActor,
    EnergyBasedActionSelector,
    Mish,
    NoisePredictionMLP,
    QValueNetwork,
    ValueNetwork,
    tanh_actor,
    tanh_gaussian_actor,
)
from torchrl_edp.modules.actor import Prediction
from torchrl_edp.modules.selection import SelectionMode

ACTIVATIONS: dict[str, type[nn.Module]] = {"mish": Mish, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
FEED_FORWARD_ACTORS: dict[str, Callable[..., TensorDictModule]] = {
    "tanh": tanh_actor,
    "tanh_gaussian": tanh_gaussian_actor,
}


def choice(default: str, choices: Iterable[str]) -> Any:
    """A dataclass field that holds one of ``choices``; a command line is checked against them."""
    return field(default=default, metadata={"choices": tuple(choices)})


@dataclass
class TrunkSettings:
    """Sizes of all networks. Defaults: the paper's (App. B)."""

    hidden_sizes: list[int] = field(default_factory=lambda: [256, 256, 256])
    activation: str = choice("mish", ACTIVATIONS)
    layer_norm: bool = False  # of the policy's network
    critic_layer_norm: bool = False


@dataclass
class NetworkSettings(TrunkSettings):
    """Those of a diffusion policy too."""

    embedding_size: int = 16  # of the diffusion step


@dataclass
class DiffusionSettings:
    """The diffusion process and how actions are sampled from it."""

    num_steps: int = 1000
    schedule: str = choice("linear", get_args(ScheduleKind))
    prediction: str = choice("noise", get_args(Prediction))
    solver: str = choice("dpm_solver", SOLVERS)
    num_calls: int | None = 15
    solver_kwargs: dict[str, Any] = field(default_factory=dict)
    initial_noise_scale: float = 1.0
    policy_scale: float = 1.0


@dataclass
class SelectionSettings:
    """Energy-based action selection (Alg. 2)."""

    num_action_samples: int = 10
    temperature: float = 1.0
    mode: str = choice("sample", get_args(SelectionMode))
    standardize: bool = False
    min_noise_scale: float = 1.0


def build_actor(
    observation_size: int, action_size: int, network: NetworkSettings, diffusion: DiffusionSettings
) -> EDPActor:
    """The diffusion policy on data normalised to actions in [-1, 1].

    Examples:
        >>> build_actor(11, 3, NetworkSettings(), DiffusionSettings()).out_keys
        ['action']
    """
    options = vars(diffusion).copy()
    schedule = NoiseSchedule(options.pop("num_steps"), options.pop("schedule"))
    noise_network = NoisePredictionMLP(
        observation_size,
        action_size,
        hidden_sizes=network.hidden_sizes,
        activation=_activation(network),
        layer_norm=network.layer_norm,
        embedding_size=network.embedding_size,
    )
    return EDPActor(noise_network, schedule=schedule, **options)


def build_feed_forward(observation_size: int, action_size: int, network: TrunkSettings, kind: str) -> TensorDictModule:
    """A feed-forward policy on data normalised to actions in [-1, 1].

    Args:
        observation_size: O.
        action_size: A.
        network: sizes.
        kind: ``"tanh"``, a deterministic policy, or ``"tanh_gaussian"``.

    Examples:
        >>> build_feed_forward(11, 3, TrunkSettings(), "tanh_gaussian").out_keys
        ['loc', 'scale', 'action']
    """
    if kind not in FEED_FORWARD_ACTORS:
        raise ValueError(f"A feed-forward policy is one of {sorted(FEED_FORWARD_ACTORS)}, got {kind!r}.")
    return FEED_FORWARD_ACTORS[kind](
        observation_size,
        action_size,
        hidden_sizes=network.hidden_sizes,
        activation=_activation(network),
        layer_norm=network.layer_norm,
    )


def build_qvalue(observation_size: int, action_size: int, network: TrunkSettings) -> TensorDictModule:
    """Q(s, a) as a TensorDictModule."""
    qvalue = QValueNetwork(observation_size, action_size, **_critic_options(network))
    return ValueOperator(qvalue, in_keys=["observation", "action"])


def build_value(observation_size: int, network: TrunkSettings) -> TensorDictModule:
    """V(s) as a TensorDictModule."""
    return ValueOperator(ValueNetwork(observation_size, **_critic_options(network)))


def build_selector(
    actor: EDPActor,
    qvalue: TensorDictModule,
    selection: SelectionSettings,
    *,
    actor_params: TensorDictParams | None = None,
    qvalue_params: TensorDictParams | None = None,
) -> EnergyBasedActionSelector:
    """The acting policy: candidates of the actor, chosen by the critics."""
    return EnergyBasedActionSelector(
        actor, qvalue, actor_params=actor_params, qvalue_params=qvalue_params, **vars(selection)
    )


def _critic_options(network: TrunkSettings) -> dict[str, Any]:
    sizes: Sequence[int] = network.hidden_sizes
    return {"hidden_sizes": sizes, "activation": _activation(network), "layer_norm": network.critic_layer_norm}


def _activation(network: TrunkSettings) -> type[nn.Module]:
    if network.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {network.activation!r}.")
    return ACTIVATIONS[network.activation]
