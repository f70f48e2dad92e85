"""What the training studies share: command line, the runs of all cases, one table and one picture of their scores."""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import train_missing
from runs import Ledger, Run

from torchrl_edp.training.resume import FREE

RESULTS = Path(__file__).parent / "results"
DATASETS = {
    "local": (
        "local/hopper/medium-expert-v0",
        "local/halfcheetah/medium-expert-v0",
        "local/walker2d/medium-v0",
        "local/pointmaze/medium-v0",
    ),
    "minari": (
        *(
            f"mujoco/{body}/{level}-v0"
            for level in ("medium", "expert")
            for body in ("hopper", "halfcheetah", "walker2d")
        ),
        *(f"D4RL/pointmaze/{maze}-v2" for maze in ("umaze", "medium", "large")),
        *(f"D4RL/antmaze/{maze}-v1" for maze in ("umaze", "umaze-diverse")),
        *(f"D4RL/antmaze/{size}-{goals}-v1" for size in ("medium", "large") for goals in ("play", "diverse")),
        *(f"D4RL/pen/{source}-v2" for source in ("human", "cloned")),
        *(f"D4RL/kitchen/{tasks}-v2" for tasks in ("complete", "partial", "mixed")),
    ),
}
# Scores in mazes are all or nothing by episode: ten of them say little.
EPISODES = {"pointmaze": 50, "antmaze": 100}

Case = tuple[str, tuple[str, ...]]  # experiment, overrides


@dataclass(frozen=True)
class Study:
    """Cases to compare on the same data sets, seeds and number of updates.

    Args:
        name: of the result files.
        title: of table and picture.
        cases: experiment and overrides of each, by the name that the table gives it.
        updates: of every run.
        datasets: by default, for local and for public data.
        seeds: by default.
    """

    name: str
    title: str
    cases: Mapping[str, Case]
    updates: int = 50_000
    datasets: Mapping[str, Sequence[str]] = field(default_factory=lambda: DATASETS)
    seeds: Sequence[int] = (0, 1, 2)

    def main(self, description: str | None) -> None:
        """Parse the command line, train what is missing, write the table."""
        args = parser(description, updates=self.updates, seeds=self.seeds).parse_intermixed_args()
        datasets = args.datasets or self.datasets[args.data]
        ledger = Ledger(args.output / "runs.csv")
        cells = {
            (case, dataset): [self.run(case, dataset, seed, args) for seed in args.seeds]
            for case in self.cases
            for dataset in datasets
        }
        by_seed = [runs[i] for i in range(len(args.seeds)) for runs in cells.values()]
        if args.train:
            train_missing(by_seed, ledger, **launching(args))
        else:
            ledger.collect(by_seed)
            if not any(run.key in ledger for run in by_seed):
                raise SystemExit(f"None of the {len(by_seed)} runs is in {ledger.path}: leave --no-train out.")
        self.finish(cells, ledger, list(datasets), args)

    def finish(
        self,
        cells: Mapping[tuple[str, str], Sequence[Run]],
        ledger: Ledger,
        datasets: Sequence[str],
        args: argparse.Namespace,
    ) -> None:
        """Write the results of those runs, by case and data set, that are recorded."""
        rows = [summary(case, dataset, runs, ledger) for (case, dataset), runs in cells.items()]
        self.write(rows, datasets, args, notes=other_data(cells, ledger))

    def run(self, case: str, dataset: str, seed: int, args: argparse.Namespace) -> Run:
        """The run of a case."""
        experiment, overrides = self.cases[case]
        episodes = [f"logger.eval_envs={n}" for name, n in EPISODES.items() if name in dataset]
        named = (f"dataset={dataset}", f"seed={seed}", f"optim.gradient_steps={args.updates}")
        return Run(experiment, (*named, *episodes, *overrides, *args.overrides))

    def write(
        self, rows: Sequence[Row], datasets: Sequence[str], args: argparse.Namespace, notes: Sequence[str] = ()
    ) -> None:
        """Write ``.csv``, ``.md`` (with paragraphs of notes) and ``.png``, and print the table."""
        cases = list(dict.fromkeys(row.case for row in rows))
        write_rows(rows, result_path(args, self.name, ".csv"))
        tables = [
            f"{score.upper()}, {args.updates:,} updates, mean ± deviation over {seeds_named(args.seeds)} (how many are "
            "recorded):\n\n" + table(rows, cases, datasets, score)
            for score in ("rat", "oms")
        ]
        text = "\n\n".join([f"# {self.title}", *tables, *notes, *settings_note(args.overrides)])
        result_path(args, self.name, ".md").write_text(text + "\n")
        print(text)
        draw(rows, cases, datasets, result_path(args, self.name, ".png"), self.title)


