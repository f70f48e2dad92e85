"""Local PointMaze sets: ways through the mazes, the controller's data, D4RL's maze2d reward and evaluation."""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule

from torchrl_edp.data import (
    REFERENCE_SCORES,
    DatasetError,
    list_local_counterparts,
    load_dataset,
    make_local_dataset,
    maze,
)
from torchrl_edp.data.maze import MAZES, NOISE, Walk, WaypointController, free_cells, shortest_path
from torchrl_edp.evaluation import PolicyEvaluator

gymnasium_robotics = pytest.importorskip("gymnasium_robotics", reason="gymnasium-robotics is not installed")

UMAZE = "local/pointmaze/umaze-v0"
GOAL_CELLS = {"umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}  # of D4RL's maze2d
GOALS_IN_20K_STEPS = {"umaze": 280, "medium": 140, "large": 84}  # of another implementation of D4RL's controller


@pytest.fixture(params=MAZES)
def env(request):
    env = WaypointController(request.param).make_env()
    env.name = request.param
    yield env
    env.close()


def make(dataset_id=UMAZE, **options):
    return make_local_dataset(dataset_id, **{"num_steps": 2000, "progress": False, **options})


def test_paths_are_shortest_and_keep_off_walls(env):
    maze_map = env.unwrapped.maze.maze_map
    cells = free_cells(maze_map)
    a = np.array(cells)
    steps = np.abs(a[:, None] - a[None]).sum(-1)
    distance = np.where(steps <= 1, steps, 1e6)
    for k in range(len(cells)):  # Floyd and Warshall
        distance = np.minimum(distance, distance[:, [k]] + distance[[k]])
    for (i, start), (j, goal) in itertools.permutations(enumerate(cells), 2):
        path = [start, *shortest_path(maze_map, start, goal)]
        assert len(path) == distance[i, j] + 1 and path[-1] == goal and set(path) <= set(cells)
        assert all(abs(r - s) + abs(c - d) == 1 for (r, c), (s, d) in itertools.pairwise(path))


def test_the_evaluation_goal_is_d4rls(env):
    """Goals at the ends of D4RL's mazes, drawn anew around that cell; starts anywhere else."""
    inner = env.unwrapped
    goal, starts = GOAL_CELLS[env.name], set()
    for seed in range(200):
        observation, _ = env.reset(seed=seed)
        offset = observation["desired_goal"] - inner.maze.cell_rowcol_to_xy(goal)
        assert (abs(offset) <= 0.25).all()
        starts.add(tuple(inner.maze.cell_xy_to_rowcol(observation["achieved_goal"]).tolist()))
    others = {*free_cells(inner.maze.maze_map)} - {goal}
    assert starts <= others and len(starts) > 0.9 * len(others)
    assert inner.continuing_task and not inner.reset_target and inner.reward_type == "sparse"


@pytest.mark.parametrize("name", MAZES)
def test_the_controller_reaches_as_many_goals_as_d4rls(name, monkeypatch):
    plans, cells, visited = [], set(), set()
    original = Walk._plan

    def counted(self, position):
        plans.append(1)
        cells.update(free_cells(self.maze.maze_map))
        visited.add(tuple(self.maze.cell_xy_to_rowcol(position).tolist()))
        return original(self, position)

    monkeypatch.setattr(Walk, "_plan", counted)
    episodes = WaypointController(name).collect(8000, [0])
    goals = len(plans) - len(episodes) / 2  # the time limit cuts the last way of an episode, about in the middle
    assert goals == pytest.approx(GOALS_IN_20K_STEPS[name] * 8000 / 20_000, rel=0.2)
    assert len(visited) > min(goals, len(cells)) / 2  # goals are all over the maze


def test_data_have_d4rls_reward_and_the_goal_in_the_observation(minari_root):
    data = make()
    td = data.transitions
    assert data.dataset_id == "local/pointmaze/umaze-n2000-s0-v0" and data.is_local_counterpart
    assert data.episode_lengths.tolist() == [300] * 7 and data.parts == {"waypoints": 7}
    assert data.observation_keys == ("observation", "achieved_goal", "desired_goal")
    assert data.reference == REFERENCE_SCORES["maze2d-umaze"] and data.max_episode_steps == 300
    assert not td["next", "terminated"].any() and td["next", "truncated"].sum() == 7
    position, velocity, achieved, desired = td["next", "observation"].split(2, -1)
    assert position.equal(achieved) and (velocity.abs() < 6).all()
    near = (achieved.double() - desired.double()).norm(dim=-1, keepdim=True)
    clear = (near - 0.45).abs() > 1e-6  # float32
    assert td["next", "reward"][clear].equal((near <= 0.45)[clear].float())
    assert 0 < td["next", "reward"].mean() < 0.5
    goals = desired.view(7, 300, 2)
    assert (goals == goals[:, :1]).all() and len(goals[:, 0].unique(dim=0)) == 7
    following = td["next", "observation"].view(7, 300, 8)[:, :-1]
    assert following.equal(td["observation"].view(7, 300, 8)[:, 1:])
    assert td["action"].abs().max() == 1 and (td["action"].abs() < 1).float().mean() > 0.05


def test_actions_follow_the_rule(env):
    """Over many draws at one place: gain times the way to the waypoint, less the velocity, plus noise."""
    walk = Walk(env.unwrapped.maze, np.random.default_rng(0))
    position = env.unwrapped.maze.cell_rowcol_to_xy((1, 1))
    walk.waypoints.append(position + [0.15, -0.12])
    observation = np.concatenate([position, [1.4, -1.3]])
    actions = np.stack([walk.act(observation) for _ in range(4000)])
    inside = actions[(abs(actions) < 1).all(1)]
    assert np.median(actions, axis=0) == pytest.approx([0.1, 0.1], abs=4 * NOISE * 1.25 / 4000**0.5)
    quartiles = np.quantile(actions, [0.25, 0.75], axis=0)
    assert quartiles[1] - quartiles[0] == pytest.approx([2 * 0.6745 * NOISE] * 2, rel=0.1)
    assert len(inside) > 3000 and actions.min() == -1 and actions.max() == 1
    for offset, left in ((0.08, 2), (0.06, 1)):  # within 0.1: on to the next one
        walk.waypoints.appendleft(position + offset)
        walk.act(observation)
        assert len(walk.waypoints) == left
        walk.waypoints = deque([walk.waypoints[-1]])


def test_waypoints_lie_beside_the_centres_and_the_last_one_on_it(env):
    inner = env.unwrapped.maze
    walk, offsets = Walk(inner, np.random.default_rng(0)), []
    start = (1, 1)
    for _ in range(200):
        waypoints = list(walk._plan(inner.cell_rowcol_to_xy(start)))
        cells = [tuple(inner.cell_xy_to_rowcol(waypoint).tolist()) for waypoint in waypoints]
        assert cells == shortest_path(inner.maze_map, start, cells[-1]) and cells[-1] != start
        assert waypoints[-1].tolist() == inner.cell_rowcol_to_xy(cells[-1]).tolist()
        offsets += [w - inner.cell_rowcol_to_xy(cell) for w, cell in zip(waypoints[:-1], cells, strict=False)]
        start = cells[-1]
    offsets = np.stack(offsets)
    assert (offsets <= 0).all() and (offsets >= -0.2).all()
    assert offsets.mean(0) == pytest.approx([-0.1, -0.1], abs=0.02) and offsets.min() < -0.18 < -0.02 < offsets.max()


def head_for_goal(maze_map, to_cell, to_xy):
    """The controller without noise, on the way to the environment's goal, where it stays."""

    def act(observations: torch.Tensor) -> torch.Tensor:
        actions = []
        for row in observations.double().numpy():
            position, velocity, goal = row[:2], row[2:4], row[6:]
            cell, last = (tuple(to_cell(xy).tolist()) for xy in (position, goal))
            target = goal if cell == last else to_xy(shortest_path(maze_map, cell, last)[0])
            actions.append(10 * (target - position) - velocity)
        return torch.tensor(np.array(actions), dtype=torch.float32)

    return TensorDictModule(act, ["observation"], ["action"])


@pytest.mark.parametrize("name", MAZES)
def test_from_the_data_to_scores_on_d4rls_scale(name, minari_root):
    """The way there and staying is worth more than D4RL's reference controller (100), standing still nothing."""
    data = make(f"local/pointmaze/{name}-v0", num_steps=1)
    options = {"max_steps": data.max_episode_steps, "observation_keys": data.observation_keys}
    with PolicyEvaluator(
        data.env_id, num_episodes=3, reference=data.reference, env_kwargs=data.env_kwargs, **options
    ) as evaluator:
        inner = evaluator.envs[0].unwrapped.maze
        policy = head_for_goal(inner.maze_map, inner.cell_xy_to_rowcol, inner.cell_rowcol_to_xy)
        result = evaluator(policy, seed=0)
        rest = evaluator(TensorDictModule(lambda obs: torch.zeros(len(obs), 2), ["observation"], ["action"]), seed=0)
    assert (result.lengths == data.max_episode_steps).all()
    assert 100 < result.normalized < 250
    assert rest.normalized <= 0


def test_reproducible_cached_and_made_again_by_another_controller(minari_root, monkeypatch):
    first = make()
    with monkeypatch.context() as patch:
        patch.setattr(WaypointController, "collect", None)  # a cached set needs no roll-out
        assert make().fingerprint() == load_dataset(first.dataset_id).fingerprint() == first.fingerprint()
    assert make(force=True).fingerprint() == first.fingerprint()
    assert make(seed=1).fingerprint() != first.fingerprint()
    monkeypatch.setattr(maze, "NOISE", 0.1)
    with pytest.warns(UserWarning, match="other behaviour policies"):
        assert make().fingerprint() != first.fingerprint()


def test_mazes_are_listed_and_unknown_ones_refused(minari_root, behavior_dir):
    known = [f"local/pointmaze/{name}-v0" for name in ("umaze", "medium", "large")]
    assert list_local_counterparts()[-3:] == known
    assert not {*known} & {*list_local_counterparts(behavior_dir)}
    with pytest.raises(DatasetError, match="'local/pointmaze/large-v0'.*got 'local/pointmaze/huge-v0'"):
        make("local/pointmaze/huge-v0")
