"""The lock that keeps two processes from training in the same folder."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLockError(RuntimeError):
    """A run folder cannot be locked; the message says who holds it and what to do."""


class RunLock:
    """Holds ``<folder>/.lock`` inside a ``with`` block, so that one process at a time writes there.

    The lock belongs to the process: however it ends, the lock is free. The file stays, with the last owner's number.

    Args:
        folder: the run's folder; made if absent.

    Raises:
        RunLockError: on entering, if another process or another lock of this process holds it.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with RunLock(folder), RunLock(folder):
        ...     pass
        Traceback (most recent call last):
        torchrl_edp.training.lock.RunLockError: ... is in use by process ...
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / ".lock"
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        if fcntl is None:
            raise RunLockError("Runs are locked with fcntl, which this platform lacks: train on Linux or macOS.")
        descriptor = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:
            message = self._explain(error, descriptor)
            if descriptor is not None:
                os.close(descriptor)
            raise RunLockError(message) from error
        self._descriptor = descriptor
        _held.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _explain(self, error: OSError, descriptor: int | None) -> str:
        folder = self.path.parent
        if descriptor is None or not isinstance(error, BlockingIOError):
            return f"Run folder {folder} cannot be locked: {error}. Mend that, or choose another folder."
        owner = os.pread(descriptor, 20, 0).decode(errors="replace") or "of unknown number"
        if owner == str(os.getpid()):
            return (
                f"Run folder {folder} is in use by process {owner}, this one: an earlier RunFolder of it has the lock. "
                "Call its close(), or choose another folder."
            )
        return f"Run folder {folder} is in use by process {owner}. Wait for it, stop it, or choose another folder."

    def _close(self) -> None:
        _held.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _leave_to_parent() -> None:
    """A forked child has the lock too; it must not outlive the parent in a worker that was left behind."""
    for lock in list(_held):
        lock._close()


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_to_parent)
