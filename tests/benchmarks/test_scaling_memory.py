"""The scaling and memory benchmarks run end to end at a tiny size; EDP's memory does not depend on K."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


def run_tiny(script, folder, *options):
    """The rows that a tiny run prints, which are also those that it writes."""
    command = [sys.executable, str(BENCHMARKS / script), "--tiny", "--output", "out", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert rows == json.loads((folder / "out.json").read_text())["rows"]
    assert (folder / "out.md").read_text().count("\n| ") == len(rows)
    return rows


def test_scaling_times_every_axis(tmp_path):
    rows = run_tiny("scaling.py", tmp_path)
    assert [(row["axis"], row["value"]) for row in rows] == [
        *[("batch", 64), ("batch", 256), ("width", 64), ("width", 128)],
        *[("linear", 25), ("linear", 100), ("vp", 5), ("vp", 100), ("calls", 1), ("calls", 5)],
        *[("seeds", 1), ("seeds", 2)],
    ]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        rates = first["per_second"], second["per_second"]
        assert first["cost"] == 1
        assert second["cost"] == pytest.approx(rates[0] / rates[1])
        assert first["spread"] == second["spread"] == pytest.approx(max(rates) / min(rates) - 1)


def test_scaling_times_chosen_axes(tmp_path):
    assert {row["axis"] for row in run_tiny("scaling.py", tmp_path, "--axes", "vp")} == {"vp"}


def test_memory_of_edp_is_flat_and_of_the_chain_grows(tmp_path):
    rows = run_tiny("memory.py", tmp_path)
    peaks = {(row["policy"], row["K"]): row["peak_bytes"] for row in rows}
    assert set(peaks) == {(policy, k) for policy in ("edp", "chain", "chain, all kept") for k in (25, 50, 100)}
    flat = [peaks["edp", k] for k in (25, 50, 100)]
    assert max(flat) <= 1.01 * min(flat)
    for policy in ("chain", "chain, all kept"):
        assert max(flat) < peaks[policy, 25] < 0.7 * peaks[policy, 50] < 0.49 * peaks[policy, 100]
    for row in rows:
        assert row["of_edp"] == pytest.approx(row["peak_bytes"] / peaks["edp", 25])
        assert row["growth"] == pytest.approx(row["peak_bytes"] / peaks[row["policy"], 25])


def test_peak_counts_what_is_alive_at_once(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory
    import torch

    def allocate():
        first, second = torch.empty(1000, 8), torch.empty(500, 8)
        del first
        return second, torch.empty(250, 8)

    assert memory.peak_bytes(allocate, None) == 4 * 8 * 1500
