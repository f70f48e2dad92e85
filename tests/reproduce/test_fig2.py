"""The speed figure: what is timed, against what, and a tiny run."""

import csv
import subprocess
import sys
from pathlib import Path

import fig2
import pytest
from work import Work, tiny_work

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"


def test_cases_are_what_their_names_say():
    losses = {name: make().loss for name, make in fig2.updates(tiny_work(), 7, compile=False).items()}
    assert tuple(losses) == fig2.CASES
    found = {}
    for name, loss in losses.items():
        sampler = loss.actor_network.module
        found[name] = (sampler.solver, sampler.num_steps, loss.guidance_start)
    assert found == {
        fig2.OWN: ("ddpm", 5, "noise"),
        fig2.DIFFUSION_QL: ("ddpm", 7, "noise"),
        fig2.NO_SOLVER: ("ddpm", 7, "data"),
        fig2.NO_APPROXIMATION: ("dpm_solver", 25, "noise"),
        fig2.EDP: ("dpm_solver", 25, "data"),
    }


@pytest.mark.parametrize(
    ("steps", "whole"),
    [(15, {fig2.DIFFUSION_QL, fig2.NO_SOLVER}), (30, {fig2.NO_SOLVER}), (31, set())],
)
def test_of_long_chains_the_network_alone_is_compiled(steps, whole):
    made = fig2.updates(tiny_work(), steps, compile=True)
    for name in (fig2.DIFFUSION_QL, fig2.NO_SOLVER):
        options = made[name].keywords
        assert (options["compile"], options["compile_network"]) == (name in whole, name not in whole)
    assert not any(
        make.keywords.get("compile_network") for make in fig2.updates(tiny_work(), 99, compile=False).values()
    )


def test_the_work_is_the_papers():
    work = Work()
    assert (work.observation_size, work.action_size, work.batch_size) == (17, 6, 256)
    assert (work.diffusion.num_steps, work.diffusion.solver, work.diffusion.num_calls) == (1000, "dpm_solver", 15)
    assert work.network.hidden_sizes == [256, 256, 256]


def test_the_papers_ratios():
    assert fig2.paper("training", fig2.EDP)["paper_ratio"] == pytest.approx(116.21 / 22.30)
    assert fig2.paper("acting", fig2.NO_SOLVER)["paper_ratio"] == pytest.approx(123.06 / 123.70)
    assert fig2.paper("acting", fig2.DIFFUSION_QL) == {"paper": 123.70, "paper_ratio": 1.0}
    assert fig2.paper("acting", fig2.OWN) == {"paper": None, "paper_ratio": None}


@pytest.mark.slow
def test_tiny_run_writes_csv_table_and_picture(tmp_path):
    command = [sys.executable, str(SCRIPTS / "fig2.py"), "--tiny", "--steps", "6", "--forms", "eager"]
    command += ["--rounds", "2", "--seconds", "0.01", "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "fig2.csv").open() as file:
        rows = {(row["work"], row["case"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(work, case) for work in ("training", "acting") for case in fig2.CASES}
    for (work, _), row in rows.items():
        base = float(rows[work, fig2.DIFFUSION_QL]["per_second"])
        assert float(row["ratio"]) == pytest.approx(float(row["per_second"]) / base)
        assert 0 < float(row["low"]) <= float(row["per_second"]) <= float(row["high"])
    text = (tmp_path / "fig2.md").read_text()
    assert text.count("| EDP |") == 2 and "| 116.21 | 5.21 |" in text
    assert (tmp_path / "fig2.png").stat().st_size > 10_000
