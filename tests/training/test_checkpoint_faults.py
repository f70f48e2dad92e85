"""Every file-system call of a save fails in every way; something that can be loaded always remains."""

import builtins
import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from torchrl_edp.training import checkpoint, files
from torchrl_edp.training.checkpoint import CheckpointError, CheckpointStore

CALLS = ("open", "close", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync")
CALLS += ("listdir", "scandir", "stat", "lstat")
FAULTS = {"no space": errno.ENOSPC, "I/O error": errno.EIO, "no permission": errno.EACCES, "sudden exit": None}
KILLED = 9

Trip = Callable[[str, object], None]


class File:
    """A file whose calls can fail; a write that fails or is cut off has written half."""

    def __init__(self, file, trip: Trip) -> None:
        self.file, self.trip = file, trip

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()
        self.trip("file.close", self.file.name)

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.trip("file.write", self.file.name)
        self.file.write(data[len(data) // 2 :])

    def flush(self) -> None:
        self.trip("file.flush", self.file.name)
        self.file.flush()

    def read(self) -> bytes:
        self.trip("file.read", self.file.name)
        return self.file.read()


@contextmanager
def tripped(trip: Trip) -> Iterator[None]:
    """Call ``trip(name, first argument)`` before every file-system call; closing happens all the same."""

    def wrap(name: str) -> Callable:
        real = getattr(os, name)

        def call(*args, **kwargs):
            if name == "close":
                real(*args)
                return trip(name, *args)
            trip(name, args[0] if args else "")
            return real(*args, **kwargs)

        return call

    def opened(path, mode):
        trip("file.open", path)
        return File(builtins.open(path, mode), trip)

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name))
        for module in (checkpoint, files):
            patch.setattr(module, "open", opened, raising=False)
        yield


def save(store: CheckpointStore, step: int, content: int = 0) -> None:
    store.save(step, {"weight": torch.arange(4.0) + step + content, "rng": torch.get_rng_state()[:8]}, {"step": step})


def nothing_yet(store: CheckpointStore) -> None:
    pass


def full_with_leftovers(store: CheckpointStore) -> None:
    """As many as are kept, an older best one, a link, what a killed save and a killed removal left."""
    store.save(1, {"weight": torch.zeros(1)}, {}, best=True)
    save(store, 2)
    save(store, 3)
    shutil.copytree(store.path / "update_000000002", store.path / ".tmp_update_000000004_a")
    shutil.copytree(store.path / "update_000000001", store.path / ".tmp_update_000000000_b")
    (store.path / ".tmp_update_000000000_b" / "manifest.json").unlink()
    (store.path / "update_000000000").symlink_to(store.path / "update_000000001")


def same_step_equal(store: CheckpointStore) -> None:
    save(store, 3)
    save(store, 4)


def same_step_other(store: CheckpointStore) -> None:
    save(store, 4, content=100)  # the only one: it must not be lost before the new one is whole


def same_step_damaged(store: CheckpointStore) -> None:
    save(store, 3)
    save(store, 4)
    (store.path / "update_000000004" / "state.json").unlink()


CASES = [nothing_yet, full_with_leftovers, same_step_equal, same_step_other, same_step_damaged]


def contents(store: CheckpointStore) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.path.rglob("update_*/*") if path.is_file()}


def record(store: CheckpointStore) -> list[tuple[str, object]]:
    calls: list[tuple[str, object]] = []
    with tripped(lambda name, argument: calls.append((name, argument))):
        save(store, 4)
    return calls


def save_with_fault(store: CheckpointStore, index: int, code: int | None) -> bool:
    """Save update 4 with call ``index`` failing, in a child process where the fault ends it; whether it returned."""
    count = iter(range(10**6))

    def trip(name: str, argument: object) -> None:
        if next(count) == index:
            if code is None:
                os._exit(KILLED)
            raise OSError(code, os.strerror(code), str(argument))

    def run() -> bool:
        with tripped(trip), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                save(store, 4)
            except CheckpointError as error:
                assert str(store.path) in str(error) and (code is None or os.strerror(code) in str(error))
                return False
        return True

    if code is not None:
        return run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside other threads
        child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED, "the fault must end the child"
    return False


