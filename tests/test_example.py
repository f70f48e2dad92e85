"""The example scripts, end to end at a tiny size, on a data set made on the spot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensordict import TensorDict

from torchrl_edp.training import load_policy

EXAMPLES = Path(__file__).parents[1] / "examples"
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


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Minari's folder for all runs: the data set is made once."""
    return tmp_path_factory.mktemp("minari")


def run(tmp_path, datasets, script, *overrides):
    environment = os.environ | {"MINARI_DATASETS_PATH": str(datasets)}
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), *overrides]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["edp_iql", "edp_td3", "edp_crr"])
def test_a_run_leaves_a_folder_that_can_be_used(tmp_path, datasets, script):
    result = run(tmp_path, datasets, script, *TINY)
    assert result.returncode == 0, result.stderr
    folder = next((tmp_path / "runs" / script).rglob("summary.json")).parent
    names = {path.name for path in folder.iterdir()}
    files = {"config.yaml", "metrics.csv", "policy.safetensors", "policy.json", "policy_best.json"}
    assert files | {"curves.png", "diagnose.png"} <= names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["gradient_steps"] == 20 and summary["oms"] >= summary["last"]
    assert str(folder.relative_to(tmp_path)) in result.stdout
    action = load_policy(folder / "policy")(TensorDict({"observation": torch.zeros(3, 11)}, [3]))["action"]
    assert action.shape == (3, 3) and action.abs().max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]])
def test_a_sweep_leaves_a_folder_of_every_run(tmp_path, datasets, launcher):
    result = run(tmp_path, datasets, "edp_td3", "-m", "seed=0,1", *launcher, *TINY)
    assert result.returncode == 0, result.stderr
    found = sorted((tmp_path / "runs" / "edp_td3" / "local" / "hopper").rglob("summary.json"))
    assert [path.parent.name.split("_")[0] for path in found] == ["seed0", "seed1"]
    assert [json.loads(path.read_text())["seed"] for path in found] == [0, 1]
    assert [path.parent.name.split("_")[-1] for path in found] == ["0", "1"]


@pytest.mark.slow
def test_several_seeds_begin_by_their_numbers(tmp_path, datasets):
    still = [*TINY, "optim.lr=1e-12", "optim.critic_lr=1e-12", "optim.gradient_steps=1", "policy.averaged_actor=false"]
    for seed in (0, 1):
        result = run(tmp_path, datasets, "edp_iql", *still, f"seed={seed}", "num_seeds=2")
        assert result.returncode == 0, result.stderr
    found = sorted((tmp_path / "runs").rglob("policy.safetensors"))
    assert [path.parent.name for path in found] == ["seed0", "seed1", "seed1", "seed2"]
    first, second, again, _ = (load_file(path) for path in found)
    for name in (name for name in first if name.startswith("actor.")):
        torch.testing.assert_close(second[name], again[name], rtol=1e-6, atol=1e-8, msg=name)
        assert (first[name] - second[name]).abs().max() > 1e-3


@pytest.mark.slow
def test_a_feed_forward_run_goes_on_where_it_ended(tmp_path, datasets):
    result = run(tmp_path, datasets, "feed_forward", "algorithm=crr", *TINY)
    assert result.returncode == 0, result.stderr
    folder = next((tmp_path / "runs" / "crr").rglob("summary.json")).parent
    longer = run(tmp_path, datasets, "feed_forward", f"resume={folder}", "optim.gradient_steps=30")
    assert longer.returncode == 0, longer.stderr
    assert "Resuming after update 20" in longer.stdout
    assert json.loads((folder / "summary.json").read_text())["gradient_steps"] == 30
    assert json.loads((folder / "policy.json").read_text())["feed_forward"] == "tanh_gaussian"
    action = load_policy(folder / "policy")(TensorDict({"observation": torch.zeros(3, 11)}, [3]))["action"]
    assert action.shape == (3, 3) and action.abs().max() <= 1


@pytest.mark.slow
def test_guidance_and_baselines_are_measured_on_a_trained_policy(tmp_path, datasets):
    assert run(tmp_path, datasets, "edp_td3", *TINY).returncode == 0
    policy = next((tmp_path / "runs").rglob("policy.json")).with_suffix("")
    data = "local/hopper/medium-expert-n2000-s0-v0"
    result = run(tmp_path, datasets, "benchmarks/guidance_share", str(policy), "--data", data, "--samples", "500")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [row["weighting"] for row in rows] == ["uniform", "alpha_bar", "snr"]
    assert all(sum(row["shares"]) == pytest.approx(1, abs=1e-3) for row in rows)
    result = run(tmp_path, datasets, "benchmarks/crr_baseline", str(policy), "--data", data, "--samples", "500")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 7 and 0.5 < rows[-1]["correlation"] <= 1, "ten samples agree with ten others"


@pytest.mark.slow
def test_the_bandit_draws_its_picture(tmp_path, datasets):
    result = run(tmp_path, datasets, "bandit", "--updates", "2", "--picture", str(tmp_path / "bandit.png"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "bandit.png").stat().st_size > 10_000
    assert result.stdout.count("mean payoff") == 6


@pytest.mark.slow
def test_a_preset_is_used_and_written_down(tmp_path, datasets):
    overrides = ["preset=paper", "seed=3", "diffusion.num_calls=3", "+diffusion.solver_kwargs.order=2"]
    result = run(tmp_path, datasets, "edp_crr", *TINY, *overrides)
    assert result.returncode == 0, result.stderr
    folder = next((tmp_path / "runs").rglob("summary.json")).parent
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.preset, config.seed, config.optim.gradient_steps) == ("paper", 3, 20)
    assert (config.loss.likelihood, config.loss.weight_cap, config.optim.lr) == ("approximation", None, 3e-4)
    assert config.optim.update_order == "sequential" and config.data.reward_rule == "raw"
    card = json.loads((folder / "policy.json").read_text())
    assert card["diffusion"]["solver_kwargs"] == {"order": 2, "spacing": "time"}
    assert (card["diffusion"]["num_steps"], card["diffusion"]["num_calls"]) == (1000, 3)
    assert card["selection"]["num_action_samples"] == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "override", "message"),
    [
        ("edp_td3", "optim.learning_rate=1", "Unknown setting 'optim.learning_rate'"),
        ("edp_iql", "preset=papr", "Unknown preset 'papr'"),
        ("feed_forward", "algorithm=td3", "Unknown algorithm 'td3'"),
        ("feed_forward", "loss.expectile=0.9", "Unknown setting 'loss.expectile'"),
    ],
)
def test_a_wrong_setting_is_answered_at_once(tmp_path, datasets, script, override, message):
    result = run(tmp_path, datasets, script, override)
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / "runs").exists()
