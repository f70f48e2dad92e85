"""A hundred thousand updates: no false alarm, no growth of memory or of open files."""

import gc
import os
from pathlib import Path

import pytest
import torch
from training_helpers import make_state

from torchrl_edp.evaluation import EvaluationResult
from torchrl_edp.training import RunFolder, TrainingRecord, train
from torchrl_edp.training.checkpoint import CheckpointStore

UPDATES, WARM_UP = 100_000, 20_000  # the first plots take memory that stays


def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory and open files from /proc")
def test_a_hundred_thousand_updates(tmp_path, record_property):
    state, record = make_state(lr=1e-3), TrainingRecord()
    store, seen = CheckpointStore(tmp_path / "checkpoints"), {}

    def save(best):
        store.save(state.updates, dict(state.state_dict()), record.info(), best=best)
        seen[state.updates] = resident_bytes(), len(os.listdir("/proc/self/fd"))

    def evaluate(index):
        return EvaluationResult(torch.tensor([1.0]), torch.tensor([1]), (0.0, 1.0))

    steps = {"gradient_steps": UPDATES, "eval_iter": 5_000, "log_iter": 1_000, "save_iter": 5_000}
    train(state, evaluate, RunFolder(tmp_path, backend=""), record=record, save=save, progress=False, **steps)
    assert state.updates == UPDATES
    memory, files = zip(*(seen[update] for update in (WARM_UP, UPDATES)), strict=True)
    mebibytes = [round(value / 2**20, 1) for value in memory]
    record_property("found", f"after {WARM_UP} and {UPDATES} updates {mebibytes} MiB, {list(files)} open files")
    assert memory[1] < 1.01 * memory[0], {update: bytes for update, (bytes, _) in seen.items()}
    assert files[1] <= files[0]
