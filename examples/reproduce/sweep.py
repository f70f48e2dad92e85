"""Trained policies under other acting settings: what figures 4 to 7 and table 6 share."""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from launch import train_missing
from points import COLUMNS, POINTS, POLICIES, POLICY_COLUMNS, Acting, Point, SavedPolicy, evaluate
from runs import FOLDER, Ledger, Run
from study import launching, parser, result_path, seeds_named, settings_note
from table2 import STUDY as TABLE2


class TrainedRuns(Ledger):
    """The results of training runs; it knows a run only where its policy is, so that a lost one is trained again."""

    def __contains__(self, key: str) -> bool:
        return key in self.rows and (FOLDER / key / "policy.json").exists()


def trained(
    case: str, args: argparse.Namespace, points: Callable[[Run, SavedPolicy], Sequence[Point]]
) -> list[tuple[Run, SavedPolicy]]:
    """The runs of a case of table 2 with their policies, trained where they are missing.

    Args:
        case: of table 2.
        args: of the command line.
        points: those of a policy that are wanted: where all of them are recorded, its files may be gone.

    Raises:
        SystemExit: if there is none, with ``--no-train``.
    """
    datasets = args.datasets or TABLE2.datasets[args.data]
    runs = [TABLE2.run(case, dataset, seed, args) for dataset in datasets for seed in args.seeds]
    policies, recorded = Ledger(args.output / POLICIES, POLICY_COLUMNS), Ledger(args.output / POINTS, COLUMNS)

    def find(run: Run) -> SavedPolicy | None:
        if (run.folder / "policy.json").exists():
            return SavedPolicy(run.folder)
        policy = SavedPolicy.recorded(run.folder, policies.rows[run.key]) if run.key in policies else None
        return policy if policy and all(point.key in recorded for point in points(run, policy)) else None

    if args.train:
        missing = [run for run in runs if find(run) is None]
        train_missing(missing, TrainedRuns(args.output / "runs.csv"), **launching(args))
    found = [(run, policy) for run in runs if (policy := find(run))]
    if not found:
        raise SystemExit(f"None of the {len(runs)} runs of {case} is in {FOLDER}: leave --no-train out.")
    if len(found) < len(runs):
        print(f"{len(runs) - len(found)} of {len(runs)} runs of {case} are not in {FOLDER}: left out.", file=sys.stderr)
    for run, policy in found:
        policies.add(policy.record(run.key))
    return found


