"""Figure 3: how far the best evaluation (OMS) is from the average of the last ten (RAT) as EDP-TD3 trains.

python examples/reproduce/fig3.py                       # reads table2.py's runs; trains what is missing
python examples/reproduce/fig3.py --no-train --seeds 0
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import table2
from runs import Ledger, Run
from scores import curves, evaluations
from study import Study, result_path, settings_note

COLUMNS = ("case", "dataset", "updates", "seeds", "rat", "rat_std", "oms", "oms_std")
LOOKS = {"rat": ("RAT: mean of the last ten", "#0072B2"), "oms": ("OMS: best so far", "#D55E00")}
CASE = "TD3 EDP"


def points(dataset: str, runs: Sequence[Run], ledger: Ledger) -> list[dict[str, Any]]:
    """Mean and deviation over the recorded seeds after every evaluation."""
    found = [evaluations(ledger.rows[run.key], run.settings.logger.eval_iter) for run in runs if run.key in ledger]
    seeds = [curves([score for _, score in run]) for run in found]
    rows = []
    for i, (updates, _) in enumerate(found[0] if found else ()):
        row: dict[str, Any] = {"case": CASE, "dataset": dataset, "updates": updates, "seeds": len(seeds)}
        for name, index in (("rat", 0), ("oms", 1)):
            values = [seed[index][i] for seed in seeds]
            row[name] = statistics.mean(values)
            row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


class Fig3(Study):
    """One case, shown by evaluation."""

    def finish(
        self,
        cells: Mapping[tuple[str, str], Sequence[Run]],
        ledger: Ledger,
        datasets: Sequence[str],
        args: argparse.Namespace,
    ) -> None:
        """Write ``fig3.csv``, ``.md`` and ``.png``."""
        lines = {dataset: points(dataset, cells[CASE, dataset], ledger) for dataset in datasets}
        with result_path(args, self.name, ".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for rows in lines.values():
                writer.writerows(rows)
        parts = [f"# {self.title}", f"After {args.updates:,} updates, means over seeds:", table(lines)]
        text = "\n\n".join([*parts, *settings_note(args.overrides)])
        result_path(args, self.name, ".md").write_text(text + "\n")
        print(text)
        draw(lines, result_path(args, self.name, ".png"), self.title)


def table(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Both scores at the end, and how far they are apart."""
    text = ["| data | seeds | RAT | OMS | OMS - RAT |", "|---|---|---|---|---|"]
    for dataset, rows in lines.items():
        if rows:
            rat, oms = rows[-1]["rat"], rows[-1]["oms"]
            text.append(f"| {dataset} | {rows[-1]['seeds']} | {rat:.1f} | {oms:.1f} | {oms - rat:.1f} |")
        else:
            text.append(f"| {dataset} | 0 | – | – | – |")
    return "\n".join(text)


def draw(lines: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str) -> None:
    """A panel per recorded data set: means as lines, a deviation to either side as bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = {dataset: rows for dataset, rows in lines.items() if rows} or lines
    figure = Figure(figsize=(max(4.0, 2.9 * len(lines)), 3.1), layout="constrained")
    panels = figure.subplots(1, len(lines), squeeze=False)[0]
    for panel, (dataset, rows) in zip(panels, lines.items(), strict=True):
        updates = [row["updates"] / 1000 for row in rows]
        for name, (label, color) in LOOKS.items():
            low = [row[name] - row[f"{name}_std"] for row in rows]
            high = [row[name] + row[f"{name}_std"] for row in rows]
            panel.fill_between(updates, low, high, color=color, alpha=0.2, linewidth=0)
            panel.plot(updates, [row[name] for row in rows], color=color, label=label)
        panel.set_title(dataset.split("/", 1)[-1], fontsize=9)
        panel.set_xlabel("thousand updates")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("normalised score")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    figure.suptitle(title, fontsize=10)
    FigureCanvasAgg(figure).print_figure(path, dpi=160, format="png")


STUDY = Fig3("fig3", "EDP-TD3 by RAT and by OMS", {CASE: table2.STUDY.cases[CASE]}, updates=table2.STUDY.updates)

if __name__ == "__main__":
    STUDY.main(__doc__)
