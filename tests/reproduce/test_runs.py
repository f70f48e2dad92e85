"""Runs are known by what decides their scores; results are recorded once."""

import csv
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import launch
import pytest
from runs import COLUMNS, DIAGNOSIS_COLUMNS, Ledger, Run
from study import Row, Study, launching, other_data, parser, result_path, table

from torchrl_edp.training.checkpoint import CheckpointStore

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"
BASE = ("dataset=local/hopper/medium-v0", "seed=1")


def key(*overrides, experiment="edp_td3"):
    return Run(experiment, (*BASE, *overrides)).key


@pytest.mark.parametrize(
    "free", ["compile.onednn=true", "logger.progress=false", "resume=auto", "checkpoint.keep=5", "logger.log_iter=7"]
)
def test_key_leaves_out_what_does_not_decide_the_scores(free):
    assert key(free) == key()


@pytest.mark.parametrize(
    "decisive",
    [
        "seed=2",
        "dataset=local/hopper/expert-v0",
        "optim.gradient_steps=7",
        "logger.eval_iter=7",
        "logger.eval_envs=7",
        "loss.guidance_weight=0.5",
        "diffusion.solver_kwargs={spacing: time}",
        "preset=paper",
    ],
)
def test_key_tells_apart_what_decides_the_scores(decisive):
    assert key(decisive) != key()


def test_key_knows_the_algorithm_and_not_how_a_default_is_said():
    assert key(experiment="edp_iql") != key()
    assert key("seed=1", "loss.gamma=0.99") == key()
    assert key("preset=default") == key()


def row(name):
    return dict.fromkeys(COLUMNS, "1") | {"key": name}


def test_ledger_grows_and_keeps_the_first_result(tmp_path):
    ledger = Ledger(tmp_path / "folder" / "runs.csv")
    ledger.add(row("a") | {"rat": 5})
    ledger.add(row("a") | {"rat": 6})
    Ledger(ledger.path).add(row("b"))
    again = Ledger(ledger.path)
    assert list(again.rows) == ["a", "b"]
    assert again.rows["a"]["rat"] == "5"
    assert ledger.rows["a"] == again.rows["a"]


def test_an_empty_file_is_one_that_another_process_begins(tmp_path):
    path = tmp_path / "runs.csv"
    path.touch()
    ledger = Ledger(path)
    assert ledger.rows == {}
    ledger.add(row("a"))
    assert Ledger(path).rows == {"a": row("a")}