def sweep_parser(description: str | None, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The command line of the training studies, and the number of episodes."""
    result = parser(description, updates=TABLE2.updates, seeds=seeds)
    result.add_argument("--episodes", type=int, help="of each point; by default 20, in mazes more")
    return result


@dataclass(frozen=True)
class Sweep:
    """Policies of EDP-TD3 by one acting setting.

    Args:
        name: of the result files.
        title: of table and picture.
        axis: what the setting is.
        values: of the setting.
        variants: settings to act with as a function of the value, by the name that their panel gets.
        paper: what the paper says of it.
        log: draw the setting on a logarithmic axis.
    """

    name: str
    title: str
    axis: str
    values: Sequence[float]
    variants: Mapping[str, Callable[[Any], Acting]]
    paper: str
    log: bool = False

    def main(self, description: str | None, argv: Sequence[str] | None = None) -> None:
        """Parse the command line, evaluate what is missing, write table and picture."""
        command_line = sweep_parser(description, seeds=[0])
        command_line.add_argument("--policies", nargs="+", type=Path, help="these runs' folders, or policies in them")
        args = command_line.parse_intermixed_args(argv)
        if args.policies:
            policies = [SavedPolicy(path) for path in args.policies]
        else:
            found = trained(
                "TD3 EDP", args, lambda _, policy: [each for *_, each in self.points(policy, args.episodes)]
            )
            policies = [policy for _, policy in found]
        ledger = Ledger(args.output / POINTS, COLUMNS)
        points = [point for policy in policies for _, _, point in self.points(policy, args.episodes)]
        evaluate(points, ledger, onednn="compile.onednn=true" in args.overrides)
        self.write(policies, ledger, args)

    def points(self, policy: SavedPolicy, episodes: int | None) -> list[tuple[str, float, Point]]:
        """Variant, value and evaluation of every point of a policy."""
        return [
            (variant, value, Point(policy, acting(value), episodes))
            for variant, acting in self.variants.items()
            for value in self.values
        ]

    def scores(self, policies: Sequence[SavedPolicy], ledger: Ledger, episodes: int | None) -> Scores:
        """Scores of all episodes by variant, data set and value; those of a data set's policies together."""
        found: Scores = {}
        for policy in policies:
            for variant, value, point in self.points(policy, episodes):
                lines = found.setdefault(variant, {}).setdefault(policy.data[0], {})
                lines.setdefault(value, []).extend(map(float, ledger.rows[point.key]["scores"].split()))
        return found

    def write(self, policies: Sequence[SavedPolicy], ledger: Ledger, args: argparse.Namespace) -> None:
        """Write ``<name>.csv``, ``.md`` and ``.png``, and print the table."""
        scores = self.scores(policies, ledger, args.episodes)
        path = partial(result_path, args, self.name)
        with path(".csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("variant", "dataset", self.axis, "episodes", "score", "deviation"))
            for variant, lines in scores.items():
                for dataset, line in lines.items():
                    for value, found in line.items():
                        summary = f"{statistics.mean(found):.2f}", f"{statistics.pstdev(found):.2f}"
                        writer.writerow((variant, dataset, value, len(found), *summary))
        tables = [f"{variant}:\n\n{table(lines, self.axis)}" for variant, lines in scores.items()]
        counts = sorted({len(found) for lines in scores.values() for line in lines.values() for found in line.values()})
        of = "the given policies" if args.policies else f"table 2's policies of {seeds_named(args.seeds)}"
        about = f"Normalised scores of {of}, mean ± deviation over {' or '.join(map(str, counts))} episodes."
        notes = settings_note([] if args.policies else args.overrides)
        text = "\n\n".join([f"# {self.title}", f"The paper: {self.paper}", about, *tables, *notes])
        path(".md").write_text(text + "\n")
        print(text)
        draw(scores, path(".png"), title=self.title, axis=self.axis, log=self.log)


Scores = dict[str, dict[str, dict[float, list[float]]]]


def table(lines: Mapping[str, Mapping[float, Sequence[float]]], axis: str) -> str:
    """Data sets down, values across, and the average over data sets."""
    values = list(next(iter(lines.values())))
    rows = [f"| {axis} | {' | '.join(f'{value:g}' for value in values)} |", "|---" * (len(values) + 1) + "|"]
    for dataset, line in lines.items():
        cells = [f"{statistics.mean(line[value]):.1f} ± {statistics.pstdev(line[value]):.1f}" for value in values]
        rows.append(f"| {dataset} | {' | '.join(cells)} |")
    if len(lines) > 1:
        means = [statistics.mean(statistics.mean(line[value]) for line in lines.values()) for value in values]
        rows.append(f"| average | {' | '.join(f'**{mean:.1f}**' for mean in means)} |")
    return "\n".join(rows)


# Okabe and Ito's colours, told apart by colour-blind readers too; the markers by all others
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_MARKERS = "os^Dv<>P"


def draw(scores: Scores, path: Path, *, title: str, axis: str, log: bool) -> None:
    """A panel for each variant, a line for each data set with its standard error over episodes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(scores))
    rows = -(-len(scores) // columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 0.8 + 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for panel, (variant, lines) in zip(panels, scores.items(), strict=True):
        for i, (dataset, line) in enumerate(lines.items()):
            values = list(line)
            means = [statistics.mean(line[value]) for value in values]
            errors = [statistics.pstdev(line[value]) / max(len(line[value]) - 1, 1) ** 0.5 for value in values]
            style = {"color": _COLORS[i % len(_COLORS)], "marker": _MARKERS[i % len(_MARKERS)]}
            panel.plot(values, means, label=dataset.split("/", 1)[-1], markersize=3.5, linewidth=1.4, **style)
            low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
            panel.fill_between(values, low, high, color=style["color"], alpha=0.18, linewidth=0)
        panel.set_title(variant, fontsize=9)
        if log:
            panel.set_xscale("log")
        panel.set_xticks(values, [f"{value:g}" for value in values], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.25, linewidth=0.5)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(axis, fontsize=9)
    figure.supylabel("normalised score ± standard error", fontsize=9)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_figure(path, dpi=160, format="png")
