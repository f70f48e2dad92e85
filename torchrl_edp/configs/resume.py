"""The command line with which a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchrl_edp.configs.experiments import FEED_FORWARD, SCHEMAS
from torchrl_edp.training.checkpoint import CheckpointStore


def data_folder(dataset: str) -> str:
    """Where in ``runs/<name>`` the runs of a data set go: its name, less what would lead elsewhere.

    Args:
        dataset: an id or a path, as a command line has it.

    Examples:
        >>> data_folder("local/hopper/medium-v0"), data_folder("'/data/pen/'"), data_folder("../pen")
        ('local/hopper/medium-v0', 'data/pen', 'pen')
    """
    return "/".join(part for part in dataset.strip("'\"").split("/") if part not in ("", ".", ".."))


def with_overrides(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """A command line with further overrides before its first one: Hydra wants all of them in one place.

    Examples:
        >>> with_overrides(["--config-dir", "there", "seed=1"], ["optim.lr=1e-4"])
        ['--config-dir', 'there', 'optim.lr=1e-4', 'seed=1']
    """
    first = next((i for i, text in enumerate(arguments) if "=" in text and not text.startswith("-")), 0)
    return [*arguments[:first], *overrides, *arguments[first:]]


def resume_overrides(name: str, overrides: Sequence[str]) -> list[str]:
    """The command line with which to go on with a run; empty where ``resume`` names no folder to be found.

    Args:
        name: of the experiment.
        overrides: the command line. ``resume=FOLDER`` goes on in that folder, with the overrides it was started with
            before the given ones; ``resume=auto`` in the newest folder of the same data set and seed that has a
            checkpoint (starts that failed leave folders, too).

    Raises:
        SystemExit: if the named folder is no run of this experiment, or if it is a sweep that would go on.
    """
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    wanted = given.get("resume", "null").strip("'\"")
    if wanted == "null":
        return []
    if {"-m", "--multirun"} & set(overrides) or given.get("hydra.mode") == "MULTIRUN":
        raise SystemExit(f"resume: expected one run, got a sweep (-m) with resume={wanted}: resume one run at a time.")
    if "hydra.run.dir" in given:
        return []
    if wanted == "auto":
        defaults = SCHEMAS[name]
        dataset, seed = (given.get(key, str(getattr(defaults, key))) for key in ("dataset", "seed"))
        folders = sorted(Path("runs", name, data_folder(dataset)).glob(f"seed{seed}_*"), reverse=True)
        started = (folder for folder in folders if CheckpointStore(folder / "checkpoints").steps())
        return next((with_overrides(overrides, [f"hydra.run.dir='{folder}'"]) for folder in started), [])
    checkpoint, skipped = CheckpointStore(Path(wanted, "checkpoints")).newest()
    if checkpoint is None:
        raise SystemExit(
            "\n".join([f"resume: expected a run's folder with an intact checkpoint, got {wanted!r}.", *skipped])
        )
    run = checkpoint.info["run"]
    if run["experiment"] != name:
        found = run["experiment"]
        script = f"feed_forward.py algorithm={found}" if found in FEED_FORWARD else f"{found}.py"
        raise SystemExit(f"resume: expected a run of {name}, got {wanted!r}, one of {found}: use examples/{script}.")
    kept = [override for override in run["overrides"] if override.split("=", 1)[0] not in ("resume", "resume_changed")]
    return with_overrides(overrides, [f"hydra.run.dir='{wanted}'", *kept])
