"""Training runs by their settings, and the file in which their results accumulate."""

from __future__ import annotations

import contextlib
import csv
import datetime
import hashlib
import io
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from torchrl_edp.configs import FEED_FORWARD, SCHEMAS, apply_preset, check_overrides
from torchrl_edp.training.checkpoint import CheckpointStore
from torchrl_edp.training.resume import fixed_settings

with contextlib.suppress(ImportError):  # Windows has none, and trains nothing
    import fcntl

FOLDER = Path("runs", "reproduce")
COLUMNS = (
    "key",
    "experiment",
    "dataset",
    "seed",
    "updates",
    "rat",
    "oms",
    "last",
    "seconds",
    "training_seconds",
    "data",
    "processor",
    "torch",
    "date",
    "settings",
    "scores",
    "config",
)
# What the run saw of itself, means over its last ten evaluations; see torchrl_edp.training.diagnose
DIAGNOSES = ("q_data", "q_policy", "q_policy_disagreement", "td_error", "action_distance", "weight_effective")
DIAGNOSIS_COLUMNS = ("key", "experiment", "dataset", "seed", "settings", *DIAGNOSES, "clipped")


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        experiment: ``"edp_td3"`` or another key of ``torchrl_edp.configs.SCHEMAS``.
        overrides: what its command line says, without the algorithm.
    """

    experiment: str
    overrides: tuple[str, ...]

    @cached_property
    def settings(self) -> Any:
        """All its settings, as the run itself would read them.

        Raises:
            SystemExit: if there is no such setting, or if it would have no scores.
        """
        try:
            check_overrides(SCHEMAS[self.experiment], self.overrides)
        except SystemExit as error:
            raise SystemExit(f"{self.experiment}: {error}") from None
        ConfigStore.instance().store(name=self.experiment, node=SCHEMAS[self.experiment])
        with initialize(version_base="1.3", config_path=None):
            config = compose(self.experiment, overrides=list(self.overrides))
        cfg: Any = OmegaConf.to_object(apply_preset(config, self.experiment, self.overrides))
        if not cfg.logger.eval_iter:
            raise SystemExit("A study needs scores: expected logger.eval_iter of at least 1, got 0.")
        if len(cfg.seeds) > 1:
            raise SystemExit(f"A study's runs have one seed each: expected num_seeds=1, got {len(cfg.seeds)}.")
        return cfg

    @cached_property
    def config(self) -> str:
        """Everything that decides its scores, as JSON; not where, and how fast, it ran."""
        cfg = self.settings
        decisive = {"experiment": self.experiment, **fixed_settings(cfg), "updates": cfg.optim.gradient_steps}
        decisive |= {"eval_iter": cfg.logger.eval_iter, "eval_envs": cfg.logger.eval_envs}
        return json.dumps(decisive, sort_keys=True)

    @cached_property
    def key(self) -> str:
        """Twelve digits that stand for :attr:`config`."""
        return hashlib.sha256(self.config.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return FOLDER / self.key

    @property
    def command(self) -> list[str]:
        """What to type to run it, or to go on with it."""
        scripts = Path(__file__).parents[1]
        feed_forward = self.experiment in FEED_FORWARD
        script = [str(scripts / ("feed_forward.py" if feed_forward else f"{self.experiment}.py"))]
        if feed_forward:
            script.append(f"algorithm={self.experiment}")
        return [sys.executable, *script, *self.overrides, f"hydra.run.dir={self.folder.as_posix()}", "resume=auto"]

    @property
    def updates(self) -> int:
        """Updates that are saved so far."""
        return max(CheckpointStore(self.folder / "checkpoints").steps(), default=0)

    @property
    def metrics(self) -> list[dict[str, str]]:
        """The rows of its ``metrics.csv``."""
        with (self.folder / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def diagnosis(self) -> dict[str, Any]:
        """Its row of :data:`DIAGNOSIS_COLUMNS`; empty where its algorithm has no such number."""
        found: dict[str, list[float]] = {}
        rows = [row for row in self.metrics if row.get("diagnose/action_distance")]
        for row in rows[-10:]:
            for name, text in row.items():
                if name.startswith("diagnose/") and text:
                    short = re.sub(r"clipped_\d+", "clipped", name.removeprefix("diagnose/"))  # over all steps
                    found.setdefault(short, []).append(float(text))
        names = (*DIAGNOSES, "clipped")
        means = {name: f"{statistics.mean(found[name]):.4g}" if name in found else "" for name in names}
        about = {name: getattr(self.settings, name) for name in ("dataset", "seed")}
        return {"key": self.key, "experiment": self.experiment, **about, "settings": self.shown, **means}

    @property
    def shown(self) -> str:
        """Its settings as the command line says them, without those that have columns of their own."""
        columns = ("dataset=", "seed=", "optim.gradient_steps=")
        return " ".join(override for override in self.overrides if not override.startswith(columns))

    def row(self) -> dict[str, Any] | None:
        """Its row of results, None while it is not finished."""
        summary_file = self.folder / "summary.json"
        if not summary_file.exists():
            return None
        summary = json.loads(summary_file.read_text())
        scores = [row["eval/score"] or row["eval/return"] for row in self.metrics if row["eval/return"]]
        checkpoint, _ = CheckpointStore(self.folder / "checkpoints").newest()
        return {
            "key": self.key,
            "config": self.config,
            "experiment": self.experiment,
            "updates": summary["gradient_steps"],
            "data": checkpoint.info["run"]["data"][:12] if checkpoint else "",
            "torch": summary["versions"]["torch"],
            "date": datetime.date.today().isoformat(),
            "settings": self.shown,
            "scores": " ".join(f"{float(score):.2f}" for score in scores),
            **{name: f"{summary[name]:.2f}" for name in ("rat", "oms", "last")},
            **{name: f"{summary[name]:.0f}" for name in ("seconds", "training_seconds")},
            **{name: summary[name] for name in ("dataset", "seed", "processor")},
        }


class Ledger:
    """Results of finished runs in a CSV, one row each, by key: it grows over many calls and machines.

    Several processes may add to it at once. Of rows with the same key the first one counts; a row that was cut off,
    as by a full disk, is none.

    Args:
        path: of the CSV, made with its first row.
        columns: of a new file; the first one is the key.

    Raises:
        SystemExit: if the file has other columns.
    """

    def __init__(self, path: str | Path, columns: Sequence[str] = COLUMNS) -> None:
        self.path, self.columns = Path(path), tuple(columns)
        self.rows: dict[str, dict[str, str]] = {}
        if self.path.exists():
            with self.path.open(newline="") as file:
                self._read(file)

    def _read(self, file: TextIO) -> None:
        reader = csv.DictReader(file)
        if reader.fieldnames is None:  # made by another process that has not written its first row yet
            return
        if tuple(reader.fieldnames) != self.columns:
            found = ", ".join(reader.fieldnames)
            raise SystemExit(f"{self.path}: expected the columns {', '.join(self.columns)}, got {found}.")
        for row in reader:
            if None not in row.values():
                self.rows.setdefault(row[self.columns[0]], row)

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; nothing if its key is there, or was added by another process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            file.seek(0)
            before = file.read()
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if before:
                self._read(io.StringIO(before, newline=""))
            else:
                writer.writeheader()
            key = str(row[self.columns[0]])
            if key not in self.rows:
                file.write("" if before.endswith("\n") or not before else "\n")
                writer.writerow(row)
                self.rows[key] = {column: str(row[column]) for column in self.columns}

    def collect(self, runs: Iterable[Run]) -> None:
        """Add those of ``runs`` that are finished, and what they saw of themselves to ``diagnostics.csv`` beside it."""
        diagnoses = Ledger(self.path.with_name("diagnostics.csv"), DIAGNOSIS_COLUMNS)
        for run in runs:
            if run.key not in self and (row := run.row()) is not None:
                diagnoses.add(run.diagnosis())
                self.add(row)
