"""The pictures of a training run: returns with RAT and OMS, losses, Q scale; and what may be wrong with it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
_SCORES = ("eval/score", "eval/return", "eval/rat", "eval/oms")
_LOSSES = (("actor", _BLUE), ("diffusion", _PURPLE), ("qvalue", _ORANGE), ("value", _GREEN))
_GRADIENTS = (("actor", _BLUE), ("qvalue", _ORANGE), ("value", _GREEN))
_ACTIONS = (("data", _BLUE, "-"), ("policy", _ORANGE, "--"))
_CLIPPED = tuple(f"diagnose/clipped_{i:02d}" for i in range(1, 11))
_DOTS: dict[str, Any] = {"marker": "o", "markersize": 2.5}

Rows = Iterable[Mapping[str, Any]]
Draw = Callable[["Axes", list[Mapping[str, Any]]], None]


def plot_curves(metrics: Rows | str | PathLike[str], path: str | PathLike[str]) -> Path:
    """Draw a run's learning curves into one PNG.

    Three panels over the number of updates: the score of each evaluation, with its standard deviation
    over episodes (over seeds where there are several), RAT and OMS; the losses on a log axis (magnitudes,
    for a loss that takes both signs); the scale of Q and V. The user's matplotlib backend and settings stay
    as they are.

    Args:
        metrics: rows of metrics, or the path of a CSV of them, or of a run's folder. Each row has `update` and any of
            `eval/score` (or `eval/return`), `eval/score_std`, `eval/score_std_seeds`, `eval/rat`,
            `eval/oms`, `loss_actor`, `loss_diffusion`, `loss_qvalue`, `loss_value`, `pred_value`,
            `state_value`. Missing, empty and non-finite cells are left out.
        path: of the PNG; its folder is made if absent.

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
    rows = _read(metrics)
    if not _has(rows, _SCORES, [f"loss_{name}" for name, _ in _LOSSES], [key for key, *_ in _VALUES]):
        raise ValueError("metrics: expected rows with `update` and a score, a loss or pred_value, got none")
    return _draw_panels(rows, path, (_draw_scores, _draw_losses, _draw_q_scale), width_ratios=(1.3, 1, 1))


def plot_diagnostics(metrics: Rows | str | PathLike[str], path: str | PathLike[str]) -> Path:
    """Draw what the diagnostics of a run say into one PNG.

    Up to six panels over the number of updates, those that have numbers: Q of the data's and of the policy's
    actions, with its deviation over rows, and the bound that the rewards allow where Q comes near it; errors of Q
    (distance to the targets, disagreement of the critics); norms of the gradients; advantage weights; the distance
    of the policy's actions to the data's; the share of the approximated actions that is clipped, by tenths of the
    diffusion steps.

    Args:
        metrics: rows of metrics, or the path of a CSV of them, or of a run's folder, with the columns ``diagnose/...``
            of a run and ``grad_norm_...``. Missing, empty and non-finite cells are left out.
        path: of the PNG; its folder is made if absent.

    Returns:
        The path of the picture.

    Raises:
        ValueError: if no row has anything to draw.

    Example:
        >>> import tempfile
        >>> rows = [{"update": 100, "diagnose/q_data": 5.0}, {"update": 200, "diagnose/q_data": 6.0}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_diagnostics(rows, f"{folder}/diagnose.png").name
        'diagnose.png'
    """
    rows = _read(metrics)
    wanted = {
        _draw_q: ("diagnose/q_data",),
        _draw_q_errors: ("diagnose/td_error",),
        _draw_gradients: tuple(f"grad_norm_{name}" for name, _ in _GRADIENTS),
        _draw_weights: ("diagnose/weight_effective",),
        _draw_distance: ("diagnose/action_distance",),
        _draw_clipped: _CLIPPED,
    }
    draws = [draw for draw, keys in wanted.items() if _has(rows, keys)]
    if not draws:
        raise ValueError("metrics: expected rows with `update` and columns diagnose/... or grad_norm_..., got none")
    return _draw_panels(rows, path, draws)


