"""The benchmark of updates, at a size at which only the script is tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "training_speed.py"


def run(tmp_path, *cases):
    command = [sys.executable, str(SCRIPT), "--tiny", "--rounds", "2", "--seconds", "0.01", "--output", "results/speed"]
    result = subprocess.run([*command, "--cases", *cases], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    printed = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"case"')]
    written = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert written["rows"] == printed and written["machine"]["torch"]
    assert (tmp_path / "results" / "speed.md").read_text().startswith("| case |")
    return {(row["case"], row["onednn"]): row for row in printed}


def test_eager_updates_and_products(tmp_path):
    rows = run(tmp_path, "edp_td3 eager", "edp_iql eager", "edp_crr eager", "products", "diffusion_ql 5 eager")
    assert len(rows) == 2 * 7
    for (name, onednn), row in rows.items():
        assert row["per_second"] > 0 and row["quartiles"][0] <= row["per_second"] <= row["quartiles"][1]
        if name.startswith("edp_"):
            limit = rows[f"products {name[4:7]}", onednn]["per_second"]
            assert row["of_products"] == pytest.approx(row["per_second"] / limit)


def test_compiled_feed_forward_updates(tmp_path):
    rows = run(tmp_path, "td3_bc compiled", "iql compiled")
    assert {name for name, _ in rows} == {"td3_bc compiled", "iql compiled"}