def check(store: CheckpointStore, before: dict[str, bytes], newest_before: int | None, saved: bool) -> None:
    """What was there, or what was to be saved, can be loaded; and the next save makes all well."""
    found, _ = store.newest()
    if saved:
        assert found is not None and found.step == 4
    elif newest_before is not None:
        assert found is not None and found.step in (newest_before, 4)
    if found is not None and found.step == 4 and found.info:
        assert found.tensors["weight"][0].item() in (4, 104)
    after = contents(store)
    assert all(after[path] == before[path] for path in before.keys() & after.keys()), "a live checkpoint was changed"
    save(store, 5)
    checkpoint, skipped = store.newest()
    assert checkpoint is not None and checkpoint.step == 5 and skipped == []
    assert not [path for path in store.path.iterdir() if not path.name.startswith("update_")]
    assert all(store.load(step).step == step for step in store.steps()[-2:])


@pytest.mark.parametrize(
    ("case", "faults"),
    [
        pytest.param(same_step_other, ["I/O error"], id="quick"),
        *(pytest.param(case, [*FAULTS], marks=pytest.mark.long, id=case.__name__) for case in CASES),
    ],
)
def test_every_call_fails_in_every_way(case, faults, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the end of a process loses nothing, and it takes long
    whole = CheckpointStore(tmp_path / "whole")
    case(whole)
    newest, _ = whole.newest()
    store = CheckpointStore(tmp_path / "checkpoints")

    def restore() -> None:
        shutil.rmtree(store.path, ignore_errors=True)
        if whole.path.exists():
            shutil.copytree(whole.path, store.path, symlinks=True)

    restore()
    before = contents(store)
    calls = record(store)
    trials = failed = 0
    for index in range(len(calls)):
        for fault in faults:
            restore()
            saved = save_with_fault(store, index, FAULTS[fault])
            try:
                check(store, before, newest and newest.step, saved)
            except Exception as error:
                raise AssertionError(f"call {index} {calls[index]}, {fault}") from error
            trials += 1
            failed += not saved
    assert trials == len(faults) * len(calls) and len(calls) >= 40
    assert trials / 4 < failed < trials  # all exits, many errors; errors in pruning are no failure of the save


def test_all_kinds_of_calls_are_among_them(tmp_path):
    """What the test above lets fail is what a save does; a call that it cannot see would be missing here."""
    store = CheckpointStore(tmp_path / "checkpoints")
    full_with_leftovers(store)
    names = [name for name, _ in record(store)]
    assert set(names) >= {"mkdir", "rename", "unlink", "rmdir", "fsync", "open", "close", "listdir", "scandir", "stat"}
    assert names.count("file.write") == names.count("file.flush") == 3
    assert names.count("fsync") == 5  # three files, their directory, its parent
    assert 60 <= len(names) <= 200


def test_all_is_on_the_disk_before_the_rename(tmp_path):
    """A loss of power keeps only what was synced: the files, then their directory, one rename, then the folder."""
    calls: list[tuple[str, Path]] = []
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 3)

    def trip(name: str, argument: object) -> None:
        if name in ("file.open", "file.write", "fsync", "rename"):
            target = os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else str(argument)
            calls.append((name, Path(target)))

    with tripped(trip):
        save(store, 4)
    end = next(i for i, (name, _) in enumerate(calls) if name == "rename")
    temporary = calls[end][1]
    each = [(call, temporary / name) for name in ("state.safetensors", "state.json", "manifest.json")
            for call in ("file.open", "file.write", "fsync")]  # fmt: skip
    assert calls[: end + 2] == [*each, ("fsync", temporary), ("rename", temporary), ("fsync", store.path)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failed_save_says_where_and_why_and_leaves_nothing(tmp_path, code):
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 3)

    def trip(name: str, argument: object) -> None:
        if name == "file.write" and "state.json" in str(argument):
            raise OSError(code, os.strerror(code), argument)

    expected = f"Checkpoint {store.path}/update_000000004 was not written: .*{os.strerror(code)}.*save again or resume"
    with tripped(trip), pytest.raises(CheckpointError, match=expected):
        save(store, 4)
    assert [path.name for path in store.path.iterdir()] == ["update_000000003"]
