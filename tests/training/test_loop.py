"""The loop and what it leaves behind."""

import csv
import json

import pytest
import torch
from training_helpers import make_state

from torchrl_edp.evaluation import EvaluationResult
from torchrl_edp.evaluation.plots import _VALUES
from torchrl_edp.training import RunFolder, train
from torchrl_edp.training.run import processor
from torchrl_edp.training.setup import choose_compile


def run(tmp_path, scores=(10.0, 30.0, 20.0), gradient_steps=6, eval_iter=2, **options):
    state, remaining = make_state(), iter(scores)

    def evaluate(index):
        value = next(remaining)
        return EvaluationResult(torch.tensor([value, value]), torch.tensor([4, 4]), (0.0, 100.0))

    folder = RunFolder(tmp_path, backend="")
    steps = {"gradient_steps": gradient_steps, "eval_iter": eval_iter, "log_iter": 3, "progress": False}
    return state, folder, train(state, evaluate, folder, **steps, **options)


def test_scores_rows_and_files(tmp_path):
    best = []
    state, folder, (scores,) = run(tmp_path, on_best=best.append)
    assert state.updates == 6
    assert (scores.rat, scores.oms, scores.last) == pytest.approx((20.0, 30.0, 20.0))
    assert best == [0, 0]
    assert scores.seconds >= scores.evaluation_seconds > 0
    evaluations = [row for row in folder.rows if "eval/score" in row]
    assert [row["update"] for row in evaluations] == [2, 4, 6]
    assert [row["eval/rat"] for row in evaluations] == pytest.approx([10.0, 20.0, 20.0])
    with (tmp_path / "metrics.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [int(row["update"]) for row in written] == [row["update"] for row in folder.rows]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "diagnose.png").exists()


@pytest.mark.parametrize(("eval_iter", "looks"), [(2, [2, 4, 5]), (0, [5])])
def test_a_run_is_looked_at_before_every_evaluation_and_at_its_end(tmp_path, eval_iter, looks):
    seen = []

    def diagnose(index, update):
        seen.append(update)
        return {"diagnose/q_data": 3.0}

    _, folder, _ = run(tmp_path, gradient_steps=5, eval_iter=eval_iter, diagnose=diagnose)
    names = [(row["update"], name) for row in folder.rows for name in ("diagnose/q_data", "eval/score") if name in row]
    assert seen == looks and [update for update, name in names if name.startswith("diagnose")] == looks
    if eval_iter:
        assert names == [(update, name) for update in looks for name in ("diagnose/q_data", "eval/score")]
    assert (tmp_path / "diagnose.png").read_bytes()[:4] == b"\x89PNG"


def test_logged_losses_are_means_over_the_interval(tmp_path):
    state, seen = make_state(), []
    update = state.update

    def record():
        metrics = update()
        seen.append(float(metrics["loss_value"]))
        return metrics

    state.update = record
    folder = RunFolder(tmp_path, backend="")
    train(state, None, folder, gradient_steps=6, eval_iter=0, log_iter=3, progress=False)
    assert [row["loss_value"] for row in folder.rows] == pytest.approx([sum(seen[:3]) / 3, sum(seen[3:]) / 3])


def test_the_q_panel_finds_what_the_loss_reports(tmp_path):
    _, folder, _ = run(tmp_path)
    assert {key for key, *_ in _VALUES} <= set(folder.rows[-2])


def test_summary_names_versions(tmp_path):
    RunFolder(tmp_path, backend="").summarize({"rat": 1.0})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rat"] == 1.0 and summary["versions"]["torch"] == torch.__version__


def test_csv_logger_of_torchrl(tmp_path):
    folder = RunFolder(tmp_path, backend="csv", name="run")
    folder.log(3, {"loss_actor": 0.25})
    lines = list(tmp_path.rglob("loss_actor.csv"))[0].read_text()
    assert "3" in lines and "0.25" in lines


def test_short_runs_are_not_compiled():
    assert choose_compile(None, 100) is False
    assert choose_compile(False, 10**6) is False


def test_a_processor_is_named_with_what_tells_it_from_others_of_that_name(tmp_path):
    info = tmp_path / "cpuinfo"
    core = "cpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n\n"
    info.write_text(core.format(17) * 2)
    assert processor(info) == "2 x AMD EPYC (family 25, model 17)"
    info.write_text(core.format(1))
    assert processor(info) == "1 x AMD EPYC (family 25, model 1)"
    info.write_text("processor\t: 0\nCPU part\t: 0xd0c\n\n")  # ARM's
    assert processor(info) == processor(tmp_path / "none") != ""
