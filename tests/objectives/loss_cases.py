"""The losses under test and tiny networks and data for them: one table that every contract test runs over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.modules import ValueOperator
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_edp import EDPActor, EDPCRRLoss, EDPIQLLoss, EDPTD3Loss, NoiseSchedule
from torchrl_edp.configs.losses import EDPCRRLossConfig, EDPIQLLossConfig, EDPTD3LossConfig
from torchrl_edp.modules import NoisePredictionMLP, QValueNetwork, ValueNetwork

OBS, A, K = 3, 2, 50
WIDTHS = (8, 8)


@dataclass
class LossCase:
    """A loss class and what the contract has to know of it."""

    name: str
    loss: type[LossModule]
    config: type
    networks: dict[str, str]  # loss term -> the one network it trains
    over_batch: list[dict[str, Any]]  # what a sample's loss takes from the rest of its batch, the first: nothing
    settings: dict[str, Any] = field(default_factory=dict)  # constructor arguments that make the case

    @property
    def terms(self) -> list[str]:
        return list(self.networks)

    @property
    def methods(self) -> list[str]:
        return [term.removeprefix("loss_") + "_loss" for term in self.networks]

    @property
    def has_value_network(self) -> bool:
        return "value_network" in self.networks.values()


ACTOR_CRITIC = {"loss_actor": "actor_network", "loss_qvalue": "qvalue_network"}
WITH_VALUE = ACTOR_CRITIC | {"loss_value": "value_network"}
WEIGHTS = [{"weight_normalization": choice} for choice in (None, "mean", "softmax")]
SCALES = [{"qvalue_normalization": choice} for choice in (None, "same", "other")]
# Eq. 21's baseline without its draws, which are no input.
NEAR = {"sample_from": "approximation", "sample_deviation": 0.0}
CASES = [
    LossCase("iql", EDPIQLLoss, EDPIQLLossConfig, WITH_VALUE, WEIGHTS),
    LossCase("td3", EDPTD3Loss, EDPTD3LossConfig, ACTOR_CRITIC, SCALES),
    LossCase("crr", EDPCRRLoss, EDPCRRLossConfig, ACTOR_CRITIC, WEIGHTS),
    LossCase("cloning", EDPIQLLoss, EDPIQLLossConfig, WITH_VALUE, WEIGHTS, settings={"guidance_weight": 0.0}),
    LossCase("crr_paper", EDPCRRLoss, EDPCRRLossConfig, ACTOR_CRITIC, WEIGHTS, settings=NEAR),
]


@dataclass
class Keys:
    """The names of everything in the data."""

    observation: NestedKey = "observation"
    action: NestedKey = "action"
    reward: NestedKey = "reward"
    done: NestedKey = "done"
    terminated: NestedKey = "terminated"
    value: NestedKey = "state_value"
    state_action_value: NestedKey = "state_action_value"
    priority: NestedKey = "td_error"
    diffusion_step: NestedKey = "diffusion_step"
    diffusion_noise: NestedKey = "diffusion_noise"
    initial_noise: NestedKey = "initial_noise"

    def of_loss(self, case: LossCase) -> dict[str, NestedKey]:
        """Those that ``set_keys`` takes; the others are the networks'."""
        others = {"observation", "initial_noise"} | (set() if case.has_value_network else {"value"})
        return {name: key for name, key in vars(self).items() if name not in others}


NESTED = Keys(
    *[("group", name) for name in ("obs", "act")],
    *[("group", name) for name in ("rew", "end", "term")],
    *[("group", name) for name in ("v", "q", "prio", "step", "eps", "start")],
)


def make_networks(
    num_critics: int = 1, keys: Keys | None = None, wrap: Callable[[nn.Module], nn.Module] = lambda net: net
) -> dict[str, TensorDictModule | list[TensorDictModule]]:
    """Actor, critics (a list) and value network; ``wrap`` changes every plain network."""
    keys = keys or Keys()
    actor = EDPActor(
        wrap(NoisePredictionMLP(OBS, A, hidden_sizes=WIDTHS)),
        action_size=A,
        schedule=NoiseSchedule(K),
        in_keys=[keys.observation],
        out_keys=[keys.action],
        initial_noise_key=keys.initial_noise,
    )
    critics = [
        ValueOperator(
            wrap(QValueNetwork(OBS, A, hidden_sizes=WIDTHS)),
            in_keys=[keys.observation, keys.action],
            out_keys=[keys.state_action_value],
        )
        for _ in range(num_critics)
    ]
    value = wrap(ValueNetwork(OBS, hidden_sizes=WIDTHS))
    return {
        "actor_network": actor,
        "qvalue_network": critics,
        "value_network": ValueOperator(value, in_keys=[keys.observation], out_keys=[keys.value]),
    }


