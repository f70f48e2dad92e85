"""A run that can be stopped at any moment and goes on: what its checkpoints hold, and when one may be used."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchrl_edp.data import OfflineDataset
from torchrl_edp.training.checkpoint import CheckpointError, CheckpointStore
from torchrl_edp.training.record import TrainingRecord
from torchrl_edp.training.run import RunFolder
from torchrl_edp.training.settings import RunSettings
from torchrl_edp.training.state import TrainState

FREE = ("optim.gradient_steps", "logger", "checkpoint", "compile", "resume", "resume_changed", "num_seeds")
"""Settings that a resumed run may change: they change how long it runs and what it shows, not what an update does.
``num_seeds`` is compared apart: older checkpoints and recorded runs do not have it."""

LATER = {"policy.min_noise_scale": 1.0, "optim.matmul_precision": "highest"}
"""Settings that came later, and the value that means what was before: with it they are left out, so that older
checkpoints and recorded runs still fit."""


class RunCheckpoints:
    """Saves a run, and takes it up where it was.

    Args:
        folder: the run's folder; checkpoints go to ``checkpoints`` in it.
        state: the train state.
        record: scores and means so far.
        cfg: all settings; a run is not resumed with others (but for those in :data:`FREE`), unless
            ``cfg.resume_changed``.
        dataset: the data; likewise.
    """

    def __init__(
        self,
        folder: RunFolder,
        state: TrainState,
        record: TrainingRecord,
        cfg: RunSettings,
        dataset: OfflineDataset,
    ) -> None:
        self.store = CheckpointStore(folder.path / "checkpoints", keep=cfg.checkpoint.keep)
        self.folder, self.state, self.record, self.cfg = folder, state, record, cfg
        self._data, self._settings = dataset.fingerprint(), fixed_settings(cfg)

    def save(self, best: bool = False) -> None:
        """Save everything that the next update depends on."""
        tensors = {f"train.{name}": tensor for name, tensor in self.state.state_dict().items()}
        tensors |= {f"record.{name}": tensor for name, tensor in self.record.tensors().items()}
        run: dict[str, Any] = {"experiment": self.folder.name, "overrides": self.folder.overrides}
        run |= {"data": self._data, "settings": self._settings, "seeds": list(self.cfg.seeds)}
        seed_rows = [folder.rows for folder in self.folder.seeds]
        info = {"run": run, "record": self.record.info(), "rows": self.folder.rows, "seed_rows": seed_rows}
        self.store.save(self.state.updates, tensors, info, best=best)

    def restore(self) -> list[list[dict[str, Any]]]:
        """Go on from the newest intact checkpoint, if ``cfg.resume`` asks for it; says what it does and skips.

        Returns:
            The rows so far of each of several seeds, for :meth:`RunFolder.split`; nothing where there are none.

        Raises:
            CheckpointError: if there are checkpoints and none was asked for, if none of them is intact, or if the
                newest one belongs to other data or settings.
        """
        path, steps = self.store.path, self.store.steps()
        if self.cfg.resume is None:
            if steps:
                remedy = f"Go on with resume={self.folder.path}, or choose another folder."
                raise CheckpointError(f"{path} holds a run of {steps[-1]} updates, expected a new folder. {remedy}")
            return []
        checkpoint, skipped = self.store.newest()
        for line in skipped:
            print(f"Skipped: {line}")
        if checkpoint is None:
            if steps:
                raise CheckpointError(f"{path}: none of the checkpoints {steps} is intact. Start in another folder.")
            print(f"Nothing to resume in {path}: starting from the beginning.")
            return []
        self._check(checkpoint.path, checkpoint.info["run"])
        groups: dict[str, dict[str, Any]] = {"train": {}, "record": {}}
        for name, tensor in checkpoint.tensors.items():
            group, _, key = name.partition(".")
            groups[group][key] = tensor
        try:
            self.state.load_state_dict(groups["train"])
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path} does not fit this run, on this device: {error}") from error
        means = {name: tensor.to(self.state.device) for name, tensor in groups["record"].items()}
        self.record.load(means, checkpoint.info["record"])
        self.folder.rows = list(checkpoint.info["rows"])
        print(f"Resuming after update {checkpoint.step}: {checkpoint.path}")
        return list(checkpoint.info.get("seed_rows", ()))

    def _check(self, path: Path, saved: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run."""
        then, now = saved.get("seeds", [saved["settings"]["seed"]]), list(self.cfg.seeds)
        if len(then) != len(now) or (len(now) > 1 and then != now):
            raise CheckpointError(
                f"{path} belongs to a run of the seeds {then}, got {now}. Take those of then (seed, num_seeds), name "
                "another run's folder (resume=FOLDER), or start a run of its own."
            )
        if self.cfg.resume_changed:
            return
        before, own = saved["settings"], self._settings
        changed = [
            f"{name}: {before.get(name, 'not there')} then, {own.get(name, 'not there')} now"
            for name in sorted(before.keys() | own.keys())
            if before.get(name, self) != own.get(name, self)
        ]
        if saved["data"] != self._data:
            changed.append("the data: other contents now")
        if changed:
            raise CheckpointError(
                f"{path} belongs to a run with other settings or data: {'; '.join(changed)}. "
                "Take the settings of then, start a run of its own, or pass resume_changed=true to go on all the same."
            )


def resume_command(folder: RunFolder) -> str:
    """What to type to go on with the run in ``folder``."""
    return shlex.join(["python", sys.argv[0], f"resume={folder.path}"])


def fixed_settings(cfg: RunSettings) -> dict[str, Any]:
    """All settings but those in :data:`FREE` and :data:`LATER`, by their dotted names, as JSON gives them back."""
    flat: dict[str, Any] = {}

    def flatten(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if name in FREE or LATER.get(name, cfg) == value:
                continue
            if isinstance(value, dict) and value:
                flatten(value, f"{name}.")
            else:
                flat[name] = value

    flatten(json.loads(json.dumps(asdict(cfg))), "")
    return flat