def _draw_panels(
    rows: list[Mapping[str, Any]], path: str | PathLike[str], draws: Sequence[Draw], **layout: Any
) -> Path:
    """One panel for each of ``draws``, at most three beside each other."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = 2 if len(draws) == 4 else min(len(draws), 3)
    lines = -(-len(draws) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(10 * columns / 3, 2.9 if lines == 1 else 2.5 * lines), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(lines, columns, squeeze=False, **layout).flatten()
        for panel in panels[len(draws) :]:
            panel.remove()
        for panel, draw in zip(panels, draws, strict=False):
            draw(panel, rows)
            panel.set_xlabel("updates")
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            if panel.get_legend_handles_labels()[0]:
                panel.legend()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        canvas.print_figure(path, dpi=200, format="png")
    return Path(path)


def _draw_scores(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    key, title = "eval/score", "normalised return"
    if not len(_series(rows, key)[0]):
        key, title = "eval/return", "return"
    panel.set_title(title)
    updates, scores = _series(rows, key)
    _draw(panel, updates, scores, "evaluation", color=_BLUE, marker="o", markersize=2.5, linewidth=0.8)
    over = "seeds" if _has(rows, [f"{key}_std_seeds"]) else "episodes"
    at, spread = _series(rows, f"{key}_std_seeds" if over == "seeds" else f"{key}_std")
    if len(at) and torch.equal(at, updates):
        low, high = scores - spread, scores + spread
        panel.fill_between(at, low, high, color=_BLUE, alpha=0.15, linewidth=0, label=f"± 1 sd over {over}")
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


def _draw_q(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    panel.set_title("Q (band: ± 1 sd over rows)")
    largest = 0.0
    for name, color, line in _ACTIONS:
        key = f"diagnose/q_{name}"
        updates, values = _series(rows, key)
        _draw_band(panel, updates, values, _series(rows, f"{key}_std"), color)
        _draw(panel, updates, values, f"{name}'s actions", color=color, linestyle=line, **_DOTS)
        largest = max([largest, *values.abs().tolist()])
    for bound in _series(rows, "diagnose/q_bound")[1][-1:].tolist():
        if largest > bound / 2:  # else it would flatten the curves
            for sign in (-1, 1):
                label = "bound of |Q|" if sign > 0 else None
                panel.axhline(sign * bound, color=_GREY, linestyle="--", linewidth=1, label=label)


def _draw_q_errors(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    panel.set_title("errors of Q")
    panel.set_yscale("log")
    _draw(panel, *_series(rows, "diagnose/td_error"), "TD error (RMS)", color=_GREEN, **_DOTS)
    for name, color, line in _ACTIONS:
        style = {"color": color, "linestyle": line, **_DOTS}
        _draw(panel, *_series(rows, f"diagnose/q_{name}_disagreement"), f"critics differ, {name}", **style)


def _draw_gradients(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    panel.set_title("gradient norms")
    panel.set_yscale("log")
    for name, color in _GRADIENTS:
        _draw_noisy(panel, *_series(rows, f"grad_norm_{name}"), color, name)


def _draw_weights(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    panel.set_title("advantage weights, share of the rows")
    panel.set_ylim(-0.02, 1.02)
    _draw(panel, *_series(rows, "diagnose/weight_effective"), "effective", color=_GREEN, **_DOTS)
    _draw(panel, *_series(rows, "diagnose/weight_at_cap"), "at the cap", color=_ORANGE, **_DOTS)


def _draw_clipped(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    panel.set_title("approximated actions clipped, share")
    panel.set_ylabel("tenth of diffusion steps")
    panel.grid(False)
    series = [dict(zip(*map(Tensor.tolist, _series(rows, key)), strict=True)) for key in _CLIPPED]
    updates = sorted(set().union(*series))
    shares = [[tenth.get(update, math.nan) for update in updates] for tenth in series]
    edges = [0.0, *updates], [i + 0.5 for i in range(len(_CLIPPED) + 1)]  # a look stands for the updates before it
    mesh = panel.pcolormesh(*edges, shares, cmap="Blues", vmin=0)
    panel.figure.colorbar(mesh, ax=panel)


def _draw_distance(panel: Axes, rows: list[Mapping[str, Any]]) -> None:
    panel.set_title("action distance to the data (RMS)")
    updates, values = _series(rows, "diagnose/action_distance")
    _draw(panel, updates, values, None, color=_BLUE, **_DOTS)
    panel.set_ylim(0, 1.1 * float(values.max()) or 1)


def _draw_band(panel: Axes, updates: Tensor, values: Tensor, spread: tuple[Tensor, Tensor], color: str) -> None:
    at, size = spread
    if len(at) and torch.equal(at, updates):
        panel.fill_between(at, values - size, values + size, color=color, alpha=0.15, linewidth=0)


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


def _has(rows: list[Mapping[str, Any]], *groups: Iterable[str]) -> bool:
    """Whether a row has a finite number under any of the keys."""
    return any(len(_series(rows, key)[0]) for keys in groups for key in keys)


def _series(rows: list[Mapping[str, Any]], key: str) -> tuple[Tensor, Tensor]:
    """Updates and values [n] of the rows that have a finite number under `key`."""
    pairs = [(float(row["update"]), float(row[key])) for row in rows if row.get(key) not in (None, "")]
    finite = [pair for pair in pairs if math.isfinite(pair[1])]
    updates, values = torch.tensor(finite, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return updates, values


def _read(metrics: Rows | str | PathLike[str]) -> list[Mapping[str, Any]]:
    """Rows of metrics, as they are given or from a CSV file: that of a run, if a folder is given."""
    if not isinstance(metrics, (str, PathLike)):
        return list(metrics)
    path = Path(metrics)
    with (path / "metrics.csv" if path.is_dir() else path).open(newline="") as file:
        return list(csv.DictReader(file))
