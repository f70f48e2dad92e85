"""Trains what is not recorded yet, several runs at a time, and records it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runs import FOLDER, Ledger, Run
from tqdm import tqdm

POLL = 2.0  # seconds


def train_missing(
    runs: Sequence[Run], ledger: Ledger, *, launcher: str = "joblib", jobs: int | None = None, threads: int = 1
) -> None:
    """Train those of ``runs`` that ``ledger`` does not know; ones that were stopped go on.

    Args:
        runs: in the order in which they start.
        ledger: takes each run's results as soon as it is finished.
        launcher: a Hydra launcher: ``joblib`` here, ``basic`` for one after the other, ``submitit_slurm`` or ``ray`` on
            a cluster that shares this folder.
        jobs: runs at a time, of joblib; None for one a core.
        threads: of each run.

    Raises:
        SystemExit: if a run fails, after the others, or after Ctrl-C.
    """
    ledger.collect(runs)
    missing = list({run.key: run for run in runs if run.key not in ledger}.values())
    if not missing:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"jobs_{os.getpid()}.json"
    file.write_text(json.dumps([{"folder": str(run.folder), "command": run.command} for run in missing], indent=1))
    command = [sys.executable, str(Path(__file__).with_name("job.py")), "--multirun", f"hydra/launcher={launcher}"]
    command += [f"jobs={file.as_posix()}", f"index={','.join(map(str, range(len(missing))))}", f"threads={threads}"]
    command += [f"hydra.sweep.dir={FOLDER.as_posix()}/launches/{os.getpid()}"]
    if launcher == "joblib":
        command.append(f"hydra.launcher.n_jobs={jobs or os.cpu_count() or 1}")
    stop = file.with_suffix(".stop")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # In a session of its own Ctrl-C does not reach it: the runs are stopped by a file, and each of them saves itself.
    with (FOLDER / "launcher.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _watch(missing, ledger, process)
    except KeyboardInterrupt:
        print("\nStopping: every run finishes its update and saves itself.", file=sys.stderr)
        stop.touch()
        process.wait()
        raise SystemExit("Stopped, nothing is lost: the same command goes on.") from None
    finally:
        file.unlink()
        stop.unlink(missing_ok=True)
    failed = [run for run in missing if run.key not in ledger]
    if failed:
        logs = "\n".join(f"    {run.folder / 'output.log'}" for run in failed)
        raise SystemExit(f"{len(failed)} of {len(missing)} runs did not finish; the same command goes on. See\n{logs}")


def _watch(missing: Sequence[Run], ledger: Ledger, process: subprocess.Popen) -> None:
    """Show the progress of the runs and record those that are finished until the launcher ends."""
    lengths = {run.key: run.settings.optim.gradient_steps for run in missing}
    total, done = sum(lengths.values()), sum(run.updates for run in missing)
    with tqdm(total=total, initial=done, unit="update", unit_scale=True, smoothing=0.02) as bar:
        running = True
        while running:
            running = process.poll() is None
            ledger.collect(missing)
            now = sum(lengths[run.key] if run.key in ledger else run.updates for run in missing)
            bar.set_description(f"{sum(run.key in ledger for run in missing)} of {len(missing)} runs")
            bar.update(now - bar.n)
            if running:
                time.sleep(POLL)
