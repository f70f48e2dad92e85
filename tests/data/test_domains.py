"""AntMaze, PointMaze, Adroit and FrankaKitchen as Minari's sets name them, from records to a trained policy's score."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from data_helpers import make_minari
from omegaconf import OmegaConf
from tensordict.nn import TensorDictModule

from torchrl_edp.configs import FEED_FORWARD, SCHEMAS
from torchrl_edp.configs.experiments import LOSSES
from torchrl_edp.configs.presets import apply_preset, domain_of
from torchrl_edp.data import REFERENCE_SCORES, load_dataset
from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.training import (
    EDPTargetUpdate,
    build_feed_forward_loss,
    build_networks,
    build_value,
    prepare_data,
)
from torchrl_edp.training.feed_forward import acting_actor
from torchrl_edp.training.policy import EnvironmentPolicy

robotics = pytest.importorskip("gymnasium_robotics", reason="gymnasium-robotics is not installed")
gymnasium.register_envs(robotics)
pytestmark = pytest.mark.filterwarnings("ignore:.*The environment AntMaze_UMaze-v4 is out of date")  # the sets' own

EPISODES, STEPS = 3, 15
KITCHEN = ["microwave", "kettle", "light switch", "slide cabinet"]
U = [[1, 1, 1, 1, 1], [1, "g", 0, 0, 1], [1, 1, 1, 0, 1], [1, "r", 0, 0, 1], [1, 1, 1, 1, 1]]
MIRRORED = [[1, 1, 1, 1, 1], [1, 0, 0, "r", 1], [1, 0, 1, 1, 1], [1, 0, 0, "g", 1], [1, 1, 1, 1, 1]]
NO_GOAL_STAYS = {"continuing_task": True, "reset_target": True}

# Recorded in, evaluated in (as the public sets' metadata have it); what then comes out.
SETS: dict[str, dict[str, Any]] = {
    "D4RL/pointmaze/umaze-v2": {
        "env": ("PointMaze_UMaze-v3", {**NO_GOAL_STAYS, "max_episode_steps": 1_000_000}),
        "eval_env": ("PointMaze_UMaze-v3", {"maze_map": U, "continuing_task": True, "reset_target": False}),
        "entries": (8, 2),
        "reference": "maze2d-umaze",
        "kwargs": {"maze_map": U, "continuing_task": True, "reset_target": False},
        "rule": {"edp_iql": "raw", "edp_td3": "raw", "edp_crr": "raw"},
    },
    "D4RL/antmaze/umaze-v1": {
        "env": ("AntMaze_UMaze-v4", {"maze_map": U, "continuing_task": True}),
        "eval_env": ("AntMaze_UMaze-v4", {"maze_map": MIRRORED, "continuing_task": True}),
        "entries": (31, 8),
        "reference": "antmaze-umaze",
        "kwargs": {"maze_map": U, "continuing_task": False},  # the data's maze; an episode ends at the goal
        "rule": {"edp_iql": "antmaze_iql", "edp_td3": "antmaze_td3", "edp_crr": "antmaze_td3"},
    },
    "D4RL/pen/human-v2": {
        "env": ("AdroitHandPen-v1", {}),
        "entries": (45, 24),
        "reference": "pen",
        "kwargs": {"reward_type": "dense"},
        "rule": {"edp_iql": "min_max", "edp_td3": "min_max", "edp_crr": "min_max"},
    },
    "D4RL/kitchen/complete-v2": {
        "env": (
            "FrankaKitchen-v1",
            {
                "tasks_to_complete": KITCHEN,
                "remove_task_when_completed": False,
                "terminate_on_tasks_completed": False,
            },
        ),
        "entries": (59, 9),
        "reference": "kitchen",
        "kwargs": {
            "tasks_to_complete": KITCHEN,
            "remove_task_when_completed": True,
            "terminate_on_tasks_completed": True,
        },
        "rule": {"edp_iql": "min_max", "edp_td3": "min_max", "edp_crr": "min_max"},
    },
}
COUNTERPARTS = {"td3_bc": "edp_td3", "crr": "edp_crr", "iql": "edp_iql", "bc": "edp_iql"}
STEPS_OF_D4RL = {"maze2d-umaze": 300, "antmaze-umaze": 700, "pen": 100, "kitchen": 280}


def make_env(spec: tuple[str, dict[str, Any]]) -> gymnasium.Env:
    return gymnasium.make(spec[0], disable_env_checker=True, **spec[1])


def finish_a_task(env: gymnasium.Env, task: str = "microwave") -> None:
    """Put what the task is about where it belongs."""
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_GOALS, OBS_ELEMENT_INDICES

    inner: Any = env.unwrapped
    positions = inner.data.qpos.copy()
    positions[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
    inner.robot_env.set_state(positions, inner.data.qvel.copy())


def bring_the_goal(env: gymnasium.Env) -> None:
    """Put a maze's goal where the agent is."""
    inner: Any = env.unwrapped
    agent = inner.ant_env if hasattr(inner, "ant_env") else inner.point_env
    inner.goal = agent.data.qpos[:2].copy()


