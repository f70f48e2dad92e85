"""Checkpoints: a directory per step that is whole or not there, and is checked whenever it is read."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from torchrl_edp.training.files import from_json, sync_folder, to_json, write_synced

FORMAT = 1
TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "manifest.json"
MAX_MANIFEST_BYTES = 1 << 16
_NAME = re.compile(r"update_(\d{9,})(?:\.(\d+))?", re.ASCII)
_TEMPORARY = ".tmp_"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which directory, what was found and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds.

    Args:
        path: its directory.
        step: number of updates done.
        tensors: by name, on the CPU.
        info: all the rest, JSON.
    """

    path: Path
    step: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]


class _Directory(NamedTuple):
    """A directory named as a checkpoint; of two of the same step, the higher revision supersedes the other."""

    step: int
    revision: int
    path: Path


class _Content(NamedTuple):
    """The bytes of the files of a checkpoint whose manifest they fit."""

    tensors: bytes
    state: bytes
    best: bool


class CheckpointStore:
    """The folder of a run's checkpoints: ``update_000001000/`` with tensors, JSON and a manifest of their hashes.

    A checkpoint is written beside the others and renamed into place once it is on the disk; none is ever overwritten.
    So at any moment of a save the last one, or the new one, can be loaded. Nothing is pickled, and whatever does not
    fit its manifest in every byte is refused. One process at a time may save: see
    :class:`~torchrl_edp.training.lock.RunLock`.

    Args:
        path: the folder; made at the first save.
        keep: how many of the last checkpoints to keep, at least 1. The newest one that was marked best stays too.

    Examples:
        >>> import tempfile
        >>> store = CheckpointStore(tempfile.mkdtemp(), keep=1)
        >>> for step in (10, 20, 30):
        ...     path = store.save(step, {"weight": torch.ones(2)}, {"score": step / 10}, best=step == 10)
        >>> store.steps(), path.name
        ([10, 30], 'update_000000030')
        >>> checkpoint, skipped = store.newest()
        >>> checkpoint.tensors, checkpoint.info, skipped
        ({'weight': tensor([1., 1.])}, {'score': 3.0}, [])
    """

    def __init__(self, path: str | Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        self.path = Path(path)
        self.keep = keep

    def save(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any], *, best: bool = False) -> Path:
        """Write a checkpoint, then remove what need not be kept.

        Where the step is there already: an equal one stays, any other is superseded by the new one.

        Args:
            step: number of updates done, not negative.
            tensors: by name, of any shape, dtype and device; they may share memory.
            info: all the rest, strict JSON: string keys, finite numbers.
            best: this is the best one so far: keep it until there is a better one.

        Returns:
            The directory of the checkpoint.

        Raises:
            CheckpointError: if ``info`` is no JSON, or the file system refuses; what was saved before stays.
            ValueError: if ``step`` is negative or a tensor is named ``__metadata__``.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}.")
        path = self.path / f"update_{step:09d}"
        try:
            state = to_json({"step": step, "info": info})
        except ValueError as error:
            raise CheckpointError(f"Checkpoint {path} was not written, info must be JSON: {error}.") from None
        before = self._directories()
        try:
            self._make_folder()
            saved = self._place(step, _Content(_serialize(tensors), state, best), before)
        except OSError as error:
            raise CheckpointError(
                f"Checkpoint {path} was not written: {error}. Older ones are untouched. "
                "Make room or mend the permissions, then save again or resume."
            ) from error
        self._prune(saved, [directory for directory in before if directory < saved])
        return saved.path

    def load(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, the last one if None.

        Raises:
            CheckpointError: if it is missing or not, in every byte, what was saved.
        """
        directories = self._directories()
        chosen = [directory for directory in directories if step in (None, directory.step)]
        if not chosen:
            wanted = "no checkpoint" if step is None else f"no checkpoint of update {step}"
            raise CheckpointError(f"{self.path} has {wanted}; there are: {self.steps() or 'none'}.")
        return _load(chosen[-1])

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint, None if there is none, and one line on each that was skipped and why."""
        skipped: list[str] = []
        for directory in reversed(self._directories()):
            try:
                return _load(directory), skipped
            except CheckpointError as error:
                skipped.append(str(error))
        return None, skipped

    def steps(self) -> list[int]:
        """The steps of all directories that look like checkpoints, intact or not, ascending."""
        return sorted({directory.step for directory in self._directories()})

    def _directories(self) -> list[_Directory]:
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}. Expected a folder of checkpoints.") from error
        matches = [match for name in names if (match := _NAME.fullmatch(name))]
        return sorted(_Directory(int(m[1]), int(m[2] or 0), self.path / m[0]) for m in matches)

    def _make_folder(self) -> None:
        """Make the folder, or remove what killed saves left in it."""
        if not self.path.exists():
            self.path.mkdir(parents=True)
            sync_folder(self.path.parent)
        for name in os.listdir(self.path):
            if name.startswith(_TEMPORARY):
                self._discard(self.path / name)

    def _place(self, step: int, content: _Content, before: list[_Directory]) -> _Directory:
        """Write the files in a directory of another name, then rename it, in one step."""
        same = [directory for directory in before if directory.step == step]
        if same and _holds(same[-1], content):
            return same[-1]
        revision = same[-1].revision + 1 if same else 0
        final = self.path / (f"update_{step:09d}" + (f".{revision}" if revision else ""))
        temporary = self._temporary(final)
        try:
            temporary.mkdir()
            write_synced(temporary / TENSORS, content.tensors)
            write_synced(temporary / STATE, content.state)
            write_synced(temporary / MANIFEST, _manifest(step, content))
            sync_folder(temporary)
            os.rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(self.path)
        return _Directory(step, revision, final)

    def _prune(self, saved: _Directory, older: list[_Directory]) -> None:
        """Of the older ones keep the last intact ones and, unless ``saved`` is a better one, the newest best."""
        kept = [saved.step]
        try:
            best = _read(saved).best
        except OSError:
            return  # no proof that the new one can be read: remove none
        for directory in reversed(older):
            try:
                is_best = _read(directory).best
                needed = directory.step not in kept and (len(kept) < self.keep or (is_best and not best))
            except CheckpointError:
                needed = False
            except OSError:
                continue  # it may be whole
            if needed:
                kept.append(directory.step)
                best |= is_best
            else:
                self._discard(directory.path)

    def _discard(self, path: Path) -> None:
        """Remove a directory, under a temporary name: if interrupted, it does not look like a damaged checkpoint."""
        try:
            if not path.name.startswith(_TEMPORARY):
                path = path.rename(self._temporary(path))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            warnings.warn(f"{path} was not removed: {error}. The next save tries again; mind the space.", stacklevel=4)

    def _temporary(self, path: Path) -> Path:
        return self.path / f"{_TEMPORARY}{path.name}_{secrets.token_hex(4)}"


def _serialize(tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a safetensors file, from copies: nothing aliases, all is contiguous."""
    if "__metadata__" in tensors:
        raise ValueError("a tensor cannot be named '__metadata__': safetensors means something else by it.")
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(copies)


