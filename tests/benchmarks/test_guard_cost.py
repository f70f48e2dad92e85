"""The guard's benchmark runs at a size at which only the script is tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "guard_cost.py"


def test_the_cost_is_the_share_of_a_guarded_update(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--rounds", "2", "--seconds", "0.01", "--cases", "td3 eager"]
    result = subprocess.run([*command, "--output", "cost"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    (row,) = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert row["case"] == "edp_td3 eager" and row["free_ms"] > 0
    assert row["cost"] == pytest.approx((row["guarded_ms"] - row["free_ms"]) / row["update_ms"])
