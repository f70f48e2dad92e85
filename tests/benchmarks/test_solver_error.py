"""The solver study runs end to end on a small untrained policy; more calls land nearer the solution."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrl_edp.data import ActionScaler, ObservationNormalizer, load_dataset
from torchrl_edp.training import (
    DiffusionSettings,
    EnvironmentPolicy,
    NetworkSettings,
    SelectionSettings,
    build_actor,
    build_qvalue,
    build_selector,
    save_policy,
)

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "solver_error.py"


def test_errors_fall_with_the_number_of_calls(tmp_path):
    torch.manual_seed(0)
    settings = {
        "network": NetworkSettings(hidden_sizes=[16]),
        "diffusion": DiffusionSettings(num_steps=50),
        "selection": SelectionSettings(num_action_samples=1),
    }
    actor = build_actor(11, 3, settings["network"], settings["diffusion"])
    selector = build_selector(actor, build_qvalue(11, 3, settings["network"]), settings["selection"])
    scaler = ActionScaler([-1.0] * 3, [1.0] * 3)
    policy = EnvironmentPolicy(selector, ObservationNormalizer.identity(11), scaler)
    save_policy(tmp_path / "policy", policy, **settings)
    dataset = load_dataset("local/hopper/medium-v0", num_steps=2000).dataset_id
    data = ["--dataset", dataset, "--observations", "50"]
    command = [sys.executable, str(SCRIPT), str(tmp_path / "policy"), *data, "--calls", "3", "30", "--episodes", "2"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [row["calls"] for row in rows] == [3, 30] * 9
    for few, many in zip(rows[::2], rows[1::2], strict=True):
        assert few["solver"] == many["solver"] and many["rms_error"] < few["rms_error"], few["solver"]
    assert all(row["episodes"] == 2 and row["score"] < 20 for row in rows)
    assert "| DPM-Solver++ 2M, log-SNR |" in run.stdout
