"""The acting benchmark runs end to end at a tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "acting_speed.py"


def test_tiny_run_writes_its_results(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--observations", "1", "3", "--output", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    cases = {(row["setting"], row["observations"], row["case"]) for row in rows}
    assert cases == {(s, o, c) for s in ("paper", "default") for o in (1, 3) for c in ("eager", "frozen")}
    for row in rows:
        assert row["actions_per_second"] == row["per_second"] * row["observations"] > 0
    assert [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")] == rows
    assert "| paper | 3 | frozen |" in (tmp_path / "out.md").read_text()