def _describe(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _manifest(step: int, content: _Content) -> bytes:
    files = {TENSORS: _describe(content.tensors), STATE: _describe(content.state)}
    return to_json({"format": FORMAT, "step": step, "best": content.best, "files": files})


def _holds(directory: _Directory, content: _Content) -> bool:
    try:
        return _read(directory) == content
    except CheckpointError:
        return False


def _load(directory: _Directory) -> Checkpoint:
    path = directory.path
    try:
        content = _read(directory)
    except OSError as error:
        raise CheckpointError(f"Checkpoint {path} cannot be read: {error}. Mend that, or resume another.") from error
    try:
        state = from_json(content.state)
    except ValueError as error:
        raise _damaged(path, f"{STATE} is {error}") from None
    try:
        tensors = safetensors.torch.load(content.tensors)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise _damaged(path, f"{TENSORS} is not a safetensors file: {error}") from None
    if not isinstance(state, dict) or state.keys() != {"step", "info"} or state["step"] != directory.step:
        raise _damaged(path, f"{STATE} is not that of update {directory.step}")
    return Checkpoint(path, directory.step, tensors, state["info"])


def _read(directory: _Directory) -> _Content:
    """The files of a checkpoint, if its manifest is, in every byte, the one that just these files get."""
    path = directory.path
    _check_names(path)
    recorded, manifest = _read_manifest(path, directory.step)
    for name in (TENSORS, STATE):
        size = os.stat(path / name).st_size
        if not isinstance(recorded[name], dict) or recorded[name].get("size") != size:
            raise _damaged(path, f"{name} has {size} bytes, its manifest says {recorded[name]}")
    content = _Content(_read_file(path / TENSORS), _read_file(path / STATE), best=b'"best": true' in manifest)
    for name, data in ((TENSORS, content.tensors), (STATE, content.state)):
        if _describe(data) != recorded[name]:
            raise _damaged(path, f"the SHA-256 of {name} is not the one in the manifest")
    if _manifest(directory.step, content) != manifest:
        raise _damaged(path, f"{MANIFEST} was changed")
    return content


def _check_names(path: Path) -> None:
    """Refuse all but a directory of just the three files, so that no link is followed."""
    if path.is_symlink() or not path.is_dir():
        raise _damaged(path, "it is a link or a file, expected a directory")
    with os.scandir(path) as entries:
        plain = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    expected = {TENSORS, STATE, MANIFEST}
    for problem, names in (
        ("missing", expected - plain.keys()),
        ("unexpected there", plain.keys() - expected),
        ("a link or a directory, expected a plain file", {name for name, is_file in plain.items() if not is_file}),
    ):
        if names:
            raise _damaged(path, f"{', '.join(sorted(names))} is {problem}")


def _read_manifest(path: Path, step: int) -> tuple[dict[str, Any], bytes]:
    """What the manifest says of the two files, and its bytes."""
    size = os.stat(path / MANIFEST).st_size
    if size > MAX_MANIFEST_BYTES:
        raise _damaged(path, f"{MANIFEST} has {size} bytes, more than {MAX_MANIFEST_BYTES}")
    data = _read_file(path / MANIFEST)
    try:
        manifest = from_json(data)
    except ValueError as error:
        raise _damaged(path, f"{MANIFEST} is {error}") from None
    manifest = manifest if isinstance(manifest, dict) else {}
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise _damaged(path, f"{MANIFEST} has format {found!r}, this version of torchrl_edp reads format {FORMAT}")
    if manifest.get("step") != step:
        raise _damaged(path, f"{MANIFEST} is that of update {manifest.get('step')!r}")
    files = manifest.get("files")
    if not isinstance(files, dict) or files.keys() != {TENSORS, STATE}:
        raise _damaged(path, f"{MANIFEST} names the files {files!r:.200}, expected {TENSORS} and {STATE}")
    return files, data


def _read_file(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _damaged(path: Path, found: str) -> CheckpointError:
    return CheckpointError(f"Checkpoint {path} is not used: {found}. Resume from another one and delete this one.")
