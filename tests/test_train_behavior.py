"""The script that trains behaviour policies, at a tiny size, and the policies that ship with the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from torchrl_edp.data import REFERENCE_SCORES, load_behavior, normalized_score
from torchrl_edp.data.behavior import BEHAVIOR_DIR, SCALE_MAPPING

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "examples" / "train_behavior.py"
TINY = {
    "env": "hopper",
    "compile": "false",
    "num_envs": 2,
    "frames_per_batch": 16,
    "random_steps": 32,
    "buffer_size": 128,  # less than the run collects: the buffer wraps around
    "updates_per_batch": 2,
    "batch_size": 8,
    "hidden_sizes": "[16,16]",
    "eval_every": 64,
    "eval_episodes": 1,
    "final_episodes": 2,
    "max_episode_steps": 20,
}
MEASURED = ("mean_return", "std_return", "mean_length", "normalized_score", "normalized_score_deterministic")
STORED = sorted(path.stem for path in BEHAVIOR_DIR.glob("*.safetensors"))


def run(folder: Path, *arguments: str) -> str:
    paths = [f"output_dir={folder / 'out'}", f"checkpoint_dir={folder / 'ck'}", f"hydra.run.dir={folder / 'hydra'}"]
    settings = [f"{key}={value}" for key, value in TINY.items()]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), *settings, *paths, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkpoint(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    path = folder / "ck" / "hopper-0.safetensors"
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["meta"]), load_file(path)


def test_trains_resumes_and_writes_a_policy(tmp_path: Path) -> None:
    run(tmp_path, "total_steps=64")
    meta, first = checkpoint(tmp_path)
    assert meta["counters"]["env_steps"] == 64 and meta["counters"]["gradient_updates"] == 4
    assert len(first["buffer.action"]) == 64

    run(tmp_path, "total_steps=192")
    meta, second = checkpoint(tmp_path)
    assert meta["counters"]["env_steps"] == 192
    assert meta["counters"]["gradient_updates"] == 4 + 16, "counted on from the checkpoint"
    assert second["adam.0.step"] == 20, "Adam's state was restored"
    assert len(second["buffer.action"]) == 128 and meta["write_position"] == 192 % 128

    policy = load_behavior("hopper", "expert", tmp_path / "out")
    assert policy(torch.zeros(3, 11)).shape == (3, 3)
    assert policy.card["env_steps"] in (64, 128, 192) and policy.card["seed"] == 0
    assert all(isinstance(policy.card[key], float) for key in MEASURED)


@pytest.mark.parametrize("stem", STORED)
def test_stored_policy_fits_its_card_and_environment(stem: str) -> None:
    task, level = stem.rsplit("-", 1)
    policy = load_behavior(task, level)
    card = policy.card
    weights = policy.layers.state_dict()
    env = gymnasium.make(card["env_id"])
    (num_obs,), (num_actions,) = env.observation_space.shape, env.action_space.shape
    assert (
        env.action_space.low.tolist() == [-1.0] * num_actions and env.action_space.high.tolist() == [1.0] * num_actions
    )
    sizes = [num_obs, *card["hidden_sizes"], 2 * num_actions]
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        assert weights[f"{2 * i}.weight"].shape == (outputs, inputs) and weights[f"{2 * i}.bias"].shape == (outputs,)
    assert len(weights) == 2 * (len(sizes) - 1)
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights.values())
    assert (card["level"], card["activation"], card["scale_mapping"]) == (level, "relu", SCALE_MAPPING)
    assert card["env_id"].lower().startswith(task)
    assert card["evaluation"]["episodes"] == 50 and card["evaluation"]["max_episode_steps"] == 1000
    score = normalized_score(card["mean_return"], REFERENCE_SCORES[task])
    assert card["normalized_score"] == pytest.approx(score)
    low, high = (30, 55) if level == "medium" else (85 if task == "hopper" else 70, 120)
    assert low <= card["normalized_score"] <= high
    assert {"torch", "torchrl", "gymnasium", "mujoco"} <= card["versions"].keys()


def test_help_says_what_the_script_does(tmp_path: Path) -> None:
    text = run(tmp_path, "--help")
    assert "Soft actor-critic" in text and "total_steps:" in text