def test_ledger_refuses_another_file(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("key,score\na,1\n")
    with pytest.raises(SystemExit, match="expected the columns key, experiment.*got key, score"):
        Ledger(path)
    assert path.read_text() == "key,score\na,1\n"


def add_rows(path, start, count):
    ledger = Ledger(path)
    for i in range(start, start + count):
        ledger.add(row(f"key{i}"))


def test_ledgers_at_once_lose_and_repeat_nothing(tmp_path):
    path = tmp_path / "runs.csv"
    with ThreadPoolExecutor(3) as pool:  # a lock holds between open files, of whatever process
        list(pool.map(add_rows, [path] * 3, (0, 20, 40), [40] * 3))
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and len(lines) == 81
    assert set(Ledger(path).rows) == {f"key{i}" for i in range(80)}


def test_a_row_that_was_cut_off_is_written_again(tmp_path):
    ledger = Ledger(tmp_path / "runs.csv")
    ledger.add(row("a"))
    with ledger.path.open("a") as file:
        file.write("b,edp_td3,local")
    again = Ledger(ledger.path)
    assert list(again.rows) == ["a"]
    again.add(row("b"))
    assert Ledger(ledger.path).rows == {"a": row("a"), "b": row("b")}


def test_of_two_rows_the_first_counts(tmp_path):
    ledger = Ledger(tmp_path / "runs.csv")
    ledger.add(row("a") | {"rat": "5"})
    text = ledger.path.read_text()
    ledger.path.write_text(text + text.splitlines()[-1].replace("5", "6") + "\n")
    assert Ledger(ledger.path).rows["a"]["rat"] == "5"


def test_diagnosis_is_the_mean_of_the_last_ten_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("edp_td3", (*BASE, "loss.alpha=3"))
    run.folder.mkdir(parents=True)
    names = ["action_distance", "q_data", "clipped_01", "clipped_02"]
    lines = [f"updates,{','.join(f'diagnose/{name}' for name in names)}", "0,,,,"]
    lines += [f"{i},{i},{100 * i},0.5,{0.1 * i}" for i in range(12)]
    (run.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert run.diagnosis() == {
        "key": run.key,
        "experiment": "edp_td3",
        "dataset": "local/hopper/medium-v0",
        "seed": 1,
        "settings": "loss.alpha=3",
        "q_data": "650",
        "q_policy": "",
        "q_policy_disagreement": "",
        "td_error": "",
        "action_distance": "6.5",
        "weight_effective": "",
        "clipped": "0.575",
    }


def test_a_run_that_cannot_be_is_named_before_anything_is_trained():
    with pytest.raises(SystemExit, match=r"td3_bc: Unknown setting 'diffusion.num_steps'"):
        key("diffusion.num_steps=7", experiment="td3_bc")
    with pytest.raises(SystemExit, match=r"A study needs scores: expected logger.eval_iter of at least 1, got 0"):
        key("logger.eval_iter=0")


@pytest.mark.parametrize("text", ["seed=3", "dataset=local/hopper/medium-v0", "optim.gradient_steps=7"])
def test_what_a_study_sets_for_each_run_is_no_setting_of_all(text, capsys):
    with pytest.raises(SystemExit):
        parser("", updates=1, seeds=(0,)).parse_intermixed_args(["loss.alpha=1", text])
    assert f"{text}: a study sets this for each of its runs, use --" in capsys.readouterr().err


def test_a_seed_that_is_said_twice_counts_once():
    assert parser("", updates=1, seeds=(0,)).parse_intermixed_args(["--seeds", "1,0,1"]).seeds == [1, 0]


def test_other_contents_of_a_data_set_are_told(tmp_path):
    ledger = Ledger(tmp_path / "runs.csv")
    runs = {name: Run("edp_td3", (*BASE, f"seed={seed}")) for seed, name in enumerate("abcd")}
    for name, digest in zip("abc", ("x", "y", "x"), strict=True):
        ledger.add(row(runs[name].key) | {"data": digest})
    a, b, c, d = runs.values()
    assert other_data({("A", "one"): [a], ("B", "one"): [c, d], ("A", "two"): [b]}, ledger) == []
    (note,) = other_data({("A", "one"): [a, b], ("B", "one"): [c]}, ledger)
    assert note.startswith("one had other contents in some runs") and note.endswith("x in 2, y in 1.")


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


def cell(case, dataset, rat, seeds=2):
    return Row(case, dataset, seeds, rat, 1.0 if seeds > 1 else None, rat, None, 90.0)


def test_table_averages_over_data_sets_that_are_all_there():
    rows = [cell("A", "x", 10.0), cell("A", "y", 30.0, seeds=1), cell("B", "x", 10.0)]
    rows.append(Row("B", "y", 0, None, None, None, None, None))
    text = table(rows, ["A", "B"], ["x", "y"], "rat")
    assert "| x | 10.0 ± 1.0 (2) | 10.0 ± 1.0 (2) |" in text
    assert "| y | 30.0 (1) | – |" in text
    assert "| average | **20.0** | – |" in text


def test_results_of_other_settings_lie_beside_the_studys_own(tmp_path):
    def name(*overrides):
        return result_path(
            parser("", updates=1, seeds=(0,)).parse_args(["--output", str(tmp_path), *overrides]), "t", ".md"
        )

    assert name() == name("compile.onednn=true", "logger.progress=false", "checkpoint.keep=3") == tmp_path / "t.md"
    assert name("data.return_steps=1", "compile.onednn=true").name == "t_data.return_steps=1.md"
    assert name("b=1", "a={x: 2}") == name("a={x: 2}", "b=1") == tmp_path / "t_a=-x-2-_b=1.md"
    assert name("logger.eval_iter=5") != name() != name("preset=paper")
    long = [f"loss.a{i}=1" for i in range(20)]
    assert len(name(*long).name) < 20 and name(*long) != name(*long[1:])


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
    assert "| local/hopper/medium-v0 | – | – |" in new.stdout


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


def test_recorded_runs_are_known_by_their_configurations():
    rows = Ledger(SCRIPTS / "results" / "runs.csv").rows
    assert rows
    for key, row in rows.items():
        assert hashlib.sha256(row["config"].encode()).hexdigest()[:12] == key
        assert json.loads(row["config"])["seed"] == int(row["seed"])
        assert statistics.mean(map(float, row["scores"].split()[-10:])) == pytest.approx(float(row["rat"]), abs=0.02)
