from __future__ import annotations

import csv
import math

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from torchrl_edp.evaluation import plot_curves, plot_diagnostics

ROWS = [
    {"update": 100, "loss_actor": 0.5, "loss_qvalue": 3.0, "pred_value": 10.0, "state_value": 9.0},
    {"update": 200, "loss_actor": -0.2, "loss_qvalue": math.nan, "pred_value": torch.tensor(20.0)},
    {"update": 200, "eval/score": 40.0, "eval/score_std": 4.0, "eval/rat": 40.0, "eval/oms": 40.0},
    {"update": 400, "eval/score": 20.0, "eval/score_std": 2.0, "eval/rat": 30.0, "eval/oms": 40.0},
]
LOOKS = [
    {"update": 5, "grad_norm_actor": 2.0, "grad_norm_qvalue": 3.0},
    {
        "update": 10,
        **{"diagnose/q_data": 5.0, "diagnose/q_data_std": 1.0, "diagnose/q_data_disagreement": 0.5},
        **{"diagnose/q_policy": 6.0, "diagnose/q_policy_std": 2.0, "diagnose/q_policy_disagreement": 0.6},
        **{"diagnose/td_error": 0.25, "diagnose/weight_at_cap": 0.1, "diagnose/weight_effective": 0.7},
        **{"diagnose/clipped_01": 0.0, "diagnose/clipped_10": 0.5, "diagnose/action_distance": 0.4},
    },
    {"update": 20, "diagnose/clipped_01": 0.2, "diagnose/clipped_02": math.nan, "diagnose/clipped_10": 1.0},
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


def test_every_diagnostic_is_drawn_where_it_belongs(tmp_path, figures):
    path = plot_diagnostics(LOOKS, tmp_path / "diagnose.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    q, errors, gradients, weights, distance, clipped = figures[0].axes[:6]
    assert lines(q) == {"data's actions": [(10, 5)], "policy's actions": [(10, 6)]}
    bands = [band.get_datalim(q.transData).intervaly.tolist() for band in q.collections]
    assert bands == [[4, 6], [4, 8]]
    expected = {
        "TD error (RMS)": [(10, 0.25)],
        "critics differ, data": [(10, 0.5)],
        "critics differ, policy": [(10, 0.6)],
    }
    assert lines(errors) == expected and errors.get_yscale() == gradients.get_yscale() == "log"
    assert lines(gradients) == {"actor": [(5, 2)], "qvalue": [(5, 3)]}
    assert lines(weights) == {"effective": [(10, 0.7)], "at the cap": [(10, 0.1)]}
    (mesh,) = clipped.collections
    shares = mesh.get_array().reshape(10, 2).filled(-1).tolist()
    assert shares == [[0, 0.2], *[[-1, -1]] * 8, [0.5, 1]]
    corners = mesh.get_coordinates()
    assert corners[0, :, 0].tolist() == [0, 10, 20] and corners[:, 0, 1].tolist() == [i + 0.5 for i in range(11)]
    assert [y for x, y in next(iter(lines(distance).values()))] == [0.4]


@pytest.mark.parametrize(("bound", "shown"), [(13.0, False), (11.0, True)])
def test_the_bound_of_q_is_shown_where_q_comes_near(tmp_path, figures, bound, shown):
    rows = [{"update": 1, "diagnose/q_data": -6.0, "diagnose/q_policy": 5.0, "diagnose/q_bound": bound}]
    plot_diagnostics(rows, tmp_path / "diagnose.png")
    (panel,) = figures[0].axes
    levels = [
        line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == "--" and len(line.get_ydata()) == 2
    ]
    assert levels == ([-bound, bound] if shown else [])


def test_panels_without_numbers_are_left_out(tmp_path, figures):
    rows = [{"update": 1, "grad_norm_actor": 1.0, "diagnose/action_distance": 0.0, "diagnose/td_error": math.nan}]
    plot_diagnostics(rows, tmp_path / "diagnose.png")
    assert [panel.get_title() for panel in figures[0].axes] == [
        "gradient norms",
        "action distance to the data (RMS)",
    ]
    without = [{key: value for key, value in row.items() if "weight" not in key} for row in LOOKS]
    plot_diagnostics(without, tmp_path / "diagnose.png")
    assert len(figures[-1].axes) == 5 + 1  # and the scale of the shares


def test_a_csv_file_and_a_runs_folder_give_the_same_diagnostics(tmp_path):
    names = list(dict.fromkeys(name for row in LOOKS for name in row))
    with open(tmp_path / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(LOOKS)
    sources, picture = (LOOKS, tmp_path / "metrics.csv", str(tmp_path)), tmp_path / "new" / "folder" / "d.png"
    pictures = {plot_diagnostics(rows, picture).read_bytes() for rows in sources}
    assert len(pictures) == 1


@pytest.mark.parametrize("rows", [[], [{"update": 3, "loss_actor": 1.0, "diagnose/td_error": ""}]])
def test_no_diagnostics_are_an_error(tmp_path, rows):
    with pytest.raises(ValueError, match="columns diagnose/... or grad_norm_..., got none"):
        plot_diagnostics(rows, tmp_path / "diagnose.png")
    assert not (tmp_path / "diagnose.png").exists()


@pytest.mark.parametrize("rows", [[], [{"update": 3}], [{"update": 3, "pred_value": ""}]])
def test_nothing_to_draw_is_an_error(tmp_path, rows):
    with pytest.raises(ValueError, match="metrics: expected rows with `update`"):
        plot_curves(rows, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