@dataclass(frozen=True)
class Row:
    """Scores of one case on one data set; empty where no run is recorded."""

    case: str
    dataset: str
    seeds: int
    rat: float | None
    rat_std: float | None
    oms: float | None
    oms_std: float | None
    minutes: float | None


def summary(case: str, dataset: str, runs: Sequence[Run], ledger: Ledger) -> Row:
    """The scores of those runs that are recorded."""
    return average(case, dataset, [ledger.rows[run.key] for run in runs if run.key in ledger])


def other_data(cells: Mapping[tuple[str, str], Sequence[Run]], ledger: Ledger) -> list[str]:
    """A sentence for each data set whose recorded runs were trained on different contents."""
    contents: dict[str, Counter[str]] = {}
    for (_, dataset), runs in cells.items():
        found = (ledger.rows[run.key]["data"] for run in runs if run.key in ledger)
        contents.setdefault(dataset, Counter()).update(found)
    return [
        f"{dataset} had other contents in some runs, as where machines make their own: "
        + ", ".join(f"{digest or 'unknown'} in {count}" for digest, count in digests.items())
        + "."
        for dataset, digests in contents.items()
        if len(digests) > 1
    ]


def seeds_named(seeds: Sequence[int]) -> str:
    """Which seeds, in words."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def decisive(overrides: Sequence[str]) -> list[str]:
    """Those settings given to all runs that decide their scores, sorted."""
    return sorted(text for text in overrides if text.startswith("logger.eval") or not text.startswith(FREE))


def settings_note(overrides: Sequence[str]) -> list[str]:
    """A sentence about the settings that the command line gave to all runs, if any of them decides scores."""
    found = decisive(overrides)
    return [f"Settings given to all runs: `{' '.join(found)}`."] if found else []


def result_path(args: argparse.Namespace, name: str, suffix: str) -> Path:
    """Where results go; those of settings given to all runs lie beside a study's own and do not replace them.

    Examples:
        >>> args = argparse.Namespace(output=Path("results"), overrides=["compile.onednn=true", "data.return_steps=1"])
        >>> result_path(args, "table2", ".md").name
        'table2_data.return_steps=1.md'
    """
    args.output.mkdir(parents=True, exist_ok=True)
    given = "_".join(decisive(args.overrides))
    safe = re.sub(r"[^\w.=-]+", "-", given)
    if len(safe) > 100:  # file systems allow 255
        safe = hashlib.sha256(given.encode()).hexdigest()[:12]
    return args.output / f"{name}{'_' if safe else ''}{safe}{suffix}"


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row.__dataclass_fields__)
        writer.writerows([getattr(row, name) for name in Row.__dataclass_fields__] for row in rows)


def average(case: str, dataset: str, found: Sequence[Mapping[str, Any]]) -> Row:
    """Mean and deviation (of a population of one: none) of RAT and OMS."""
    values: list[float | None] = []
    for score in ("rat", "oms"):
        scores = [float(row[score]) for row in found]
        values += [statistics.mean(scores) if scores else None, statistics.stdev(scores) if len(scores) > 1 else None]
    minutes = statistics.mean(float(row["seconds"]) for row in found) / 60 if found else None
    return Row(case, dataset, len(found), *values, minutes)


def table(rows: Sequence[Row], cases: Sequence[str], datasets: Sequence[str], score: str) -> str:
    """Data sets down, cases across, their averages where all data sets are there."""
    cells = {(row.case, row.dataset): row for row in rows}
    lines = [f"| data | {' | '.join(cases)} |", "|---" * (len(cases) + 1) + "|"]
    for dataset in datasets:
        lines.append(f"| {dataset} | {' | '.join(_cell(cells[case, dataset], score) for case in cases)} |")
    averages = []
    for case in cases:
        means = [getattr(cells[case, dataset], score) for dataset in datasets]
        averages.append("–" if None in means else f"**{statistics.mean(means):.1f}**")
    times = []
    for case in cases:
        minutes = [cells[case, dataset].minutes for dataset in datasets]
        known = [value for value in minutes if value is not None]
        times.append(f"{statistics.mean(known):.0f} min" if known else "–")
    lines.append(f"| average | {' | '.join(averages)} |")
    if any(row.minutes is not None for row in rows):
        lines.append(f"| wall time of a run | {' | '.join(times)} |")
    return "\n".join(lines)


def _cell(row: Row, score: str) -> str:
    mean, deviation = getattr(row, score), getattr(row, f"{score}_std")
    if mean is None:
        return "–"
    return f"{mean:.1f} (1)" if deviation is None else f"{mean:.1f} ± {deviation:.1f} ({row.seeds})"


def draw(
    rows: Sequence[Row],
    cases: Sequence[str],
    datasets: Sequence[str],
    path: Path,
    title: str,
    label: str = "RAT, normalised score",
) -> None:
    """Bars of RAT by data set and case; ticks of deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = {(row.case, row.dataset): row for row in rows}
    figure = Figure(figsize=(max(6.0, 2.4 * len(datasets)), 3.2), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(cases)
    for i, case in enumerate(cases):
        row = [cells[case, dataset] for dataset in datasets]
        at = [place + (i - (len(cases) - 1) / 2) * width for place in range(len(datasets))]
        heights = [math.nan if cell.rat is None else cell.rat for cell in row]
        errors = [cell.rat_std or 0.0 for cell in row]
        panel.bar(at, heights, width, yerr=errors, label=case, color=COLORS[i], error_kw={"linewidth": 0.8})
    panel.set_xticks(range(len(datasets)), [dataset.split("/", 1)[-1] for dataset in datasets])
    panel.set_ylabel(label)
    panel.set_title(title, fontsize=10)
    handles = panel.get_legend_handles_labels()
    fitting = max(1, int(figure.get_figwidth() / (0.5 + 0.06 * max(map(len, cases)))))  # inches of the longest entry
    rows = math.ceil(len(cases) / fitting)
    ncols = math.ceil(len(cases) / rows)
    figure.legend(*handles, frameon=False, fontsize=7, ncols=ncols, loc="outside lower center")
    panel.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_figure(path, dpi=160, format="png")


# pairs of a pale and a strong colour after Okabe and Ito, told apart by colour-blind readers too, and four more
COLORS = ("#9ECAE1", "#0072B2", "#FDCB8A", "#D55E00", "#A8DDB5", "#009E73", "#CC79A7", "#6A3D9A", "#F0E442", "#555555")


def parser(description: str | None, *, updates: int, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The command line that all training studies understand."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", choices=sorted(DATASETS), default="local", help="local counterparts, or public sets")
    result.add_argument("--datasets", type=_list(str), help="these and no others, separated by commas")
    result.add_argument("--seeds", type=_list(int), default=seeds, help="separated by commas")
    result.add_argument("--updates", type=int, default=updates)
    result.add_argument("--no-train", dest="train", action="store_false", help="only what is recorded")
    result.add_argument("--launcher", default="joblib", help="a Hydra launcher; joblib and basic run here")
    result.add_argument("--launcher-options", type=_list(str), default=(), help="of the launcher, as timeout_min=600")
    result.add_argument("--jobs", type=int, help="runs at a time; one a core by default")
    result.add_argument("--threads", type=int, default=1, help="of each run")
    result.add_argument("--output", type=Path, default=RESULTS, help="folder of tables, pictures and runs.csv")
    result.add_argument("overrides", nargs="*", type=_override, help="settings of all runs, as compile.onednn=true")
    return result


def taken(names: Collection[str]) -> str | None:
    """The first argument of the command line that is one of ``names``, taken out of it; None if there is none."""
    found = next((text for text in sys.argv[1:] if text in names), None)
    if found is not None:
        sys.argv.remove(found)
    return found


def launching(args: argparse.Namespace) -> dict[str, Any]:
    """What ``train_missing`` has to know of the command line."""
    return {name: getattr(args, name) for name in ("launcher", "launcher_options", "jobs", "threads")}


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads a list as Hydra's sweeps do, so that overrides can follow; what is said twice counts once."""

    def values(text: str) -> list[Any]:
        return list(dict.fromkeys(kind(part) for part in text.split(",")))

    return values


# Settings that differ between the runs of a study: given to all, they would make one run of many.
OPTIONS = {"dataset": "--datasets", "seed": "--seeds", "optim.gradient_steps": "--updates"}


def _override(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"expected a setting as optim.lr=0.001, got {text!r}; lists go by commas")
    if text.startswith("hydra."):
        raise argparse.ArgumentTypeError(
            f"{text}: a launcher's settings go by --launcher-options, without hydra.launcher"
        )
    if option := OPTIONS.get(text.split("=", 1)[0]):
        raise argparse.ArgumentTypeError(f"{text}: a study sets this for each of its runs, use {option}")
    return text
