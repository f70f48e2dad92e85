"""D4RL's reference returns, by which scores of different tasks compare."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

Returns = TypeVar("Returns", float, np.ndarray, Tensor)


class ReferenceScore(NamedTuple):
    """Returns that score 0 (``min``) and 100 (``max``), and the step limit under which D4RL evaluates."""

    min: float
    max: float
    max_episode_steps: int | None = None


REFERENCE_SCORES: dict[str, ReferenceScore] = {
    "halfcheetah": ReferenceScore(-280.178953, 12135.0, 1000),
    "hopper": ReferenceScore(-20.272305, 3234.3, 1000),
    "walker2d": ReferenceScore(1.629008, 4592.3, 1000),
    "pen": ReferenceScore(96.262799, 3076.8331017826877, 100),
    "door": ReferenceScore(-56.512833, 2880.5693087298737, 200),
    "hammer": ReferenceScore(-274.856578, 12794.134825156867, 200),
    "relocate": ReferenceScore(-6.425911, 4233.877797728884, 200),
    "kitchen": ReferenceScore(0.0, 4.0, 280),
    "antmaze-umaze": ReferenceScore(0.0, 1.0, 700),
    "antmaze-medium": ReferenceScore(0.0, 1.0, 1000),
    "antmaze-large": ReferenceScore(0.0, 1.0, 1000),
    "maze2d-umaze": ReferenceScore(23.85, 161.86, 300),
    "maze2d-medium": ReferenceScore(13.13, 277.39, 600),
    "maze2d-large": ReferenceScore(6.7, 273.99, 800),
    "maze2d-umaze-dense": ReferenceScore(68.537689, 193.66285642381482, 300),
    "maze2d-medium-dense": ReferenceScore(44.264742, 297.4552547777125, 600),
    "maze2d-large-dense": ReferenceScore(30.569041, 303.4857382709002, 800),
}
"""D4RL's references by task (https://github.com/Farama-Foundation/D4RL, ``d4rl/infos.py``)."""

_FAMILIES = {"antmaze": "antmaze", "maze2d": "maze2d", "pointmaze": "maze2d"}


def reference_for(name: str) -> ReferenceScore | None:
    """D4RL's reference for a data set or environment id, or ``None`` where D4RL has none.

    Args:
        name: e.g. ``"mujoco/hopper/medium-v0"``, ``"D4RL/antmaze/medium-play-v1"``, ``"AdroitHandPen-v1"``.

    Examples:
        >>> from torchrl_edp.data import reference_for
        >>> reference_for("PointMaze_UMaze-v3").max_episode_steps
        300
        >>> reference_for("InvertedPendulum-v5") is None
        True
    """
    separated = re.sub("(dense)", r"-\1", name.lower())  # PointMaze_UMazeDense-v3
    words = [re.sub("^(adroithand|franka)", "", word) for word in re.split("[^a-z0-9]+", separated)]
    family = next((_FAMILIES[word] for word in words if word in _FAMILIES), None)
    dense = "-dense" if "dense" in words else ""
    tasks = [f"{family}-{word}{dense}" if family else word for word in words]
    return next((REFERENCE_SCORES[task] for task in tasks if task in REFERENCE_SCORES), None)


def normalized_score(returns: Returns, reference: ReferenceScore) -> Returns:
    """D4RL's score in percent, ``100 (R - min) / (max - min)`` (https://arxiv.org/abs/2004.07219, Sec. 3).

    Args:
        returns: undiscounted returns, a number or an array of any shape.
        reference: from :data:`REFERENCE_SCORES`, :func:`reference_for` or a data set.

    Examples:
        >>> from torchrl_edp.data import REFERENCE_SCORES, normalized_score
        >>> round(normalized_score(3234.3, REFERENCE_SCORES["hopper"]))
        100
    """
    return 100 * (returns - reference.min) / (reference.max - reference.min)
