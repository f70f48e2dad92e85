"""What a run leaves behind: one folder with config, metrics, pictures, policy and summary."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchrl_edp.training.files import replace_file
from torchrl_edp.training.lock import RunLock

PACKAGES = ("torch", "torchrl", "tensordict", "gymnasium", "minari", "mujoco", "numpy")


class RunFolder:
    """A folder that one can open: ``metrics.csv``, pictures, ``summary.json`` and a TorchRL logger.

    It is locked for other processes until it is closed, or its process ends.

    Args:
        path: the folder, made if absent.
        backend: a further logger by TorchRL's ``get_logger``: ``"csv"``, ``"tensorboard"``, ``"wandb"``, ``"mlflow"``,
            ``"trackio"``, or ``""`` for none.
        name: the experiment's name.
        overrides: what was said on its command line; a checkpoint remembers it.
        config: the settings as YAML, for ``config.yaml``.

    Raises:
        RunLockError: if another process uses the folder.

    Examples:
        >>> import tempfile
        >>> folder = RunFolder(tempfile.mkdtemp(), backend="")
        >>> folder.log(10, {"loss_actor": 0.5})
        >>> folder.rows
        [{'update': 10, 'loss_actor': 0.5}]
    """

    def __init__(
        self,
        path: str | Path,
        *,
        backend: str = "csv",
        name: str = "edp",
        overrides: Sequence[str] = (),
        config: str = "",
    ) -> None:
        self.path = Path(path)
        self._lock = RunLock(self.path)
        self._lock.__enter__()
        self.name, self.overrides, self.config = name, list(overrides), config
        self.rows: list[dict[str, Any]] = []
        self.seeds: list[RunFolder] = []
        self.logger = None
        if backend:
            from torchrl.record.loggers import get_logger

            self.logger = get_logger(backend, logger_name=str(self.path / "logs"), experiment_name=name)

    def split(self, seeds: Sequence[int], rows: Sequence[list[dict[str, Any]]] = ()) -> None:
        """Give each of several seeds a folder ``seed<N>`` in this one, where its rows, policy and summary go.

        Args:
            seeds: their numbers.
            rows: what each has logged so far, in a run that goes on.
        """
        self._close_seeds()
        for seed, own in zip(seeds, rows or [[] for _ in seeds], strict=True):
            self.seeds.append(RunFolder(self.path / f"seed{seed}", backend=""))
            self.seeds[-1].rows = own

    def close(self) -> None:
        """Let other processes use the folder."""
        self._close_seeds()
        self._lock.__exit__(None, None, None)

    def _close_seeds(self) -> None:
        while self.seeds:
            self.seeds.pop().close()

    def write_config(self) -> None:
        """Write ``config.yaml``; only once it is sure that this run may use the folder."""
        (self.path / "config.yaml").write_text(self.config)

    def log(self, update: int, *rows: dict[str, float]) -> None:
        """Add one row, or one of every seed to their folders and their means to this one; columns may differ."""
        if self.seeds:
            for folder, row in zip(self.seeds, rows, strict=True):
                folder.log(update, row)
            rows = (_means(rows),)
        (values,) = rows
        self.rows.append({"update": update, **values})
        if self.logger is not None:
            for key, value in values.items():
                self.logger.log_scalar(key, value, step=update)

    def write(self, *, seed_pictures: bool = True) -> None:
        """Write ``metrics.csv`` and ``curves.png`` from all rows so far, nothing if there are none.

        Where there are columns ``diagnose/...``, write ``diagnose.png`` too; and the same for every seed.

        Args:
            seed_pictures: draw those of the seeds, too: a second each.
        """
        for folder in [self, *self.seeds]:
            if folder.rows:
                folder._write_rows()
                if folder is self or seed_pictures:
                    folder._draw()

    def _write_rows(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with (self.path / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def _draw(self) -> None:
        from torchrl_edp.evaluation import plot_curves, plot_diagnostics

        plot_curves(self.rows, self.path / "curves.png")
        if any(name.startswith("diagnose/") for row in self.rows for name in row):
            plot_diagnostics(self.rows, self.path / "diagnose.png")

    def summarize(self, values: dict[str, Any]) -> dict[str, Any]:
        """Write ``summary.json``: the given values and the versions that made them."""
        versions = {"python": platform.python_version()}
        versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
        summary = {**values, "machine": platform.machine(), "processor": processor(), "versions": versions}
        # In one piece: who waits for the run's end must not read half of it.
        replace_file(self.path / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        return summary


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the seeds that have a column, and the deviation of the scores over seeds."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    means = {name: sum(own) / len(own) for name, own in values.items()}
    if "eval/score" in values:
        means["eval/score_std_seeds"] = statistics.stdev(values["eval/score"])
    return means


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """How many processors of which name, family and model: virtual machines of one name differ by the last two."""
    lines = info.read_text().splitlines() if info.exists() else []
    entries = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    about, count = dict(entries), sum(name == "model name" for name, _ in entries)
    if not count:
        return platform.processor() or platform.machine()
    return f"{count} x {about['model name']} (family {about.get('cpu family', '?')}, model {about.get('model', '?')})"
