"""The picture of a training run: returns with RAT and OMS, losses, Q scale."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 7,
}
_VALUES = (("pred_value", _ORANGE, "mean Q"), ("state_value", _GREEN, "mean V"))
_LOSSES = (("actor", _BLUE), ("diffusion", _PURPLE), ("qvalue", _ORANGE), ("value", _GREEN))

Rows = Iterable[Mapping[str, Any]]


def plot_curves(metrics: Rows | str | PathLike[str], path: str | PathLike[str]) -> Path:
    """Draw a run's learning curves into one PNG.

    Three panels over the number of updates: the score of each evaluation, with its standard deviation
    over episodes, RAT and OMS; the losses on a log axis (magnitudes, for a loss that takes both signs);
    the scale of Q and V. The user's matplotlib backend and settings stay as they are.

    Args:
        metrics: rows of metrics, or the path of a CSV of them. Each row has `update` and any of
            `eval/score` (or `eval/return`), `eval/score_std`, `eval/rat`, `eval/oms`, `loss_actor`,
            `loss_diffusion`, `loss_qvalue`, `loss_value`, `pred_value`, `state_value`. Missing, empty and
            non-finite cells are left out.
        path: of the PNG; its folder must exist.

    Returns:
        The path of the picture.

    Raises:
        ValueError: if no row has anything to draw.

    Example:
        >>> import tempfile
        >>> rows = [{"update": 100, "loss_actor": 0.5}, {"update": 200, "loss_actor": 0.2}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_curves(rows, f"{folder}/curves.png").name
        'curves.png'
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = _read(metrics) if isinstance(metrics, (str, PathLike)) else list(metrics)
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 2.9), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
        for panel, draw in zip(panels, (_draw_scores, _draw_losses, _draw_q_scale), strict=True):
            draw(panel, rows)
            panel.set_xlabel("updates")
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            if panel.get_legend_handles_labels()[0]:
                panel.legend()
        if not any(panel.lines for panel in panels):
            raise ValueError("metrics: expected rows with `update` and a score, a loss or pred_value, got none")
        canvas.print_figure(path, dpi=200, format="png")
    return Path(path)


def _draw_scores(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    key, title = "eval/score", "normalised return"
    if not len(_series(rows, key)[0]):
        key, title = "eval/return", "return"
    panel.set_title(title)
    updates, scores = _series(rows, key)
    _draw(panel, updates, scores, "evaluation", color=_BLUE, marker="o", markersize=2.5, linewidth=0.8)
    at, spread = _series(rows, f"{key}_std")
    if len(at) and torch.equal(at, updates):
        low, high = scores - spread, scores + spread
        panel.fill_between(at, low, high, color=_BLUE, alpha=0.15, linewidth=0, label="± 1 sd over episodes")
    _draw(panel, *_series(rows, "eval/rat"), "RAT (mean of last 10)", color=_ORANGE, linewidth=1.8)
    best: dict[str, Any] = {"color": _GREY, "linewidth": 1, "linestyle": "--", "drawstyle": "steps-post"}
    _draw(panel, *_series(rows, "eval/oms"), "OMS (best)", **best)


def _draw_losses(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    panel.set_title("losses")
    panel.set_yscale("log")
    for name, color in _LOSSES:
        updates, losses = _series(rows, f"loss_{name}")
        signed = bool((losses <= 0).any())
        _draw_noisy(panel, updates, losses.abs(), color, f"|{name}|" if signed else name)


def _draw_q_scale(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    panel.set_title("Q scale")
    for key, color, label in _VALUES:
        _draw_noisy(panel, *_series(rows, key), color, label)


def _draw_noisy(panel: Axes, updates: Tensor, values: Tensor, color: str, label: str) -> None:
    """The values in a pale line and their moving average (over 3 % of them) in a strong one."""
    half = len(values) // 66
    if half:
        _draw(panel, updates, values, None, color=color, alpha=0.25, linewidth=0.6)
        values = avg_pool1d(values[None], 2 * half + 1, stride=1, padding=half, count_include_pad=False)[0]
    _draw(panel, updates, values, label, color=color)


def _draw(panel: Axes, updates: Tensor, values: Tensor, label: str | None, **style: Any) -> None:
    if len(updates):
        panel.plot(updates, values, label=label, **style)


def _series(rows: list[Mapping[str, Any]], key: str) -> tuple[Tensor, Tensor]:
    """Updates and values [n] of the rows that have a finite number under `key`."""
    pairs = [(float(row["update"]), float(row[key])) for row in rows if row.get(key) not in (None, "")]
    finite = [pair for pair in pairs if math.isfinite(pair[1])]
    updates, values = torch.tensor(finite, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return updates, values


def _read(path: str | PathLike[str]) -> list[Mapping[str, Any]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
