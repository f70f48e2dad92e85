"""Runs that are killed or asked to stop at any moment end as those that were left alone, bit for bit."""

import random
import signal
import sys

import pytest
from crash_helpers import UPDATES, Child, result

from torchrl_edp.training.checkpoint import CheckpointStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL, and runs are locked with fcntl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert Child(folder).end() == 0
    return result(folder)


def killed_and_resumed(folder, draw, in_save):
    """Kill a run once, resume it; whether it was inside a save."""
    child = Child(folder)
    if in_save:
        child.wait_for("save", draw.randint(1, UPDATES // 2))
        child.send(signal.SIGKILL, delay=draw.uniform(0, 0.004))
    else:
        child.wait_for("update", draw.randint(1, UPDATES - 1))
        child.send(signal.SIGKILL, delay=draw.uniform(0, 0.02))
    child.end()
    assert Child(folder).end() == 0
    return child.in_a_save


def kill(tmp_path, undisturbed, count):
    draw, saves = random.Random(0), 0
    for number in range(count):
        folder = tmp_path / str(number)
        saves += killed_and_resumed(folder, draw, in_save=number % 2 == 0)
        assert result(folder) == undisturbed, number
    return saves


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, undisturbed):
    assert kill(tmp_path, undisturbed, 4) >= 1


@pytest.mark.long
def test_a_hundred_kills(tmp_path, undisturbed, record_property):
    """100 of 100 resume and end bit-identical, at least 25 of them killed inside a save."""
    saves = kill(tmp_path, undisturbed, 100)
    record_property("found", f"100 of 100 bit-identical, {saves} of them killed inside a save")
    assert saves >= 25


def stop(tmp_path, undisturbed, number, moments):
    draw = random.Random(int(number))
    for moment in moments:
        folder = tmp_path / f"{number.name}{moment}"
        child = Child(folder)
        child.wait_for("update", moment)
        child.send(number, delay=draw.uniform(0, 0.01))
        code = child.end()
        assert code == (0 if child.last("update") == UPDATES else 128 + number)
        # No update is lost: the last one that was made is the one that was saved.
        assert CheckpointStore(folder / "checkpoints").steps()[-1] == child.last("update") >= moment
        assert Child(folder).end() == 0
        assert result(folder) == undisturbed, moment


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_update_that_is_running(tmp_path, undisturbed, number):
    stop(tmp_path, undisturbed, number, (1, 7))  # at 1 there is nothing to show yet


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_twenty_moments_of_each_signal(tmp_path, undisturbed, number, record_property):
    stop(tmp_path, undisturbed, number, range(1, 21))
    record_property("found", "20 of 20 lost no update")
