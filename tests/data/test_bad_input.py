"""Bad data are refused at every door: each message says which field, what was expected, what came, what to do.

The cases are in the modules ``bad_*``. Whatever is refused leaves no buffer and no file.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_arrays import FROM_ARRAYS
from bad_buffers import BUFFER, RULES
from bad_local import FORBIDDEN, LOCAL
from bad_minari import MINARI
from data_helpers import write_policy

from torchrl_edp.data import (
    BehaviorPolicy,
    DatasetError,
    replay,
)

DOORS = {
    "arrays": FROM_ARRAYS,
    "minari": MINARI,
    "buffer": BUFFER,
    "rules": RULES,
    "local": LOCAL,
    "no right": FORBIDDEN,
}
CASES = {f"{door}, {name}": case for door, cases in DOORS.items() for name, case in cases.items()}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may enter, with an empty Minari root and one behaviour policy."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for part in ("minari", "policies"):
            (root / part).mkdir(mode=0o755)
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(root / "minari"))
        write_policy(root / "policies", "count-medium", BehaviorPolicy(2, 1, (4,)))
        (root / "policies" / "count-medium.safetensors").chmod(0o644)
        yield root


def files(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_by_field_finding_and_remedy(case, folder, monkeypatch):
    prepare, expected, got, remedy = CASES[case]
    do = prepare(folder)
    before, buffers = files(folder), []
    monkeypatch.setattr(replay, "TensorDictReplayBuffer", lambda **_: buffers.append(1))
    with pytest.raises(ValueError) as caught:
        do()
    message = str(caught.value).replace(str(folder), "FOLDER")
    assert type(caught.value) is DatasetError, message
    parts = re.fullmatch(r"(?s)(.+: expected .+), got (.+?)\.+ (\S.*)", message)
    assert parts, message
    for word, part in ((expected, parts[1]), (got, message[parts.start(2) :]), (remedy, message[parts.start(2) :])):
        assert word in part or re.search(word, part), message
    assert files(folder) == before and not buffers
    assert os.environ["MINARI_DATASETS_PATH"] == str(folder / "minari")


def test_the_table_has_many_kinds():
    assert len(CASES) >= 60
    assert len({(door, *case[1:3]) for door, cases in DOORS.items() for case in cases.values()}) >= 60
