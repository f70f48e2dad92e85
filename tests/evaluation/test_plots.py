from __future__ import annotations

import csv
import math

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from torchrl_edp.evaluation import plot_curves

ROWS = [
    {"update": 100, "loss_actor": 0.5, "loss_qvalue": 3.0, "pred_value": 10.0, "state_value": 9.0},
    {"update": 200, "loss_actor": -0.2, "loss_qvalue": math.nan, "pred_value": torch.tensor(20.0)},
    {"update": 200, "eval/score": 40.0, "eval/score_std": 4.0, "eval/rat": 40.0, "eval/oms": 40.0},
    {"update": 400, "eval/score": 20.0, "eval/score_std": 2.0, "eval/rat": 30.0, "eval/oms": 40.0},
]


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn while the test runs."""
    drawn, subplots = [], Figure.subplots
    monkeypatch.setattr(Figure, "subplots", lambda self, *a, **k: drawn.append(self) or subplots(self, *a, **k))
    return drawn


def lines(panel):
    """What a panel shows: label -> list of (x, y)."""
    return {
        line.get_label(): [tuple(map(float, point)) for point in zip(*line.get_data(), strict=True)]
        for line in panel.lines
    }


def test_every_column_is_drawn_where_it_belongs(tmp_path, figures):
    path = plot_curves(ROWS, tmp_path / "curves.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    scores, losses, q_scale = figures[0].axes
    assert lines(scores) == {
        "evaluation": [(200, 40), (400, 20)],
        "RAT (mean of last 10)": [(200, 40), (400, 30)],
        "OMS (best)": [(200, 40), (400, 40)],
    }
    (band,) = scores.collections
    assert band.get_datalim(scores.transData).intervaly.tolist() == [18, 44]
    assert losses.get_yscale() == "log"
    assert lines(losses) == {"|actor|": [(100, 0.5), (200, 0.2)], "qvalue": [(100, 3)]}
    assert lines(q_scale) == {"mean Q": [(100, 10), (200, 20)], "mean V": [(100, 9)]}


def test_a_csv_file_gives_the_same_picture(tmp_path):
    names = list(dict.fromkeys(name for row in ROWS for name in row))
    with open(tmp_path / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({name: float(value) for name, value in row.items()} for row in ROWS)
    pictures = [plot_curves(rows, tmp_path / "c.png").read_bytes() for rows in (ROWS, tmp_path / "metrics.csv")]
    assert pictures[0] == pictures[1]


def test_returns_stand_in_for_missing_scores(tmp_path, figures):
    plot_curves([{"update": 1, "eval/return": 5.0}], tmp_path / "curves.png")
    panel = figures[0].axes[0]
    assert panel.get_title() == "return" and lines(panel) == {"evaluation": [(1, 5)]}


def test_many_noisy_rows_are_smoothed_without_bias(tmp_path, figures):
    plot_curves([{"update": i, "pred_value": i + (-1) ** i} for i in range(1000)], tmp_path / "curves.png")
    pale, strong = (line.get_ydata() for line in figures[0].axes[2].lines)
    steps = torch.arange(1000.0)
    assert (torch.as_tensor(pale) - steps).abs().max() == 1
    assert (torch.as_tensor(strong) - steps)[50:-50].abs().max() < 0.1


def test_the_users_settings_and_backend_stay(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_curves(ROWS, tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("rows", [[], [{"update": 3}], [{"update": 3, "pred_value": ""}]])
def test_nothing_to_draw_is_an_error(tmp_path, rows):
    with pytest.raises(ValueError, match="metrics: expected rows with `update`"):
        plot_curves(rows, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
