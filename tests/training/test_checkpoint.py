"""The checkpoint store: what comes back, what is kept, what is refused; and the lock of a run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from torchrl_edp.training import lock
from torchrl_edp.training.checkpoint import FORMAT, MANIFEST, STATE, TENSORS, CheckpointError, CheckpointStore
from torchrl_edp.training.lock import RunLock, RunLockError

FILES = (TENSORS, STATE, MANIFEST)
CORRUPTIONS = 500


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0) + step, "rng": torch.arange(8, dtype=torch.uint8)}


def fill(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, tensors(step), {"step_was": step})


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def test_tensors_come_back_bit_for_bit(store):
    shared = torch.randn(4, 6)
    nan = torch.tensor([0x7FC00001, 0xFF800000 - 2**32, 1], dtype=torch.int32).view(torch.float32)
    values = {
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "int64": torch.tensor([2**63 - 1, -(2**63)]),
        "rng": torch.get_rng_state(),
        "bfloat16": torch.randn(3, 5, dtype=torch.bfloat16),
        "half": torch.randn(3, dtype=torch.float16),
        "nan_payload": nan,
        "empty": torch.empty(0, 3),
        "row": shared[1],
        "column": shared[:, 1],
        "transposed": shared.T,
        "parameter": torch.nn.Parameter(shared),
        "expanded": torch.ones(1).expand(3),
    }
    store.save(1, values, {})
    loaded = store.load(1).tensors
    assert loaded.keys() == values.keys()
    for name, value in values.items():
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape, name
        raw = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (loaded[name], value))
        assert torch.equal(*raw), name
    loaded["row"].zero_()  # writable, and its own memory
    assert torch.equal(loaded["parameter"][1], shared[1])


def test_info_comes_back(store):
    info = {"a": [1, 2.5, None, True, {"ü": "\ud800"}], "big": 2**127, "tiny": 5e-324, "empty": {}}
    store.save(7, {}, info)
    checkpoint = store.load()
    assert (checkpoint.info, checkpoint.step, checkpoint.tensors) == (info, 7, {})
    assert checkpoint.path == store.path / "update_000000007"
    assert {path.name for path in checkpoint.path.iterdir()} == set(FILES)


def endless() -> dict:
    info: dict = {}
    info["self"] = info
    return info


@pytest.mark.parametrize(
    ("info", "named"),
    [
        ({"scores": [1.0, float("nan")]}, "scores.1 is nan"),
        ({"best": {"score": float("-inf")}}, "best.score is -inf"),
        ({"best": {1: 2}}, "info.best has the key 1"),
        ({"weight": torch.ones(1)}, "weight is of type Tensor"),
        ({"huge": 10**5000}, "huge is of type int"),
        (endless(), "nested too deeply"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(store, info, named):
    with pytest.raises(CheckpointError, match=f"update_000000001 was not written.*{named}"):
        store.save(1, {}, info)
    assert store.steps() == []


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        CheckpointStore(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        CheckpointStore(tmp_path).save(-1, {}, {})
    with pytest.raises(ValueError, match="'__metadata__'"):
        CheckpointStore(tmp_path).save(1, {"__metadata__": torch.ones(1)}, {})


def test_nothing_there(store):
    assert store.newest() == (None, [])
    assert store.steps() == []
    with pytest.raises(CheckpointError, match="has no checkpoint; there are: none"):
        store.load()
    fill(store, 5)
    with pytest.raises(CheckpointError, match=r"no checkpoint of update 6; there are: \[5\]"):
        store.load(6)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    store = CheckpointStore(tmp_path / "checkpoints")
    for call in (store.newest, store.steps, lambda: fill(store, 1)):
        with pytest.raises(CheckpointError, match="checkpoints cannot be read.*Expected a folder"):
            call()


@pytest.mark.parametrize(
    ("keep", "best", "expected"),
    [(2, (), [4, 5]), (1, (), [5]), (3, (1,), [1, 3, 4, 5]), (1, (1, 3), [3, 5]), (2, (4,), [4, 5]), (2, (5,), [4, 5])],
)
def test_the_last_and_the_best_are_kept(tmp_path, keep, best, expected):
    store = CheckpointStore(tmp_path, keep=keep)
    for step in range(1, 6):
        store.save(step, tensors(step), {}, best=step in best)
    assert store.steps() == expected


def test_damaged_ones_do_not_count_as_kept(store):
    fill(store, 1, 2)
    (store.path / "update_000000002" / STATE).write_text("{}")
    fill(store, 3)
    assert store.steps() == [1, 3]
    store.keep = 1
    fill(store, 4)
    assert store.steps() == [4]


def test_newer_ones_stay_when_an_older_one_was_resumed(store):
    fill(store, 10, 20)
    fill(store, 15)
    assert store.steps() == [10, 15, 20]
    fill(store, 25)
    assert store.steps() == [20, 25]


def test_links_among_the_old_ones_are_removed_not_followed(store, tmp_path):
    fill(store, 5)
    precious = tmp_path / "precious"
    shutil.copytree(store.path / "update_000000005", precious)
    (store.path / "update_000000001").symlink_to(precious)
    fill(store, 6)
    assert store.steps() == [5, 6] and {path.name for path in precious.iterdir()} == set(FILES)


def test_an_equal_checkpoint_stays(store):
    fill(store, 1)
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    fill(store, 1)
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_another_checkpoint_of_the_same_step_supersedes(store):
    fill(store, 1, 2)
    for other in (3.0, 4.0):
        store.save(2, {"weight": torch.full((2,), other)}, {})
        assert store.load(2).tensors["weight"].tolist() == [other] * 2
        assert store.steps() == [1, 2] and len(list(store.path.iterdir())) == 2
    store.save(2, {"weight": torch.full((2,), 4.0)}, {}, best=True)
    fill(store, 3, 4, 5)
    assert store.steps() == [2, 4, 5]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(store):
    fill(store, 1, 2)
    (store.path / "update_000000002" / TENSORS).unlink()
    fill(store, 2)
    assert store.load(2).info == {"step_was": 2} and store.steps() == [1, 2]


def test_leftovers_of_killed_saves_go(store):
    fill(store, 1)
    shutil.copytree(store.path / "update_000000001", store.path / ".tmp_update_000000002_abc")
    assert store.steps() == [1]
    fill(store, 2)
    assert sorted(path.name for path in store.path.iterdir()) == ["update_000000001", "update_000000002"]


def test_the_gap_between_two_revisions_is_no_loss(store):
    """A save that is killed before it prunes leaves both; the older is used if the newer one is damaged."""
    fill(store, 2)
    first = store.path / "update_000000002"
    shutil.copytree(first, store.path / "aside")
    second = store.save(2, {"weight": torch.zeros(1)}, {})
    os.rename(store.path / "aside", first)
    assert store.load(2).path == second
    (second / STATE).unlink()
    checkpoint, skipped = store.newest()
    assert checkpoint.path == first and len(skipped) == 1
    with pytest.raises(CheckpointError, match="state.json is missing"):
        store.load(2)


def corrupt(store: CheckpointStore, rng: random.Random) -> str:
    """Damage the newest checkpoint, update 2, in a random manner; returns what the report must name."""
    directory = store.path / "update_000000002"
    path = directory / rng.choice(FILES)
    other = store.path / "update_000000001" / path.name
    data = path.read_bytes()
    kind = rng.choice(("truncate", "flip", "flip", "flip", "missing", "swap", "swap all", "version", "append", "extra"))
    if kind == "truncate":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "flip":
        position = rng.randrange(len(data))
        path.write_bytes(data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :])
    elif kind == "append":
        path.write_bytes(data + rng.choice((b" ", b"\n", b"\0", b"{}")))
    elif kind == "missing":
        path.unlink()
    elif kind == "swap":
        path.write_bytes(other.read_bytes())
    elif kind == "swap all":
        for name in FILES:
            shutil.copy(store.path / "update_000000001" / name, directory / name)
        return MANIFEST
    elif kind == "version":
        manifest = json.loads((directory / MANIFEST).read_text())
        manifest["format"] = rng.choice((0, FORMAT + 1, "1", None, 1.5, [1]))
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        return "format"
    else:
        name = rng.choice(("notes.txt", ".hidden", "state.pt"))
        (directory / name).write_bytes(b"x")
        return name
    return path.name if kind == "missing" else "state|manifest"


def test_500_corruptions_are_detected_and_the_older_one_is_loaded(store, tmp_path):
    fill(store, 1, 2)
    shutil.copytree(store.path / "update_000000002", tmp_path / "whole")
    loaded = 0
    for seed in range(CORRUPTIONS):
        shutil.rmtree(store.path / "update_000000002")
        shutil.copytree(tmp_path / "whole", store.path / "update_000000002")
        named = corrupt(store, random.Random(seed))
        checkpoint, skipped = store.newest()
        loaded += checkpoint.step != 1
        assert len(skipped) == 1, f"seed {seed}"
        with pytest.raises(CheckpointError, match=rf"update_000000002 is not used: .*({named}).*Resume from another"):
            store.load(2)
        assert torch.equal(checkpoint.tensors["weight"], tensors(1)["weight"])
    assert loaded == 0


def test_every_byte_of_the_manifest_counts(store):
    fill(store, 1)
    path = store.path / "update_000000001" / MANIFEST
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 7):  # each bit position in turn
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert store.newest()[0] is None, bit


def test_an_unreadable_one_is_reported_and_never_removed(store, monkeypatch):
    fill(store, 1, 2)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("update_000000001"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(CheckpointError, match="update_000000001 cannot be read: .*Permission denied"):
        store.load(1)
    fill(store, 3, 4)
    assert store.steps() == [1, 3, 4]


def test_what_cannot_be_removed_is_said_not_raised(store, monkeypatch):
    fill(store, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or os.rmdir(path))
        with pytest.warns(UserWarning, match=r"\.tmp_update_000000001\S* was not removed.*next save tries again"):
            fill(store, 3)
    assert store.steps() == [2, 3]
    fill(store, 4)
    assert len(list(store.path.iterdir())) == 2


HOLD = (
    "import runpy, sys, time\n"  # the file alone: importing the package takes seconds
    "lock = runpy.run_path(sys.argv[1])['RunLock'](sys.argv[2])\n"
    "lock.__enter__(); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, lock.__file__, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_killed(holder, tmp_path):
    with pytest.raises(RunLockError, match=f"{tmp_path} is in use by process {holder.pid}. Wait for it, stop it"):
        with RunLock(tmp_path):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_lock_is_for_one_and_free_afterwards(tmp_path):
    held = RunLock(tmp_path / "new" / "run")
    for _ in range(2):
        with held, pytest.raises(RunLockError, match=f"{os.getpid()}, this one: .* Call its close"):
            with RunLock(tmp_path / "new" / "run"):
                pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    held = RunLock(tmp_path)
    held.__enter__()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside other threads
        child = os.fork()
    if not child:
        signal.pause()
    try:
        os.close(held._descriptor)  # as when the owner is killed; __exit__ would do no more
        held._descriptor = None
        for _ in range(100):  # the child may not have run yet
            try:
                with RunLock(tmp_path):
                    return
            except RunLockError:
                signal.sigtimedwait([], 0.05)
        pytest.fail("the child holds the lock")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("all of it")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunLockError, match="cannot be locked: .*choose another folder"):
        with RunLock(tmp_path):
            pass
    assert (tmp_path / "precious").read_text() == "all of it"


def test_without_fcntl_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_edp.training.lock.fcntl", None)
    with pytest.raises(RunLockError, match="fcntl, which this platform lacks"):
        with RunLock(tmp_path):
            pass
