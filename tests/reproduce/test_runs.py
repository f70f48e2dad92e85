"""Runs are known by what decides their scores; results are recorded once."""

import hashlib
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from runs import COLUMNS, Ledger, Run

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
        "policy.min_noise_scale=0.5",
        "optim.matmul_precision=medium",
        "preset=paper",
    ],
)
def test_key_tells_apart_what_decides_the_scores(decisive):
    assert key(decisive) != key()


def test_key_knows_the_algorithm_and_not_how_a_default_is_said():
    assert key(experiment="edp_iql") != key()
    assert key("seed=1", "loss.gamma=0.99") == key()
    assert key("preset=default") == key()


def test_recorded_runs_are_found_by_the_settings_of_today():
    """A setting that came later must not make runs of before unknown."""
    recorded = Ledger(SCRIPTS / "results" / "runs.csv")
    settings = ("dataset=local/hopper/medium-expert-v0", "optim.gradient_steps=50000")
    assert key(*settings) in recorded
    assert key(*settings, "policy.min_noise_scale=1", "optim.matmul_precision=highest") in recorded


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
    with pytest.raises(SystemExit, match=r"A study's runs have one seed each: expected num_seeds=1, got 2"):
        key("num_seeds=2")


def test_recorded_runs_are_known_by_their_configurations():
    rows = Ledger(SCRIPTS / "results" / "runs.csv").rows
    assert rows
    for key, row in rows.items():
        assert hashlib.sha256(row["config"].encode()).hexdigest()[:12] == key
        assert json.loads(row["config"])["seed"] == int(row["seed"])
        assert statistics.mean(map(float, row["scores"].split()[-10:])) == pytest.approx(float(row["rat"]), abs=0.02)
