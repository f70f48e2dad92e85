"""The table of acting settings runs end to end on a small untrained policy, in the environment of its card."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrl_edp.data import ActionScaler, ObservationNormalizer
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

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "acting_settings.py"


def test_table_of_a_walker(tmp_path):
    torch.manual_seed(0)
    settings = {
        "network": NetworkSettings(hidden_sizes=[16]),
        "diffusion": DiffusionSettings(num_steps=50, num_calls=3),
        "selection": SelectionSettings(num_action_samples=1),
    }
    actor = build_actor(17, 6, settings["network"], settings["diffusion"])
    selector = build_selector(actor, build_qvalue(17, 6, settings["network"]), settings["selection"])
    policy = EnvironmentPolicy(selector, ObservationNormalizer.identity(17), ActionScaler([-1.0] * 6, [1.0] * 6))
    save_policy(tmp_path / "policy", policy, **settings, info={"env": "Walker2d-v5"})
    options = ["--noise", "0", "1", "--candidates", "1", "2", "--episodes", "2"]
    result = subprocess.run([sys.executable, SCRIPT, "policy", *options], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    table = result.stdout.splitlines()[-4:]
    assert table[0] == "| candidates | 0.0 | 1.0 |"
    assert [line.split("|")[1].strip() for line in table[2:]] == ["1", "2"]
    scores = [line.split("|")[2:-1] for line in table[2:]]
    assert scores[0][0] == scores[1][0]  # without noise all candidates are one
    assert scores[0][1] != scores[1][1]
