"""Curves of RAT and OMS from recorded evaluations."""

import csv
import sys

import fig3
import pytest
import table2
from runs import COLUMNS, Ledger, Run
from scores import curves, evaluations

DATASET = "local/hopper/medium-v0"


def test_evaluations_are_on_the_beat_and_at_the_end():
    assert evaluations({"updates": "25", "scores": "1.5 2 9"}, 10) == [(10, 1.5), (20, 2.0), (25, 9.0)]


def test_curves_by_hand():
    rat, oms = curves([10.0, 40.0, 10.0, *[20.0] * 8])
    assert rat[:3] == [10, 25, 20]
    assert rat[9:] == pytest.approx([20, 21])  # the first one has left the window
    assert oms == [10, *[40.0] * 10]


def test_runs_are_those_of_table_2():
    assert fig3.STUDY.cases == {"TD3 EDP": table2.STUDY.cases["TD3 EDP"]}
    assert fig3.STUDY.updates == table2.STUDY.updates


def test_figure_of_two_seeds(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "runs.csv")
    extra = ("network.hidden_sizes=[8]", "logger.eval_iter=10")
    for seed, scores in ((0, "10 30 20"), (1, "20 20 50")):
        run = Run("edp_td3", (f"dataset={DATASET}", f"seed={seed}", "optim.gradient_steps=30", *extra))
        ledger.add(dict.fromkeys(COLUMNS, "x") | {"key": run.key, "scores": scores, "updates": 30})
    datasets = f"{DATASET},local/hopper/expert-v0"
    options = ["--no-train", "--updates", "30", "--output", str(tmp_path), "--datasets", datasets]
    monkeypatch.setattr(sys, "argv", ["fig3.py", *options, *extra])
    fig3.STUDY.main("")
    name = "fig3_logger.eval_iter=10_network.hidden_sizes=-8-"
    with (tmp_path / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["updates"]) for row in rows] == [10, 20, 30]
    assert [float(row["rat"]) for row in rows] == [15, 20, 25]
    assert [float(row["oms"]) for row in rows] == [15, 25, 40]
    assert float(rows[2]["oms_std"]) == pytest.approx(200**0.5)
    text = (tmp_path / f"{name}.md").read_text()
    assert f"| {DATASET} | 2 | 25.0 | 40.0 | 15.0 |" in text
    assert "| local/hopper/expert-v0 | 0 | – | – | – |" in text
    assert text.endswith("\n\nSettings given to all runs: `logger.eval_iter=10 network.hidden_sizes=[8]`.\n")
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
