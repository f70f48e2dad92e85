"""What a run has found out so far: scores, losses being averaged, times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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


def summarize_seeds(seeds: Sequence[int], scores: Sequence[Scores]) -> dict[str, Any]:
    """The result of several seeds: means and deviations of their scores, each seed's own, and the times of all.

    Examples:
        >>> times = {"seconds": 9.0, "training_seconds": 8.0, "evaluation_seconds": 1.0}
        >>> times |= {"compile_seconds": 0.0, "updates_per_second": 5.0}
        >>> scores = [Scores(rat=rat, oms=rat + 10, last=rat, **times) for rat in (50.0, 60.0)]
        >>> summary = summarize_seeds([0, 1], scores)
        >>> summary["rat"], summary["rat_seeds"], round(summary["rat_std"], 2)
        (55.0, [50.0, 60.0], 7.07)
    """
    summary: dict[str, Any] = {"seeds": list(seeds)}
    for name in ("rat", "oms", "last"):
        values = [value for value in (getattr(own, name) for own in scores) if value is not None]
        summary[name] = statistics.fmean(values) if values else None
        summary[f"{name}_std"] = statistics.stdev(values) if values else None
        summary[f"{name}_seeds"] = values
    return {**asdict(scores[0]), **summary}


class SeedScores:
    """The evaluations of one seed so far."""

    def __init__(self) -> None:
        self.rat, self.oms = RunningAverage(), OnlineModelSelection()
        self.last: float | None = None

    def add(self, value: float) -> bool:
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

    def info(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {"rat": self.rat.state_dict(), "oms": self.oms.state_dict(), "last": self.last}

    def load(self, info: dict[str, Any]) -> None:
        """Take over what :meth:`info` gave."""
        self.rat.load_state_dict(info["rat"])
        self.oms.load_state_dict(info["oms"])
        self.last = info["last"]


class TrainingRecord:
    """Scores, running means of the losses and seconds spent: what a resumed run needs beside the train state.

    Args:
        num_seeds: seeds that are trained together; each has scores of its own, in ``seeds``.

    Examples:
        >>> record = TrainingRecord()
        >>> record.seeds[0].add(50.0)
        True
        >>> other = TrainingRecord()
        >>> other.load(record.tensors(), record.info())
        >>> other.seeds[0].oms.value
        50.0
    """

    def __init__(self, num_seeds: int = 1) -> None:
        self.seeds = [SeedScores() for _ in range(num_seeds)]
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

    def shown(self) -> dict[str, float]:
        """The scores to show, means over seeds; none where nothing was evaluated."""
        shown = [seed.shown() for seed in self.seeds]
        return {name: statistics.fmean(scores[name] for scores in shown) for name in shown[0]}

    def scores(self) -> list[Scores]:
        """The result of every seed; times are those of all."""
        compile, training, evaluation = self.seconds.values()
        times = {
            "seconds": sum(self.seconds.values()),
            "training_seconds": compile + training,
            "evaluation_seconds": evaluation,
            "compile_seconds": compile,
            "updates_per_second": self.timed_updates / max(training, 1e-9),
        }
        shown = [seed.shown() for seed in self.seeds]
        return [Scores(scores.get("RAT"), scores.get("OMS"), scores.get("score"), **times) for scores in shown]

    def tensors(self) -> dict[str, Tensor]:
        """The part of the state that is kept in tensors."""
        return {f"means.{name}": value for name, value in zip(self.means.names, self.means.sums, strict=True)}

    def info(self) -> dict[str, Any]:
        """The other part, JSON-able."""
        return {
            "seeds": [seed.info() for seed in self.seeds],
            "means": {"names": self.means.names, "count": self.means.count},
            "seconds": dict(self.seconds),
            "timed_updates": self.timed_updates,
        }

    def load(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Take over what :meth:`tensors` and :meth:`info` gave."""
        for seed, scores in zip(self.seeds, info.get("seeds", [info]), strict=True):  # once there was but one
            seed.load(scores)
        self.means.count, self.means.names = info["means"]["count"], list(info["means"]["names"])
        self.means.sums = [tensors[f"means.{name}"].clone() for name in self.means.names]
        self.seconds, self.timed_updates = dict(info["seconds"]), info["timed_updates"]


class RunningMeans:
    """Means of metrics [] or [S], kept on their device: nothing is read until a row is written."""

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

    def take(self) -> list[dict[str, float]]:
        """The means since the last call, of every seed."""
        values = (torch.stack(self.sums) / self.count).reshape(len(self.sums), -1).T.tolist()
        self.count, names = 0, self.names
        self.names, self.sums = [], []
        return [dict(zip(names, own, strict=True)) for own in values]
