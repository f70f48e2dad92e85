"""Files that survive a crash, and JSON that says one thing only: what checkpoints and policies are made of."""

from __future__ import annotations

import json
import math
import os
import secrets
from pathlib import Path
from typing import Any


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and have it on the disk before returning."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk: what was created, renamed or removed in it."""
    if os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: str | Path, data: bytes) -> None:
    """Write a file such that after a crash it is the old one or the new one, never a part.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "card.json"
        >>> replace_file(path, b"{}")
        >>> path.read_bytes()
        b'{}'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def to_json(value: Any) -> bytes:
    """Strict JSON.

    Raises:
        ValueError: naming the first entry that JSON cannot hold, as NaN and infinity.

    Examples:
        >>> to_json({"scores": [1.0, float("nan")]})
        Traceback (most recent call last):
        ValueError: scores.1 is nan: ...
    """
    try:
        _check(value, "")
    except RecursionError:
        raise ValueError("it is nested too deeply, or contains itself") from None
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def from_json(data: bytes) -> Any:
    """What strict JSON says; each name once, numbers finite.

    Raises:
        ValueError: with the reason, whatever the bytes are.

    Examples:
        >>> from_json(b'{"step": 1, "step": 2}')
        Traceback (most recent call last):
        ValueError: ... JSON: 'step' occurs twice
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _check(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where or 'it'} has the key {key!r}: JSON's keys are strings")
            _check(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}.{index}".lstrip("."))
    else:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            shown = value if isinstance(value, float) else f"of type {type(value).__name__}"
            raise ValueError(f"{where or 'it'} is {shown}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
