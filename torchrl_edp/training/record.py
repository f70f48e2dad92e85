"""What a run has found out so far: scores, losses being averaged, times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchrl_edp.evaluation import OnlineModelSelection, RunningAverage


@dataclass
class Scores:
    """Scores and times of a finished run.

    Scores are normalised if the data set has a reference, else returns; None where nothing was evaluated.
    """

    rat: float | None
    oms: float | None
    last: float | None
    seconds: float
    training_seconds: float
    evaluation_seconds: float
    compile_seconds: float
    updates_per_second: float


class TrainingRecord:
    """Scores, running means of the losses and seconds spent: what a resumed run needs beside the train state.

    Examples:
        >>> record = TrainingRecord()
        >>> record.score(50.0)
        True
        >>> other = TrainingRecord()
        >>> other.load(record.tensors(), record.info())
        >>> other.oms.value
        50.0
    """

    def __init__(self) -> None:
        self.rat, self.oms = RunningAverage(), OnlineModelSelection()
        self.last: float | None = None
        self.means = RunningMeans()
        self.seconds = {"compile": 0.0, "training": 0.0, "evaluation": 0.0}  # compile: the first update's
        self.timed_updates = 0
        self._since = time.perf_counter()

    def spend(self, phase: str) -> None:
        """The time since the last call went into ``phase``: "compile", "training" (one update) or "evaluation"."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._since
        self._since = now
        self.timed_updates += phase == "training"

    def score(self, value: float) -> bool:
        """Take an evaluation's score in; whether it is the best so far."""
        best = value > self.oms.value
        self.last = value
        self.rat.update(value)
        self.oms.update(value)
        return best

    def shown(self) -> dict[str, float]:
        """The scores to show; none where nothing was evaluated."""
        if self.last is None:
            return {}
        return {"score": self.last, "RAT": self.rat.value, "OMS": self.oms.value}

    def scores(self) -> Scores:
        """The result."""
        compile, training, evaluation = self.seconds.values()
        shown = self.shown()
        return Scores(
            rat=shown.get("RAT"),
            oms=shown.get("OMS"),
            last=self.last,
            seconds=sum(self.seconds.values()),
            training_seconds=compile + training,
            evaluation_seconds=evaluation,
            compile_seconds=compile,
            updates_per_second=self.timed_updates / max(training, 1e-9),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The part of the state that is kept in tensors."""
        return {f"means.{name}": value for name, value in zip(self.means.names, self.means.sums, strict=True)}

    def info(self) -> dict[str, Any]:
        """The other part, JSON-able."""
        return {
            "rat": self.rat.state_dict(),
            "oms": self.oms.state_dict(),
            "last": self.last,
            "means": {"names": self.means.names, "count": self.means.count},
            "seconds": dict(self.seconds),
            "timed_updates": self.timed_updates,
        }

    def load(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Take over what :meth:`tensors` and :meth:`info` gave."""
        self.rat.load_state_dict(info["rat"])
        self.oms.load_state_dict(info["oms"])
        self.last = info["last"]
        self.means.count, self.means.names = info["means"]["count"], list(info["means"]["names"])
        self.means.sums = [tensors[f"means.{name}"].clone() for name in self.means.names]
        self.seconds, self.timed_updates = dict(info["seconds"]), info["timed_updates"]


class RunningMeans:
    """Means of metrics, kept on their device: nothing is read until a row is written."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []
        self.sums: list[Tensor] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Take in one update's metrics, always the same ones."""
        if not self.count:
            self.names, self.sums = list(metrics), [value.detach().clone() for value in metrics.values()]
        else:
            torch._foreach_add_(self.sums, list(metrics.values()))
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        values = (torch.stack(self.sums) / self.count).tolist()
        self.count, names = 0, self.names
        self.names, self.sums = [], []
        return dict(zip(names, values, strict=True))