def make_loss(
    case: LossCase,
    num_qvalue_nets: int = 2,
    *,
    networks: dict[str, Any] | None = None,
    updater: bool = True,
    double: bool = False,
    **kwargs: Any,
) -> LossModule:
    """A loss with those of the tiny networks that it takes; its averages belong to an updater, as they should."""
    networks = networks or make_networks(num_qvalue_nets)
    taken = {name: net for name, net in networks.items() if name in case.networks.values()}
    loss = case.loss(**taken, num_qvalue_nets=num_qvalue_nets, **(case.settings | kwargs))
    if double:
        loss = loss.double()
    if updater and any(name.startswith("target_") for name in loss._modules):
        SoftUpdate(loss, tau=0.1)
    return loss


def spread(loss: LossModule) -> LossModule:
    """Move every target and widen every parameter, so that no two numbers agree by accident."""
    for tensor in [*loss.parameters(), *loss.buffers()]:
        if tensor.is_floating_point() and tensor.ndim:
            tensor.data.add_(0.2 * torch.randn_like(tensor))
    return loss


def make_data(
    batch: Sequence[int] = (4,), keys: Keys | None = None, *, dtype: torch.dtype = torch.float32, draws: bool = True
) -> TensorDictBase:
    """Transitions; the second half of the batch terminated. ``draws`` adds diffusion steps and all noise."""
    keys = keys or Keys()
    batch = torch.Size(batch)
    ends = (torch.arange(batch.numel()) >= (batch.numel() + 1) // 2).view(*batch, 1)
    normal = {"dtype": dtype}
    data = {
        keys.observation: torch.randn(*batch, OBS, **normal),
        keys.action: torch.rand(*batch, A, **normal) * 2 - 1,
        unravel_key(("next", keys.observation)): torch.randn(*batch, OBS, **normal),
        unravel_key(("next", keys.reward)): torch.randn(*batch, 1, **normal),
        unravel_key(("next", keys.done)): ends,
        unravel_key(("next", keys.terminated)): ends.clone(),
    }
    if draws:
        data[keys.diffusion_step] = torch.randint(K, batch)
        data[keys.diffusion_noise] = torch.randn(*batch, A, **normal)
        data[keys.initial_noise] = torch.randn(*batch, A, **normal)
        data[unravel_key(("next", keys.initial_noise))] = torch.randn(*batch, A, **normal)
    result = TensorDict({}, batch_size=batch)
    for key, value in data.items():
        result.set(key, value)
    return result


def as_kwargs(data: TensorDictBase, loss: LossModule) -> dict[str, Tensor]:
    """The arguments of a dispatched call: all that ``loss`` says it reads."""
    given = data.select(*loss.in_keys, strict=False).items(True, True)
    return {"_".join([key] if isinstance(key, str) else key): value for key, value in given}


def seeded(loss: LossModule, *args: Any, **kwargs: Any) -> Any:
    """``loss(...)`` with the same draws at every call."""
    torch.manual_seed(1)
    return loss(*args, **kwargs)


def dispatched(loss: LossModule, data: TensorDictBase) -> TensorDictBase:
    """``seeded(loss, data)`` by keyword arguments."""
    return TensorDict(dict(zip(loss.out_keys, seeded(loss, **as_kwargs(data, loss)), strict=True)))


def qvalues(loss: LossModule, observation: Tensor, action: Tensor, params: str = "qvalue_network_params") -> Tensor:
    """Every critic's value [E, *B, 1], one plain call each."""
    values = []
    for critic in getattr(loss, params).unbind(0):
        with critic.to_module(loss.qvalue_network):
            values.append(loss.qvalue_network.module(observation, action))
    return torch.stack(values)


@torch.no_grad()
def value_of_next(loss: LossModule, data: TensorDictBase) -> Tensor:
    """What the critics' target takes as the value of the next state [*B, 1]: V, or min Q' of the target policy."""
    observation = data["next", "observation"]
    if isinstance(loss, EDPIQLLoss):
        with loss.value_network_params.to_module(loss.value_network):
            return loss.value_network.module(observation)
    with loss.target_actor_network_params.to_module(loss.actor_network):
        action = loss.actor_network.module(observation, data["next", "initial_noise"])
    return qvalues(loss, observation, action, "target_qvalue_network_params").amin(0)


def gradients(loss: LossModule, value: Tensor) -> dict[str, Tensor | None]:
    """Gradient of ``value`` on every parameter, None where it does not reach."""
    names, parameters = zip(*loss.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters, allow_unused=True), strict=True))


def total(output: TensorDictBase) -> Tensor:
    """The sum of all loss terms, as a trainer takes it."""
    return sum(value.sum() for key, value in output.items() if key.startswith("loss_"))
