"""TorchRL's own TD3+BC and IQL under the same update, for comparison with the diffusion losses."""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import MLP, ProbabilisticActor, TanhModule, TanhNormal
from torchrl.objectives import IQLLoss, LossModule, TD3BCLoss
from work import ADAM, Work, make_buffer

from torchrl_edp.training import EDPTargetUpdate, NetworkSettings, TrainState, build_qvalue, build_value
from torchrl_edp.training.build import ACTIVATIONS


def relu_work(work: Work) -> Work:
    """The same work with the networks TD3+BC usually has: 2 x 256, ReLU."""
    return replace(work, network=NetworkSettings(hidden_sizes=list(work.network.hidden_sizes[:2]), activation="relu"))


def td3_bc_state(work: Work, *, compile: bool = False) -> TrainState:
    """TD3+BC with a tanh policy, the actor trained at every update."""
    torch.manual_seed(0)
    spec = Bounded(-1, 1, (work.action_size,))
    actor = TensorDictSequential(
        TensorDictModule(_mlp(work, work.action_size), in_keys=["observation"], out_keys=["param"]),
        TanhModule(in_keys=["param"], out_keys=["action"], spec=spec),
    )
    qvalue = build_qvalue(work.observation_size, work.action_size, work.network)
    loss = TD3BCLoss(actor, qvalue, bounds=(-1.0, 1.0), loss_function="l2")
    loss.make_value_estimator(gamma=0.99)
    return _state(work, loss, compile)


def iql_state(work: Work, *, compile: bool = False) -> TrainState:
    """IQL with a tanh-Gaussian policy."""
    torch.manual_seed(0)
    network = nn.Sequential(_mlp(work, 2 * work.action_size), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    qvalue = build_qvalue(work.observation_size, work.action_size, work.network)
    value = build_value(work.observation_size, work.network)
    loss = IQLLoss(actor, qvalue, value, loss_function="l2", temperature=3.0, expectile=0.7)
    loss.make_value_estimator(gamma=0.99)
    return _state(work, loss, compile)


def _state(work: Work, loss: LossModule, compile: bool) -> TrainState:
    loss = loss.to(work.device)
    return TrainState(loss, make_buffer(work), EDPTargetUpdate(loss), compile=compile, **ADAM)


def _mlp(work: Work, out_features: int) -> MLP:
    return MLP(
        in_features=work.observation_size,
        out_features=out_features,
        num_cells=list(work.network.hidden_sizes),
        activation_class=ACTIVATIONS[work.network.activation],
    )
