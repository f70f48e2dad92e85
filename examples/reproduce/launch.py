"""Trains what is not recorded yet, several runs at a time, and records it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runs import FOLDER, Ledger, Run
from tqdm import tqdm

from torchrl_edp.data import DatasetError
from torchrl_edp.training import load_experiment_data
from torchrl_edp.training.signals import StopSignals

POLL = 2.0  # seconds


def train_missing(
    runs: Sequence[Run],
    ledger: Ledger,
    *,
    launcher: str = "joblib",
    launcher_options: Sequence[str] = (),
    jobs: int | None = None,
    threads: int = 1,
) -> None:
    """Train those of ``runs`` that ``ledger`` does not know; ones that were stopped go on.

    Several calls may work in one folder; a run that another call trains is said to be in use, and fails.

    Args:
        runs: in the order in which they start.
        ledger: takes each run's results as soon as it is finished.
        launcher: a Hydra launcher: ``joblib`` here, ``basic`` for one after the other, ``submitit_slurm`` or ``ray`` on
            a cluster that shares this folder.
        launcher_options: the launcher's own settings, as ``timeout_min=600``.
        jobs: runs at a time, of joblib; None for one a core.
        threads: of each run.

    Raises:
        SystemExit: if a run fails, after the others, or after Ctrl-C.
    """
    ledger.collect(runs)
    missing = list({run.key: run for run in runs if run.key not in ledger}.values())
    if not missing:
        return
    ledger.path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(ledger.path if ledger.path.exists() else ledger.path.parent, os.W_OK):
        raise SystemExit(f"{ledger.path}: cannot be written, so that no result could be recorded. Choose --output.")
    _prepare_data(missing)
    # Relative, as Hydra cannot read every path, and of this call alone.
    file = FOLDER / f"launch_{secrets.token_hex(6)}" / "jobs.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([{"folder": str(run.folder), "command": run.command} for run in missing], indent=1))
    command = [sys.executable, str(Path(__file__).with_name("job.py")), "--multirun", f"hydra/launcher={launcher}"]
    command += [f"jobs={file.as_posix()}", f"index={','.join(map(str, range(len(missing))))}", f"threads={threads}"]
    command += [f"hydra.sweep.dir={file.parent.as_posix()}", *(f"hydra.launcher.{text}" for text in launcher_options)]
    if launcher == "joblib":
        command.append(f"hydra.launcher.n_jobs={jobs or os.cpu_count() or 1}")
    stop = file.with_suffix(".stop")
    # In a session of its own Ctrl-C does not reach it: the runs are stopped by a file, and each of them saves itself.
    launcher_log = file.with_name("launcher.log")
    with StopSignals() as signals:
        with launcher_log.open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _watch(missing, ledger, process, signals)
        finally:
            if process.poll() is None:  # whatever the reason, nothing must go on unwatched
                print("\nStopping: every run finishes its update and saves itself.", file=sys.stderr)
                stop.touch()
                process.wait()
        if signals.received:
            raise SystemExit("Stopped, nothing is lost: the same command goes on.")
    failed = [run for run in missing if run.key not in ledger]
    if failed:
        logs = [run.folder / "output.log" for run in failed]
        found = [str(log) for log in logs if log.exists()] or [str(launcher_log)]
        raise SystemExit(
            f"{len(failed)} of {len(missing)} runs did not finish; the same command goes on, --no-train shows the rest."
            " See\n    " + "\n    ".join(found)
        )
    shutil.rmtree(file.parent)


def _prepare_data(runs: Sequence[Run]) -> None:
    """Make or download each data set once, before many runs want it; what is wrong with it is said at once."""
    for run in {(run.settings.dataset, run.settings.data.num_steps): run for run in runs}.values():
        try:
            load_experiment_data(run.settings)
        except DatasetError as error:
            print(f"Its runs will fail: {error}", file=sys.stderr)


def _watch(missing: Sequence[Run], ledger: Ledger, process: subprocess.Popen, signals: StopSignals) -> None:
    """Show the progress of the runs and record those that are finished until the launcher ends or a signal comes."""
    lengths = {run.key: run.settings.optim.gradient_steps for run in missing}
    total, done = sum(lengths.values()), sum(run.updates for run in missing)
    with tqdm(total=total, initial=done, unit="update", unit_scale=True, smoothing=0.02) as bar:
        running = True
        while running:
            running = process.poll() is None and not signals.received
            ledger.collect(missing)
            now = sum(lengths[run.key] if run.key in ledger else run.updates for run in missing)
            bar.set_description(f"{sum(run.key in ledger for run in missing)} of {len(missing)} runs")
            bar.update(now - bar.n)
            if running:
                time.sleep(POLL)
