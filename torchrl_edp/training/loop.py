"""The training loop: updates, evaluations, logging, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from signal import Signals

from tqdm import tqdm

from torchrl_edp.evaluation import EvaluationResult
from torchrl_edp.training.record import Scores, SeedScores, TrainingRecord
from torchrl_edp.training.run import RunFolder
from torchrl_edp.training.signals import StopSignals
from torchrl_edp.training.state import TrainState


class TrainingStopped(Exception):  # noqa: N818 - a stop is no error
    """SIGINT or SIGTERM stopped the loop between two updates; everything before is saved."""

    def __init__(self, signal: Signals, updates: int) -> None:
        super().__init__(f"{signal.name} after update {updates}")
        self.signal = signal


def train(
    state: TrainState,
    evaluate: Callable[[int], EvaluationResult],
    folder: RunFolder,
    *,
    gradient_steps: int,
    eval_iter: int,
    log_iter: int = 500,
    progress: bool = True,
    on_best: Callable[[int], None] | None = None,
    diagnose: Callable[[int, int], dict[str, float]] | None = None,
    record: TrainingRecord | None = None,
    save: Callable[[bool], None] | None = None,
    save_iter: int = 0,
) -> list[Scores]:
    """Update until ``gradient_steps``, evaluating every ``eval_iter`` updates.

    Args:
        state: the train state.
        evaluate: a function of the seed's index that evaluates its policy; must leave the training's random stream
            alone.
        folder: takes the metrics; :meth:`RunFolder.split` for several seeds.
        gradient_steps: number of updates in all, those of a resumed run included.
        eval_iter: updates between evaluations; 0 for none.
        log_iter: updates whose losses are averaged into one row.
        progress: show a progress bar.
        on_best: called with the seed's index when an evaluation is its best so far.
        diagnose: a function of the seed's index and the number of updates that gives one more row, before every
            evaluation and at the end; it must leave the training's random stream alone.
        record: of the run that is resumed.
        save: saves a checkpoint; its argument says whether a seed's policy is its best so far. Called every
            ``save_iter`` updates, after such an evaluation, at the end, and when a signal stops the loop.
        save_iter: updates between two checkpoints; 0 for none of those.

    Returns:
        RAT, OMS, the last score and where the time went, of every seed.

    Raises:
        TrainingStopped: after SIGINT or SIGTERM, once the update that was running is done and saved.
        FloatingPointError: see :meth:`TrainState.update`; the last checkpoint is untouched.
    """
    record = record or TrainingRecord(state.num_seeds)
    bar = tqdm(total=gradient_steps, initial=state.updates, unit="update", disable=not progress, mininterval=1.0)
    bar.set_description("compiling" if state.compiled else "training")
    phase = "compile"  # the first update

    def due(every: int) -> bool:
        return every > 0 and (state.updates % every == 0 or state.updates == gradient_steps)

    with bar, StopSignals() as stop:
        while state.updates < gradient_steps and not stop.received:
            record.means.add(state.update())
            bar.update()
            if phase == "compile":
                bar.set_description("training")
            record.spend(phase)
            phase = "training"
            if due(log_iter):
                folder.log(state.updates, *record.means.take())
            best = False
            if diagnose and (due(eval_iter) or state.updates == gradient_steps):
                folder.log(state.updates, *[diagnose(index, state.updates) for index in range(state.num_seeds)])
            if due(eval_iter):
                best = _evaluate(state, evaluate, folder, record, on_best)
                bar.set_postfix({name: f"{value:.1f}" for name, value in record.shown().items()})
                record.spend("evaluation")
            if save and (best or due(save_iter) or stop.received or state.updates == gradient_steps):
                state.check()
                save(best)
    folder.write()
    if stop.received and state.updates < gradient_steps:
        raise TrainingStopped(stop.received, state.updates)
    return record.scores()


def _evaluate(
    state: TrainState,
    evaluate: Callable[[int], EvaluationResult],
    folder: RunFolder,
    record: TrainingRecord,
    on_best: Callable[[int], None] | None,
) -> bool:
    """Evaluate and log every seed; whether a score is its seed's best so far."""
    state.check()
    rows, found_best = [], False
    for index, seed in enumerate(record.seeds):
        result = evaluate(index)
        score = result.mean if result.normalized is None else result.normalized
        best = seed.add(score)
        if best and on_best is not None:
            on_best(index)
        found_best |= best
        rows.append(_evaluation_row(result, score, seed))
    folder.log(state.updates, *rows)
    folder.write(seed_pictures=False)
    return found_best


def _evaluation_row(result: EvaluationResult, score: float, seed: SeedScores) -> dict[str, float]:
    deviation = result.std if result.normalized_std is None else result.normalized_std
    names = ("score", "score_std", "return", "length", "rat", "oms")
    values = (score, deviation, result.mean, result.lengths.double().mean().item(), seed.rat.value, seed.oms.value)
    return {f"eval/{name}": value for name, value in zip(names, values, strict=True)}
