"""What a run leaves behind: one folder with config, metrics, pictures, policy and summary."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import platform
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
        self.logger = None
        if backend:
            from torchrl.record.loggers import get_logger

            self.logger = get_logger(backend, logger_name=str(self.path / "logs"), experiment_name=name)

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.__exit__(None, None, None)

    def write_config(self) -> None:
        """Write ``config.yaml``; only once it is sure that this run may use the folder."""
        (self.path / "config.yaml").write_text(self.config)

    def log(self, update: int, values: dict[str, float]) -> None:
        """Add one row; rows may have different columns."""
        self.rows.append({"update": update, **values})
        if self.logger is not None:
            for key, value in values.items():
                self.logger.log_scalar(key, value, step=update)

    def write(self) -> None:
        """Write ``metrics.csv`` and ``curves.png`` from all rows so far, nothing if there are none.

        Where there are columns ``diagnose/...``, write ``diagnose.png`` too.
        """
        from torchrl_edp.evaluation import plot_curves, plot_diagnostics

        if not self.rows:
            return
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with (self.path / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        plot_curves(self.rows, self.path / "curves.png")
        if any(name.startswith("diagnose/") for name in columns):
            plot_diagnostics(self.rows, self.path / "diagnose.png")

    def summarize(self, values: dict[str, Any]) -> dict[str, Any]:
        """Write ``summary.json``: the given values and the versions that made them."""
        versions = {"python": platform.python_version()}
        versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
        summary = {**values, "machine": platform.machine(), "processor": _processor(), "versions": versions}
        # In one piece: who waits for the run's end must not read half of it.
        replace_file(self.path / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        return summary


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