def stack(rows: list[Any]) -> Any:
    return {key: stack([row[key] for row in rows]) for key in rows[0]} if isinstance(rows[0], dict) else np.stack(rows)


def record(env: gymnasium.Env, seed: int) -> dict[str, Any]:
    """An episode of random actions; half-way a task of the kitchen gets done, a maze's goal comes near."""
    env.action_space.seed(seed)
    observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
    for step in range(STEPS):
        if step == STEPS // 2 and env.spec.id.startswith("FrankaKitchen"):
            finish_a_task(env)
        if step == STEPS // 2 and "Maze" in env.spec.id:
            bring_the_goal(env)
        actions.append(env.action_space.sample())
        observation, reward, *_ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
    flags = {"terminations": np.zeros(STEPS, bool), "truncations": np.arange(STEPS) == STEPS - 1}
    return {"observations": stack(observations), "actions": np.stack(actions), "rewards": np.array(rewards), **flags}


@pytest.fixture(params=SETS)
def recorded(request, minari_root):
    """A small set recorded in its environment, under the public set's name, and what is expected of it."""
    case = SETS[request.param]
    env = make_env(case["env"])
    options = {"env": env, "observation_space": env.observation_space, "action_space": env.action_space}
    if "eval_env" in case:
        options["eval_env"] = make_env(case["eval_env"]).spec
    make_minari(request.param, [record(env, seed) for seed in range(EPISODES)], **options)
    env.close()
    return request.param, case


