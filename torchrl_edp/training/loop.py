"""The training loop: updates, evaluations, logging."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from torchrl_edp.evaluation import EvaluationResult, OnlineModelSelection, RunningAverage
from torchrl_edp.training.run import RunFolder
from torchrl_edp.training.state import TrainState


@dataclass
class Scores:
    """Scores and times of a finished run; scores are normalised if the data set has a reference, else returns."""

    rat: float
    oms: float
    last: float
    seconds: float
    training_seconds: float
    evaluation_seconds: float
    compile_seconds: float
    updates_per_second: float


def train(
    state: TrainState,
    evaluate: Callable[[], EvaluationResult],
    folder: RunFolder,
    *,
    gradient_steps: int,
    eval_iter: int,
    log_iter: int = 500,
    progress: bool = True,
    on_best: Callable[[], None] | None = None,
) -> Scores:
    """Update until ``gradient_steps``, evaluating every ``eval_iter`` updates.

    Args:
        state: the train state.
        evaluate: evaluates the current policy; must leave the training's random stream alone.
        folder: takes the metrics.
        gradient_steps: number of updates in all.
        eval_iter: updates between evaluations; 0 for none.
        log_iter: updates whose losses are averaged into one row.
        progress: show a progress bar.
        on_best: called when an evaluation is the best so far.

    Returns:
        RAT, OMS, the last score and where the time went.
    """
    rat, oms = RunningAverage(), OnlineModelSelection()
    started, evaluation_seconds, last = time.perf_counter(), 0.0, math.nan
    means = _Means()
    bar = tqdm(total=gradient_steps, initial=state.updates, unit="update", disable=not progress, mininterval=1.0)
    bar.set_description("compiling" if state.compiled else "training")
    means.add(state.update())
    bar.update()
    bar.set_description("training")
    compile_seconds = time.perf_counter() - started
    while state.updates < gradient_steps:
        means.add(state.update())
        bar.update()
        if state.updates % log_iter == 0 or state.updates == gradient_steps:
            folder.log(state.updates, means.take())
        if eval_iter and (state.updates % eval_iter == 0 or state.updates == gradient_steps):
            begun = time.perf_counter()
            result = evaluate()
            last = result.mean if result.normalized is None else result.normalized
            if oms.update(last) == last and on_best is not None:
                on_best()
            folder.log(state.updates, _evaluation_row(result, last, rat.update(last), oms.value))
            folder.write()
            bar.set_postfix(score=f"{last:.1f}", RAT=f"{rat.value:.1f}", OMS=f"{oms.value:.1f}")
            evaluation_seconds += time.perf_counter() - begun
    bar.close()
    folder.write()
    seconds = time.perf_counter() - started
    training = seconds - evaluation_seconds
    rate = (gradient_steps - 1) / max(training - compile_seconds, 1e-9)
    return Scores(rat.value, oms.value, last, seconds, training, evaluation_seconds, compile_seconds, rate)


def _evaluation_row(result: EvaluationResult, score: float, rat: float, oms: float) -> dict[str, float]:
    deviation = result.std if result.normalized_std is None else result.normalized_std
    names = ("score", "score_std", "return", "length", "rat", "oms")
    values = (score, deviation, result.mean, result.lengths.double().mean().item(), rat, oms)
    return {f"eval/{name}": value for name, value in zip(names, values, strict=True)}


class _Means:
    """Running means of metrics, kept on their device: nothing is read until a row is written."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []
        self.sums: list[Tensor] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        if not self.count:
            self.names, self.sums = list(metrics), [value.detach().clone() for value in metrics.values()]
        else:
            torch._foreach_add_(self.sums, list(metrics.values()))
        self.count += 1

    def take(self) -> dict[str, float]:
        values = (torch.stack(self.sums) / self.count).tolist()
        self.count = 0
        return dict(zip(self.names, values, strict=True))
