"""A recorded run's evaluations: when they were, and how RAT and OMS went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchrl_edp.evaluation import OnlineModelSelection, RunningAverage


def evaluations(row: Mapping[str, str], eval_iter: int) -> list[tuple[int, float]]:
    """Updates and score of every evaluation in a row of the ledger; the last one is at the run's end."""
    updates = int(row["updates"])
    scores = enumerate(row["scores"].split(), start=1)
    return [(min(i * eval_iter, updates), float(score)) for i, score in scores]


def curves(scores: Sequence[float]) -> tuple[list[float], list[float]]:
    """RAT and OMS after every evaluation."""
    average, best = RunningAverage(), OnlineModelSelection()
    return [average.update(score) for score in scores], [best.update(score) for score in scores]
