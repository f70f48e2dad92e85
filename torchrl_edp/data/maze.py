"""A scripted controller that walks through mazes, as the one that made D4RL's maze2d; it makes local PointMaze sets."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from torchrl_edp.data.checks import problem
from torchrl_edp.data.collect import Episode
from torchrl_edp.data.environment import require_robotics

Cell = tuple[int, int]

MAZES: dict[str, tuple[str, Cell]] = {
    "umaze": ("PointMaze_UMaze-v3", (1, 1)),
    "medium": ("PointMaze_Medium-v3", (6, 6)),
    "large": ("PointMaze_Large-v3", (7, 9)),
}
"""Environment and goal cell (row, column) by maze; the cells are D4RL's maze2d's."""

GAIN, NOISE, OFFSET, REACHED = 10.0, 0.5, 0.2, 0.1


class WaypointController:
    """Walks to random cells of a PointMaze, one after the other, by the shortest way.

    A waypoint is a cell's centre minus U[0, 0.2] per axis (the last one: the centre), reached within 0.1; the action
    is ``10 (waypoint - position) - velocity`` plus noise N(0, 0.5^2), clipped to [-1, 1]. The environment's own goal
    lies around one fixed cell, pays 1 for every step within 0.45 of it (D4RL: 0.5) and never ends the episode; the
    controller does not heed it. So what it leaves are roll-outs in the evaluation environment itself.

    Args:
        maze: a key of :data:`MAZES`.

    Raises:
        DatasetError: where gymnasium-robotics is not installed.

    Source: the maze2d data of https://arxiv.org/abs/2004.07219.
    """

    def __init__(self, maze: str) -> None:
        require_robotics(f"local/pointmaze/{maze}-v0")
        self.env_id, self.goal_cell = MAZES[maze]

    def make_env(self) -> Any:
        """The evaluation environment: D4RL's one goal cell, a sparse reward, only the time limit ends an episode."""
        import gymnasium

        try:
            import gymnasium_robotics

            gymnasium.register_envs(gymnasium_robotics)
            maze_map = [list(row) for row in gymnasium.spec(self.env_id).kwargs["maze_map"]]
            maze_map[self.goal_cell[0]][self.goal_cell[1]] = "g"
            options: dict[str, Any] = {"maze_map": maze_map, "continuing_task": True, "reset_target": False}
            return gymnasium.make(self.env_id, disable_env_checker=True, **options)
        except (gymnasium.error.Error, ImportError) as error:
            remedy = "Install the versions of constraints.txt: gymnasium-robotics 1.4.2, mujoco below 3.12."
            raise problem(self.env_id, "an environment that Gymnasium can make", repr(error), remedy) from error

    def fingerprint(self) -> str:
        """SHA-256 of what the controller does, by which a cached data set knows it; version 1."""
        about = 1, self.env_id, self.goal_cell, GAIN, NOISE, OFFSET, REACHED
        return hashlib.sha256(repr(about).encode()).hexdigest()

    def collect(self, num_steps: int, seed: list[int], bar: Any = None) -> list[Episode]:
        """Episodes with at least ``num_steps`` transitions in all; all are as long as the time limit."""
        env = self.make_env()
        env_seed, own_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
        rng = np.random.default_rng(own_seed)
        reset: dict[str, Any] = {"seed": env_seed}  # seeded once; later episodes go on from there
        episodes: list[Episode] = []
        steps = 0
        while steps < num_steps:
            observation, _ = env.reset(**reset)
            reset, episode, ended = {}, Episode([_as_float32(observation)]), False
            walk = Walk(env.unwrapped.maze, rng)
            while not ended:
                action = walk.act(observation["observation"])
                observation, reward, episode.terminated, truncated, _ = env.step(action)
                episode.add(_as_float32(observation), action, reward)
                ended = episode.terminated or truncated
            episodes.append(episode)
            steps += len(episode.rewards)
            if bar is not None:
                bar.update(len(episode.rewards))
        env.close()
        return episodes


class Walk:
    """The waypoints that lie ahead in one episode, and the actions that lead along them.

    Args:
        maze: of the environment: its map, and what turns cells into positions and back.
        rng: draws goals, waypoints and noise.
    """

    def __init__(self, maze: Any, rng: np.random.Generator) -> None:
        self.maze, self.rng = maze, rng
        self.waypoints: deque[np.ndarray] = deque()

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The action ``[2]`` for position and velocity ``[4]``."""
        position, velocity = observation[:2], observation[2:]
        if self.waypoints and np.hypot(*(self.waypoints[0] - position)) < REACHED:
            self.waypoints.popleft()
        if not self.waypoints:
            self.waypoints.extend(self._plan(position))
        action = GAIN * (self.waypoints[0] - position) - velocity + NOISE * self.rng.standard_normal(2)
        return action.clip(-1, 1).astype(np.float32)

    def _plan(self, position: np.ndarray) -> Iterator[np.ndarray]:
        start: Cell = tuple(self.maze.cell_xy_to_rowcol(position).tolist())
        goals = [cell for cell in free_cells(self.maze.maze_map) if cell != start]
        *way, goal = shortest_path(self.maze.maze_map, start, goals[self.rng.integers(len(goals))])
        for cell in way:
            yield self.maze.cell_rowcol_to_xy(cell) - OFFSET * self.rng.random(2)
        yield self.maze.cell_rowcol_to_xy(goal)


def free_cells(maze_map: list[list[Any]]) -> list[Cell]:
    """Cells (row, column) without a wall."""
    return [(i, j) for i, row in enumerate(maze_map) for j, cell in enumerate(row) if cell != 1]


def shortest_path(maze_map: list[list[Any]], start: Cell, goal: Cell) -> list[Cell]:
    """Cells of a shortest way, without ``start``, to ``goal``; walls close the map all around.

    Examples:
        >>> walls = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
        >>> shortest_path(walls, (1, 1), (2, 2))
        [(1, 2), (2, 2)]
    """
    toward: dict[Cell, Cell] = {goal: goal}  # from every cell that was met, the next one on its way to the goal
    queue = deque([goal])
    while start not in toward:
        i, j = queue.popleft()
        for cell in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if maze_map[cell[0]][cell[1]] != 1 and cell not in toward:
                toward[cell] = i, j
                queue.append(cell)
    path = [toward[start]]
    while path[-1] != goal:
        path.append(toward[path[-1]])
    return path


def _as_float32(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value.astype(np.float32) for key, value in observation.items()}
