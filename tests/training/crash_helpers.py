"""A small run in a process of its own, which tells what it is doing and can be killed at any moment."""

import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import torch
from experiment_helpers import make_data, make_loss, make_settings

from torchrl_edp.training import RunFolder, TrainState, run_experiment
from torchrl_edp.training.checkpoint import CheckpointStore
from torchrl_edp.training.settings import CheckpointSettings, OptimSettings

UPDATES = 24
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["crash_helpers"])


def _run(folder, connection):
    """Train, or go on, to the end; every update and every save is reported."""
    torch.set_num_threads(1)
    update, save = TrainState.update, CheckpointStore.save

    def reported_update(self):
        result = update(self)
        connection.send(("update", self.updates))
        return result

    def reported_save(self, step, *args, **options):
        connection.send(("save", step))
        path = save(self, step, *args, **options)
        connection.send(("saved", step))
        return path

    TrainState.update, CheckpointStore.save = reported_update, reported_save
    optim = OptimSettings(gradient_steps=UPDATES, actor_start=3, device="cpu", lr=0.01)
    cfg = make_settings("edp_iql", optim=optim, checkpoint=CheckpointSettings(iter=2, keep=2))
    cfg.logger.eval_iter, cfg.logger.log_iter, cfg.resume = 12, 5, "auto"
    torch.manual_seed(0)
    dataset = make_data()
    run_experiment(cfg, dataset, make_loss(cfg, "edp_iql", dataset), RunFolder(folder, backend=""))
    connection.send(("end", UPDATES))


class Child:
    """The process, and what it has said so far."""

    def __init__(self, folder: Path) -> None:
        self.connection, end = PROCESSES.Pipe(duplex=False)
        self.process = PROCESSES.Process(target=_run, args=(folder, end), daemon=True)
        self.process.start()
        end.close()
        self.events: list[tuple[str, int]] = []

    def wait_for(self, kind: str, count: int) -> None:
        """Until it has said so ``count`` times, or has ended."""
        try:
            while sum(event[0] == kind for event in self.events) < count:
                self.events.append(self.connection.recv())
        except EOFError:
            pass

    def send(self, number: signal.Signals, delay: float = 0.0) -> None:
        time.sleep(delay)
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)

    def end(self) -> int | None:
        """Wait for the end; the exit code."""
        self.wait_for("end", 1)
        self.process.join()
        return self.process.exitcode

    def last(self, kind: str) -> int:
        """The update of the last event of that kind, 0 if there is none."""
        return max((update for name, update in self.events if name == kind), default=0)

    @property
    def in_a_save(self) -> bool:
        kinds = [kind for kind, _ in self.events]
        return kinds.count("save") > kinds.count("saved")


def result(folder: Path) -> str:
    """A digest of everything the newest checkpoint holds but the time it took."""
    checkpoint, skipped = CheckpointStore(folder / "checkpoints").newest()
    assert checkpoint is not None and not skipped and checkpoint.step == UPDATES
    record = {k: v for k, v in checkpoint.info["record"].items() if k not in ("seconds", "timed_updates")}
    digest = hashlib.sha256(json.dumps([record, checkpoint.info["rows"]], sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        digest.update(name.encode() + checkpoint.tensors[name].numpy().tobytes())
    return digest.hexdigest()
