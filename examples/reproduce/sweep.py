"""Trained policies under other acting settings: what figures 4 to 7 and table 6 share."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from launch import train_missing
from omegaconf import OmegaConf
from runs import FOLDER, Ledger, Run
from study import EPISODES, parser, settings_note
from table2 import STUDY as TABLE2
from tqdm import tqdm

from torchrl_edp.data import load_dataset
from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.modules import EnergyBasedActionSelector
from torchrl_edp.training import EnvironmentPolicy, load_policy

COLUMNS = ("key", "policy", "dataset", "acting", "episodes", "score", "deviation", "seconds", "torch", "date", "scores")

FULL_NOISE = {"initial_noise_scale": 1.0}
PAPER = FULL_NOISE | {"num_action_samples": 10}  # how the paper's policies act

COMPILED_ROWS = 1_000  # actions at a time from which on compiling pays in a few hundred steps

Acting = dict[str, Any]


@dataclass(frozen=True)
class SavedPolicy:
    """A policy in a run's folder.

    Args:
        path: the run's folder, or the policy in it (``policy_best``), with or without suffix.
    """

    path: Path

    @cached_property
    def file(self) -> Path:
        """The policy's path, without suffix.

        Raises:
            SystemExit: if there is none.
        """
        path = self.path / "policy" if self.path.is_dir() else self.path
        path = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
        if not path.with_name(path.name + ".json").exists():
            raise SystemExit(f"{self.path}: expected the folder of a finished run, or a policy; found no {path}.json.")
        return path

    @cached_property
    def digest(self) -> str:
        """Twelve digits that stand for its weights and its own settings."""
        files = [self.file.with_name(self.file.name + suffix).read_bytes() for suffix in (".safetensors", ".json")]
        return hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in files)).hexdigest()[:12]

    @cached_property
    def data(self) -> tuple[str, int | None]:
        """Name of the data set it was trained on, and the size if it is one of its own."""
        config = self.file.with_name("config.yaml")
        if config.exists():
            cfg = OmegaConf.load(config)
            return cfg.dataset, cfg.data.num_steps
        return json.loads(self.file.with_name(self.file.name + ".json").read_text())["info"]["dataset"], None


def load_acting(saved: SavedPolicy, acting: Acting) -> EnvironmentPolicy:
    """The policy, with other settings than its own: attributes of its selector or of its sampler.

    Raises:
        ValueError: if there are any and it is no policy of EDP, or has no such setting, or cannot run with it.
    """
    policy = load_policy(saved.file)
    if not acting:
        return policy
    selector = policy.policy
    if not isinstance(selector, EnergyBasedActionSelector):
        raise ValueError(f"{saved.file}: expected a policy of EDP, got {type(selector).__name__}. Name other runs.")
    sampler = selector.actor_network.module
    for name, value in acting.items():
        owner = selector if hasattr(selector, name) else sampler
        if not hasattr(owner, name):
            raise ValueError(f"{saved.file}: a policy of EDP has no setting {name!r}.")
        setattr(owner, name, value)
    sampler.check_options()
    return policy


@dataclass(frozen=True)
class Point:
    """One evaluation: a policy, how it acts, the number of episodes; these are the same ones for all points.

    Args:
        policy: the policy.
        acting: settings that differ from the policy's own.
        episodes: None for :data:`EPISODES` of its environment, 20 elsewhere.
        load: makes the policy that acts.
    """

    policy: SavedPolicy
    acting: Acting
    episodes: int | None = None
    load: Callable[[SavedPolicy, Acting], EnvironmentPolicy] = load_acting

    @cached_property
    def num_episodes(self) -> int:
        """How many episodes."""
        own = [count for name, count in EPISODES.items() if name in self.policy.data[0]]
        return self.episodes or max(own, default=20)

    @cached_property
    def key(self) -> str:
        """Twelve digits that stand for everything that decides its score."""
        decisive = json.dumps([self.policy.digest, self.acting, self.num_episodes], sort_keys=True)
        return hashlib.sha256(decisive.encode()).hexdigest()[:12]

    def row(self, evaluator: PolicyEvaluator) -> dict[str, Any]:
        """Evaluate it; its row of results."""
        started = time.monotonic()
        policy = self.load(self.policy, self.acting)
        if self.acting.get("num_action_samples", 1) * self.num_episodes >= COMPILED_ROWS:
            policy = torch.compile(policy, options={"fallback_random": True})  # the same draws as others
        result = evaluator(policy, seed=0)
        low, high = result.reference or (0.0, 100.0)
        scores = (100 * (result.returns - low) / (high - low)).tolist()
        return {
            "key": self.key,
            "policy": self.policy.digest,
            "dataset": self.policy.data[0],
            "acting": json.dumps(self.acting, sort_keys=True),
            "episodes": self.num_episodes,
            "score": f"{statistics.mean(scores):.2f}",
            "deviation": f"{statistics.pstdev(scores):.2f}",
            "seconds": f"{time.monotonic() - started:.1f}",
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
            "scores": " ".join(f"{score:.2f}" for score in scores),
        }


@cache
def environment(dataset: str, num_steps: int | None) -> dict[str, Any]:
    """Where policies of a data set act: arguments of :class:`PolicyEvaluator`."""
    data = load_dataset(dataset, **({} if num_steps is None else {"num_steps": num_steps}))
    about = {"env_id": data.env_id, "max_steps": data.max_episode_steps, "observation_keys": data.observation_keys}
    return about | {"reference": data.reference and data.reference[:2], "env_kwargs": data.env_kwargs}


def evaluate(points: Sequence[Point], ledger: Ledger, *, onednn: bool = False) -> None:
    """Evaluate those of ``points`` that ``ledger`` does not know, each recorded at once.

    Args:
        points: the evaluations.
        ledger: of evaluations.
        onednn: matrix products by oneDNN, as ``compile.onednn`` of the runs.

    Raises:
        SystemExit: after Ctrl-C.
    """
    if onednn:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    missing = {point.key: point for point in points if point.key not in ledger}.values()
    try:
        # disable=None: no bar where the output is not a terminal.
        with tqdm(total=len(missing), unit="point", disable=None if missing else True) as bar:
            for (data, episodes), group in groupby(missing, lambda point: (point.policy.data, point.num_episodes)):
                bar.set_description(data[0])
                with PolicyEvaluator(**environment(*data), num_episodes=episodes) as evaluator:
                    for point in group:
                        bar.set_postfix_str(" ".join(f"{name}={value}" for name, value in point.acting.items()))
                        ledger.add(point.row(evaluator))
                        bar.update()
    except KeyboardInterrupt:
        raise SystemExit("Stopped, nothing is lost: the same command goes on.") from None


class TrainedRuns(Ledger):
    """The results of training runs; it knows a run only where its policy is, so that a lost one is trained again."""

    def __contains__(self, key: str) -> bool:
        return key in self.rows and (FOLDER / key / "policy.json").exists()


def trained(case: str, args: argparse.Namespace) -> list[Run]:
    """The runs of a case of table 2, trained where they are missing.

    Raises:
        SystemExit: if there is none, with ``--no-train``.
    """
    datasets = args.datasets or TABLE2.datasets[args.data]
    runs = [TABLE2.run(case, dataset, seed, args) for dataset in datasets for seed in args.seeds]
    ledger = TrainedRuns(args.output / "runs.csv")
    if args.train:
        train_missing(runs, ledger, launcher=args.launcher, jobs=args.jobs, threads=args.threads)
    found = [run for run in runs if (run.folder / "policy.json").exists()]
    if not found:
        raise SystemExit(f"None of the {len(runs)} runs of {case} is in {FOLDER}: leave --no-train out.")
    if len(found) < len(runs):
        print(f"{len(runs) - len(found)} of {len(runs)} runs of {case} are not in {FOLDER}: left out.", file=sys.stderr)
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
        paths = args.policies or [run.folder for run in trained("TD3 EDP", args)]
        policies = [SavedPolicy(path) for path in paths]
        ledger = Ledger(args.output / f"{self.name}.csv", COLUMNS)
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
        """Write ``<name>.md`` and ``.png``, and print the table."""
        scores = self.scores(policies, ledger, args.episodes)
        tables = [f"{variant}:\n\n{table(lines, self.axis)}" for variant, lines in scores.items()]
        about = "Normalised scores, mean ± deviation over the same episodes for all points."
        notes = settings_note([] if args.policies else args.overrides)
        text = "\n\n".join([f"# {self.title}", f"The paper: {self.paper}", about, *tables, *notes])
        args.output.joinpath(f"{self.name}.md").write_text(text + "\n")
        print(text)
        draw(scores, args.output / f"{self.name}.png", title=self.title, axis=self.axis, log=self.log)


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
