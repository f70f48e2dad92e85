"""EDPActor in TorchRL's own parts, unmodified: losses, roll-outs, collectors, evaluators."""

from __future__ import annotations

import pytest
import torch
from modules_helpers import ACTION, OBSERVATION, make_actor, make_data, make_network
from tensordict import TensorDict
from torchrl.collectors import Collector, Evaluator
from torchrl.envs import GymEnv, SerialEnv, TransformedEnv
from torchrl.envs.transforms import RenameTransform
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ValueOperator
from torchrl.objectives import DiffusionBCLoss
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_edp.modules import EnergyBasedActionSelector, QValueNetwork, ValueNetwork
from torchrl_edp.objectives import EDPIQLLoss


def make_batch(*batch: int) -> TensorDict:
    done = torch.zeros(*batch, 1, dtype=torch.bool)
    data = make_data(*batch, action=torch.rand(*batch, ACTION) * 2 - 1)
    data["next"] = {
        "observation": torch.randn(*batch, OBSERVATION),
        "reward": torch.randn(*batch, 1),
        "done": done,
        "terminated": done,
    }
    return data


def make_iql(actor) -> EDPIQLLoss:
    qvalue = ValueOperator(QValueNetwork(OBSERVATION, ACTION, hidden_sizes=(8,)), in_keys=["observation", "action"])
    value = ValueOperator(ValueNetwork(OBSERVATION, hidden_sizes=(8,)))
    return EDPIQLLoss(actor, qvalue, value, delay_actor=False, delay_qvalue=False)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("batch", [(8,), (2, 3)])
def test_diffusion_bc_loss_equals_our_diffusion_error(prediction, batch):
    actor, data = make_actor(prediction=prediction), make_batch(*batch)
    torch.manual_seed(5)
    theirs = DiffusionBCLoss(actor)(data)["loss_diffusion_bc"]
    torch.manual_seed(5)
    loss = make_iql(actor)
    torch.manual_seed(5)
    torch.testing.assert_close(loss(data)["diffusion_error"], theirs.detach())
    torch.manual_seed(5)
    data["diffusion_step"] = torch.randint(50, batch)
    data["diffusion_noise"] = torch.randn(*batch, ACTION)
    torch.testing.assert_close(loss(data)["diffusion_error"], theirs.detach())
    data["diffusion_noise"] += 0.1
    assert not torch.allclose(loss(data)["diffusion_error"], theirs.detach())


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_diffusion_bc_loss_trains_the_actor_in_20_steps(prediction):
    actor = make_actor(make_network(64), prediction=prediction)
    data = make_batch(256)
    data["action"] = data["observation"][..., :ACTION].tanh()
    loss = DiffusionBCLoss(actor)
    optimizer, values = torch.optim.Adam(loss.parameters(), lr=1e-2), []
    for _ in range(20):
        value = loss(data)["loss_diffusion_bc"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-3:]) < 0.7 * sum(values[:3]), values
    assert all(p.grad is not None for p in actor.parameters())


# torchrl asks for an InitTracker with any policy, recurrent or not, unless told
COLLECTOR = {"auto_register_policy_transforms": False}


def make_env(**options) -> GymEnv:
    return GymEnv("Pendulum-v1", **options)


def pendulum_actor(env, **options):
    return make_actor(make_network(observation=3, action=1), spec=env.action_spec, **options)


@pytest.mark.parametrize("envs", [1, 2])
def test_rollout(envs):
    env = make_env() if envs == 1 else SerialEnv(2, make_env)
    actor = pendulum_actor(env)
    assert actor.module.bounds == (-2.0, 2.0)
    data = env.rollout(12, actor)
    assert data["action"].shape == (*env.batch_size, 12, 1) and (data["action"].abs() <= 2).all()
    assert (data["action"].abs() > 1).any(), "the whole range is used"
    assert "initial_noise" not in data.keys()
    env.set_seed(0)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first = actor(env.reset())["action"]
        assert env.rollout(2, actor)["action"].isfinite().all() and first.shape == (*env.batch_size, 1)


@pytest.mark.parametrize("exploration", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_collector(exploration):
    env = make_env()
    collector = Collector(
        env, pendulum_actor(env), frames_per_batch=20, total_frames=40, exploration_type=exploration, **COLLECTOR
    )
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    assert [batch["action"].shape for batch in batches] == [(20, 1), (20, 1)]
    assert all((batch["action"].abs() <= 2).all() and batch["action"].isfinite().all() for batch in batches)


@pytest.mark.parametrize("exploration", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_evaluator(exploration):
    env = make_env()
    evaluator = Evaluator(
        env,
        pendulum_actor(env),
        num_trajectories=2,
        max_steps=15,
        exploration_type=exploration,
        collector_kwargs=COLLECTOR | {"traj_format": "padded"},
    )
    metrics = evaluator.evaluate()
    evaluator.shutdown()
    assert metrics["eval/reward"] < 0 and metrics["eval/num_episodes"] == 2


def test_nested_keys_in_an_environment():
    env = TransformedEnv(make_env(), RenameTransform(["observation"], [("agent", "state")]))
    actor = make_actor(make_network(observation=3, action=1), in_keys=[("agent", "state")], spec=env.action_spec)
    assert env.rollout(5, actor)["action"].shape == (5, 1)


def test_several_observation_keys_in_a_mock_environment():
    env = ContinuousActionVecMockEnv()
    keys = ["observation", "observation_orig"]
    actor = make_actor(make_network(observation=14, action=7), in_keys=keys, spec=env.action_spec)
    assert env.rollout(5, actor)["action"].shape[-1] == 7


def test_the_selector_acts_in_rollout_and_collector():
    env = make_env()
    qvalue = ValueOperator(QValueNetwork(3, 1, hidden_sizes=(8,)), in_keys=["observation", "action"])
    policy = EnergyBasedActionSelector(pendulum_actor(env), qvalue, num_action_samples=3)
    data = env.rollout(6, policy)
    assert data["action"].shape == (6, 1) and not {"state_action_value", "initial_noise"} & set(data.keys())
    collector = Collector(env, policy, frames_per_batch=10, total_frames=10, **COLLECTOR)
    assert next(iter(collector))["action"].shape == (10, 1)
    collector.shutdown()
