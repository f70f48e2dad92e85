"""Many runs at once: how they are spread, stopped and recorded."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest
from runs import DIAGNOSIS_COLUMNS, Ledger, Run
from study import Study, launching, parser

from torchrl_edp.training.checkpoint import CheckpointStore

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"
BASE = ("dataset=local/hopper/medium-v0", "seed=1")


def test_a_folder_that_cannot_be_written_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SystemExit, match=r"runs.csv: cannot be written.*--output"):
        launch.train_missing([Run("edp_td3", BASE)], Ledger(tmp_path / "out" / "runs.csv"))
    assert not list(tmp_path.glob("runs/**/*.json"))


class Launcher:
    """What stands for the launcher's process: it ends when it is told to, or at once."""

    def __init__(self, command, **_):
        self.command = command
        (jobs,) = (word.removeprefix("jobs=") for word in command if word.startswith("jobs="))
        self.stop, self.told, self.waits = Path(jobs).with_suffix(".stop"), [], "waits" in os.environ
        Launcher.last = self

    def poll(self):
        return None if self.waits else 1

    def wait(self):
        self.told.append(self.stop.exists())


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.subprocess, "Popen", Launcher)
    monkeypatch.setattr(launch, "load_experiment_data", lambda cfg: None)
    monkeypatch.setattr(launch, "POLL", 0)


def test_a_launcher_that_does_not_start_is_named(launcher, tmp_path):
    with pytest.raises(SystemExit, match=r"1 of 1 runs did not finish(.|\n)*launcher.log$"):
        launch.train_missing([Run("edp_td3", BASE)], Ledger(tmp_path / "runs.csv"))


def test_a_launcher_has_settings_of_its_own(launcher, tmp_path, capsys):
    args = parser("", updates=1, seeds=(0,)).parse_intermixed_args(
        ["--launcher", "submitit_slurm", "--launcher-options", "timeout_min=600,partition=cpu", "loss.alpha=1"]
    )
    with pytest.raises(SystemExit):
        launch.train_missing([Run("edp_td3", BASE)], Ledger(tmp_path / "runs.csv"), **launching(args))
    words = {"hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=600", "hydra.launcher.partition=cpu"}
    assert words <= set(Launcher.last.command) and args.overrides == ["loss.alpha=1"]
    with pytest.raises(SystemExit):
        parser("", updates=1, seeds=(0,)).parse_intermixed_args(["hydra.launcher.timeout_min=600"])
    assert "hydra.launcher.timeout_min=600: a launcher's settings go by --launcher-options" in capsys.readouterr().err


@pytest.mark.parametrize("reason", [OSError("disk full"), signal.SIGINT, signal.SIGTERM])
def test_no_run_goes_on_unwatched(launcher, tmp_path, monkeypatch, reason):
    monkeypatch.setenv("waits", "")

    reasons = [reason]

    def collect(ledger, runs):
        if Launcher.last is None or not reasons:
            return
        if isinstance(found := reasons.pop(), OSError):
            raise found
        os.kill(os.getpid(), found)

    Launcher.last = None
    monkeypatch.setattr(Ledger, "collect", collect)
    with pytest.raises(OSError if isinstance(reason, OSError) else SystemExit, match=r"disk full|nothing is lost"):
        launch.train_missing([Run("edp_td3", BASE)], Ledger(tmp_path / "runs.csv"))
    assert Launcher.last.told == [True]


def test_wrong_data_are_named_on_the_terminal(tmp_path, capsys):
    wrong = ("dataset=local/nothing/at-all-v0",)
    launch._prepare_data([Run("edp_td3", (*wrong, f"seed={seed}")) for seed in (0, 1)])
    assert capsys.readouterr().err.count("Its runs will fail: ") == 1


def test_a_list_by_blanks_is_refused(tmp_path):
    result = study(tmp_path, "--seeds", "0", "1", "--no-train")
    assert result.returncode == 2
    assert "expected a setting as optim.lr=0.001, got '1'; lists go by commas" in result.stderr


TINY = ["--updates", "12", "--datasets", "local/hopper/medium-v0", "data.num_steps=2000", "logger.eval_iter=4"]
TINY += ["logger.eval_envs=1", "network.hidden_sizes=[16]", "logger.progress=false", "checkpoint.iter=4"]


def study(tmp_path, *options, script="table2.py", **kwargs):
    command = [sys.executable, str(SCRIPTS / script), "--output", "out", *options, *TINY]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **kwargs)


@pytest.mark.slow
def test_table_2_trains_once_and_can_be_made_again(tmp_path):
    result = study(tmp_path, "--seeds", "0")
    assert result.returncode == 0, result.stderr
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["experiment"] for row in rows} == {"td3_bc", "crr", "iql", "edp_td3", "edp_crr", "edp_iql"}
    assert all(len(row["scores"].split()) == 3 for row in rows)
    looks = Ledger(tmp_path / "out" / "diagnostics.csv", DIAGNOSIS_COLUMNS).rows
    assert looks.keys() == {row["key"] for row in rows}
    assert all(look["q_policy"] and bool(look["clipped"]) == ("edp" in look["experiment"]) for look in looks.values())
    given = "data.num_steps=2000_logger.eval_envs=1_logger.eval_iter=4_network.hidden_sizes=-16-"
    assert "(1)" in (tmp_path / "out" / f"table2_{given}.md").read_text()
    assert (tmp_path / "out" / f"table2_{given}.png").stat().st_size > 10_000
    again = study(tmp_path, "--seeds", "0", timeout=60)
    assert again.stdout == result.stdout
    assert "runs:" not in again.stderr  # no progress bar: nothing is trained
    new = study(tmp_path, "--seeds", "2", "--no-train")
    assert new.returncode == 1 and "None of the 6 runs is in out/runs.csv: leave --no-train out." in new.stderr
    assert "(1)" in (tmp_path / "out" / f"table2_{given}.md").read_text()  # the former one


@pytest.mark.slow
def test_stopped_study_goes_on(tmp_path):
    command = [sys.executable, str(SCRIPTS / "ablate_steps.py"), "--output", "out", "--seeds", "0", "--jobs", "2"]
    command += [*TINY, "--updates", "100000", "compile.compile=false"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        runs = tmp_path / "runs" / "reproduce"
        started = time.monotonic()
        while len(list(runs.glob("*/checkpoints/*/manifest.json"))) < 2 and time.monotonic() - started < 120:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert "nothing is lost: the same command goes on" in error
    folders = [log.parent for log in runs.glob("*/output.log")]
    saved = {folder: max(CheckpointStore(folder / "checkpoints").steps()) for folder in folders}
    assert len(saved) == 2
    logs = [(folder / "output.log").read_text() for folder in saved]
    assert all("Stopped by SIGTERM" in log for log in logs)


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_are_recorded(tmp_path):
    code = json.dumps(str(SCRIPTS))
    script = f"""
import sys
sys.path.insert(0, {code})
from study import Study
Study("mixed", "A title", {{"good": ("bc", ()), "bad": ("bc", ("dataset=local/nothing/at-all-v0",))}}).main("")
"""
    (tmp_path / "mixed.py").write_text(script)
    command = [sys.executable, "mixed.py", "--output", "out", "--seeds", "0", *TINY]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "1 of 2 runs did not finish" in result.stderr
    log = Path(tmp_path, result.stderr.strip().splitlines()[-1].strip())
    assert "DatasetError" in log.read_text()
    assert len(Ledger(tmp_path / "out" / "runs.csv").rows) == 1
    assert Study  # the script's own
