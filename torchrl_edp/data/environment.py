"""The environment in which the policy of a data set is evaluated, by D4RL's protocol."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

from torchrl_edp.data.checks import problem

ROBOTICS = "gymnasium_robotics"
# What D4RL's reference returns count: steps at a goal that stays, episodes that reach it, sub-tasks done in an episode.
_PROTOCOL: dict[str, dict[str, Any]] = {
    "PointMaze": {"continuing_task": True, "reset_target": False},
    "AntMaze": {"continuing_task": False},
    "FrankaKitchen": {"remove_task_when_completed": True, "terminate_on_tasks_completed": True},
}


def evaluation_env(spec: Any, eval_spec: Any = None) -> tuple[str | None, dict[str, Any], int | None]:
    """Gymnasium id (with the module that registers it), arguments and step limit of the evaluation environment.

    The one that the data set names for evaluation, else the one that it was recorded in. A maze with walls elsewhere
    than in the data is not used: the script that makes Minari's ``antmaze/umaze`` names one.

    Args:
        spec: Gymnasium's EnvSpec of the recording environment, or ``None``.
        eval_spec: that of the evaluation environment, or ``None``.
    """
    chosen = eval_spec or spec
    if chosen is None:
        return None, {}, None
    maps = [] if spec is None else [_walls(spec), _walls(chosen)]
    if all(maps) and maps[1:] != maps[:-1]:
        warnings.warn(
            f"{chosen.id} has other walls for evaluation than for the data: the data's are used.", stacklevel=4
        )
        chosen = spec
    if not str(chosen.entry_point).startswith(ROBOTICS):
        return chosen.id, dict(chosen.kwargs), chosen.max_episode_steps
    protocol = next((changes for name, changes in _PROTOCOL.items() if chosen.id.startswith(name)), {})
    return f"{ROBOTICS}:{chosen.id}", {**chosen.kwargs, **protocol}, chosen.max_episode_steps


def _walls(spec: Any) -> list[list[bool]]:
    return [[cell == 1 for cell in row] for row in spec.kwargs.get("maze_map", [])]


def require_robotics(needed_for: str) -> None:
    """Gymnasium-Robotics is installed.

    Raises:
        DatasetError: where it is not.
    """
    if find_spec(ROBOTICS) is None:
        remedy = "Install it: pip install gymnasium-robotics (torchrl_edp's extra 'robotics')."
        raise problem(needed_for, "the package gymnasium-robotics", "none", remedy)
