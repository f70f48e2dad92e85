"""The two scores of a training run: RAT and OMS (Sec. 5 of https://arxiv.org/abs/2305.20081)."""

from __future__ import annotations

import math
from collections import deque
from typing import Any


class RunningAverage:
    """RAT, running average at training: the mean of the last ten evaluations.

    The honest score of the two, since it takes no pick among evaluations.

    Args:
        window: how many evaluations to average. With fewer so far, the value is the mean of those;
            with none, it is nan.

    Example:
        >>> rat = RunningAverage(window=2)
        >>> [rat.update(score) for score in (10.0, 20.0, 40.0)]
        [10.0, 15.0, 30.0]
    """

    def __init__(self, window: int = 10) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._scores: deque[float] = deque(maxlen=window)

    @property
    def value(self) -> float:
        """The mean of the evaluations in the window, nan before the first."""
        return math.fsum(self._scores) / len(self._scores) if self._scores else math.nan

    def update(self, score: float) -> float:
        """Take one evaluation's score in, return the new value.

        Raises:
            ValueError: if the score is not finite.
        """
        self._scores.append(_finite(score))
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON-able values."""
        return {"window": self._scores.maxlen, "scores": list(self._scores)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state (window and scores) that `state_dict` gave."""
        self._scores = deque(map(_finite, state["scores"]), maxlen=state["window"])


class OnlineModelSelection:
    """OMS, online model selection: the best evaluation so far.

    It picks a checkpoint by its score in the environment, which offline RL does not have: an upper
    bound. The value is -inf before the first evaluation, so `score > oms.value` says whether a
    policy is the best so far.

    Example:
        >>> oms = OnlineModelSelection()
        >>> [oms.update(score) for score in (10.0, 40.0, 20.0)]
        [10.0, 40.0, 40.0]
    """

    def __init__(self) -> None:
        self._best: float | None = None

    @property
    def value(self) -> float:
        """The best score so far, -inf before the first."""
        return -math.inf if self._best is None else self._best

    def update(self, score: float) -> float:
        """Take one evaluation's score in, return the new value.

        Raises:
            ValueError: if the score is not finite.
        """
        self._best = max(self.value, _finite(score))
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON-able values."""
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state that `state_dict` gave."""
        self._best = None if state["best"] is None else _finite(state["best"])


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"score: expected a finite number, got {score}; did the policy diverge?")
    return float(score)