def load(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AntMaze_UMaze-v4 has other walls")
        return load_dataset(name)


def test_data_know_how_d4rl_evaluates(recorded):
    name, case = recorded
    data = load(name)
    assert data.num_transitions == EPISODES * STEPS
    assert (data.observation_size, data.action_size) == case["entries"]
    assert data.reference == REFERENCE_SCORES[case["reference"]]
    assert data.max_episode_steps == STEPS_OF_D4RL[case["reference"]]
    assert data.env_id == f"gymnasium_robotics:{case['env'][0]}"
    assert case["kwargs"].items() <= data.env_kwargs.items()
    low, high = (torch.from_numpy(bound) for bound in (data.action_low.numpy(), data.action_high.numpy()))
    assert (data.transitions["action"] >= low).all() and (data.transitions["action"] <= high).all()


def test_another_maze_for_evaluation_is_not_used_and_said(recorded):
    name, case = recorded
    if "antmaze" not in name:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_dataset(name)
        return
    with pytest.warns(UserWarning, match="AntMaze_UMaze-v4 has other walls for evaluation than for the data"):
        assert load_dataset(name).env_kwargs["maze_map"] == U


def build(experiment: str, cfg: Any, data: Any) -> tuple[Any, Any]:
    """The loss of an experiment, and the policy that it trains."""
    if experiment in FEED_FORWARD:
        loss = build_feed_forward_loss(cfg, data.observation_size, data.action_size)
        return loss, acting_actor(cfg, loss, data.observation_size, data.action_size)
    actor, qvalues = build_networks(cfg, data)
    arguments = {key: value for key, value in vars(cfg.loss).items() if key != "gamma"}
    values = [build_value(data.observation_size, cfg.network)] if experiment == "edp_iql" else []
    loss = LOSSES[type(cfg.loss)](actor, qvalues, *values, **arguments)
    return loss.make_value_estimator(gamma=cfg.loss.gamma), actor


@pytest.mark.parametrize("experiment", SCHEMAS)
def test_from_data_by_the_papers_preset_to_a_policys_score(recorded, experiment):
    name, case = recorded
    small = ["network.hidden_sizes=[16]"]
    if experiment not in FEED_FORWARD:
        small += ["diffusion.num_calls=3", "policy.num_action_samples=2"]
    config = OmegaConf.structured(SCHEMAS[experiment](preset="paper", dataset=name))
    cfg: Any = OmegaConf.to_object(apply_preset(config, experiment, small))
    assert cfg.data.reward_rule == case["rule"][COUNTERPARTS.get(experiment, experiment)]
    data = load(name)
    prepared = prepare_data(data, reward_rule=cfg.data.reward_rule, batch_size=16)
    loss, actor = build(experiment, cfg, data)
    targets = EDPTargetUpdate(loss)
    before = {key: value.clone() for key, value in loss.named_parameters()}
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    losses = loss(prepared.buffer.sample())
    total = sum(value for key, value in losses.items() if key.startswith("loss_"))
    total.backward()
    optimizer.step()
    targets.step()
    after = dict(loss.named_parameters())
    assert total.isfinite() and any(not after[key].equal(value) for key, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
    policy = EnvironmentPolicy(actor, prepared.observation_normalizer, prepared.action_scaler)
    options = {"reference": data.reference, "observation_keys": data.observation_keys, "env_kwargs": data.env_kwargs}
    with PolicyEvaluator(data.env_id, num_episodes=2, max_steps=4, **options) as evaluator:
        result = evaluator(policy, seed=0)
    assert (result.lengths == 4).all() and -50 < result.normalized < 150


def test_rewards_after_the_rule(recorded):
    """What the paper's rules make of the environments' own rewards."""
    name, case = recorded
    data = load(name)
    raw = data.transitions["next", "reward"]
    rewards = prepare_data(data, reward_rule=case["rule"]["edp_td3"], batch_size=4).buffer[:]["next", "reward"]
    if domain_of(name) == "antmaze":
        assert rewards.equal(4 * (raw - 0.5)) and set(raw.unique().tolist()) == {0.0, 1.0}
    elif domain_of(name) == "maze":
        assert rewards.equal(raw) and set(raw.unique().tolist()) == {0.0, 1.0}
    else:
        assert (rewards.min(), rewards.max()) == (-1, 1)


def test_a_task_of_the_kitchen_counts_once_in_evaluation_and_at_every_step_in_the_data(minari_root):
    name = "D4RL/kitchen/complete-v2"
    env = make_env(SETS[name]["env"])
    make_minari(name, [record(env, 0)], env=env, observation_space=env.observation_space, action_space=env.action_space)
    data = load_dataset(name)
    assert data.transitions["next", "reward"].sum() > 1
    options = {"observation_keys": data.observation_keys, "env_kwargs": data.env_kwargs, "reference": data.reference}
    with PolicyEvaluator(data.env_id, num_episodes=1, max_steps=10, **options) as evaluator:
        inner = evaluator.envs[0]
        done = []

        def act(observation: torch.Tensor) -> torch.Tensor:
            if len(done) == 3:
                finish_a_task(inner)
            done.append(1)
            return torch.zeros(len(observation), 9)

        result = evaluator(TensorDictModule(act, ["observation"], ["action"]), seed=0)
    assert result.returns.tolist() == [1.0] and result.normalized == 25


def test_an_ants_episode_ends_at_the_goal(minari_root):
    name = "D4RL/antmaze/umaze-v1"
    case = SETS[name]
    env = make_env(case["env"])
    make_minari(name, [record(env, 0)], env=env, observation_space=env.observation_space, action_space=env.action_space)
    data = load_dataset(name)
    arrived = gymnasium.make(data.env_id, disable_env_checker=True, **data.env_kwargs)
    arrived.reset(seed=0)
    bring_the_goal(arrived)
    _, reward, terminated, *_ = arrived.step(np.zeros(8, np.float32))
    assert reward == 1 and terminated
