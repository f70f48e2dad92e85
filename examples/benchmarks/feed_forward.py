"""TorchRL's own TD3+BC and IQL under the same update, for comparison with the diffusion losses."""

from __future__ import annotations

from dataclasses import replace

import torch
from work import ADAM, Work, make_buffer

from torchrl_edp.configs import FEED_FORWARD
from torchrl_edp.training import EDPTargetUpdate, NetworkSettings, TrainState, TrunkSettings, build_feed_forward_loss


def relu_work(work: Work) -> Work:
    """The same work with the networks TD3+BC usually has: 2 x 256, ReLU."""
    return replace(work, network=NetworkSettings(hidden_sizes=list(work.network.hidden_sizes[:2]), activation="relu"))


def td3_bc_state(work: Work, *, compile: bool = False) -> TrainState:
    """TD3+BC with a tanh policy, the actor trained at every update."""
    return _state(work, "td3_bc", compile)


def iql_state(work: Work, *, compile: bool = False) -> TrainState:
    """IQL with a tanh-Gaussian policy."""
    return _state(work, "iql", compile)


def _state(work: Work, algorithm: str, compile: bool) -> TrainState:
    torch.manual_seed(0)
    network = TrunkSettings(hidden_sizes=work.network.hidden_sizes, activation=work.network.activation)
    cfg = FEED_FORWARD[algorithm](network=network)
    loss = build_feed_forward_loss(cfg, work.observation_size, work.action_size).to(work.device)
    return TrainState(loss, make_buffer(work), EDPTargetUpdate(loss), compile=compile, **ADAM)
