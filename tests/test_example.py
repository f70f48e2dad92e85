"""The example script, end to end at a tiny size, on a data set made on the spot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from torchrl_edp.training import load_policy

SCRIPT = Path(__file__).parents[1] / "examples" / "edp_iql.py"
TINY = [
    "data.num_steps=2000",
    "optim.gradient_steps=20",
    "replay_buffer.batch_size=32",
    "network.hidden_sizes=[32,32]",
    "logger.eval_iter=10",
    "logger.log_iter=5",
    "logger.eval_envs=2",
    "env.max_episode_steps=20",
]


def run(tmp_path, *overrides):
    environment = os.environ | {"MINARI_DATASETS_PATH": str(tmp_path / "minari")}
    command = [sys.executable, str(SCRIPT), *overrides]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_leaves_a_folder_that_can_be_used(tmp_path):
    result = run(tmp_path, *TINY)
    assert result.returncode == 0, result.stderr
    folder = next((tmp_path / "runs").rglob("summary.json")).parent
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml",
        "metrics.csv",
        "curves.png",
        "policy.safetensors",
        "policy.json",
        "policy_best.json",
    } <= names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["gradient_steps"] == 20 and summary["oms"] >= summary["last"]
    assert str(folder.relative_to(tmp_path)) in result.stdout
    action = load_policy(folder / "policy")(TensorDict({"observation": torch.zeros(3, 11)}, [3]))["action"]
    assert action.shape == (3, 3) and action.abs().max() <= 1


def test_a_wrong_setting_is_answered_at_once(tmp_path):
    result = run(tmp_path, "optim.learning_rate=1")
    assert result.returncode != 0
    assert "Unknown setting 'optim.learning_rate'" in result.stderr
