"""Preparations: what the policy's data look like, and the choice to compile."""

import os
import subprocess
import sys

import pytest
import torch
from training_helpers import ACTIONS, NETWORK, OBSERVATIONS, make_data

from torchrl_edp.configs import EDPTD3Config
from torchrl_edp.configs.experiments import BCConfig
from torchrl_edp.data import from_arrays, multi_step
from torchrl_edp.training import build_qvalue, choose_compile, choose_device, set_matmul_precision
from torchrl_edp.training.build import NetworkSettings
from torchrl_edp.training.experiment import _prepare


def test_actions_are_scaled_and_clipped_and_observations_normalised():
    raw, data = make_data(normalize_observations=False, action_limit=0.5), make_data()
    rows, prepared = raw.buffer[:], data.buffer[:]
    assert rows["action"].abs().max() == 0.5  # environment bounds are +-2: scaled to +-1, then clipped
    unclipped = make_data(action_limit=1.0).buffer[:]["action"]
    torch.testing.assert_close(rows["action"], unclipped.clamp(-0.5, 0.5))
    torch.testing.assert_close(data.action_scaler.inverse(torch.ones(ACTIONS)), torch.full((ACTIONS,), 2.0))
    torch.testing.assert_close(prepared["observation"].mean(0), torch.zeros(OBSERVATIONS), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        prepared["observation"].std(0, correction=0), torch.ones(OBSERVATIONS), atol=1e-3, rtol=0
    )
    expected = data.observation_normalizer(rows["next", "observation"])
    torch.testing.assert_close(prepared["next", "observation"], expected)


def test_reward_rule_is_applied():
    raw, scaled = make_data().buffer[:], make_data(reward_rule="min_max").buffer[:]
    assert scaled["next", "reward"].min() == -1 and scaled["next", "reward"].max() == 1
    order = raw["next", "reward"].flatten().argsort()
    assert torch.equal(order, scaled["next", "reward"].flatten().argsort())


def test_rewards_are_summed_after_their_rule_with_the_discount_of_the_loss():
    one, three = (make_data(reward_rule="min_max", **options).buffer[:] for options in ({}, {"return_steps": 3}))
    expected = multi_step(one, 3, 0.99)
    assert (three.select(*expected.keys(True, True)) == expected).all()
    assert "steps_to_next_obs" not in one and three["steps_to_next_obs"].max() == 3
    cfg = EDPTD3Config()
    cfg.loss.gamma, cfg.data.return_steps, cfg.replay_buffer.batch_size = 0.5, 2, 4
    cfg.data.reward_rule = "raw"
    data = from_arrays(torch.rand(4, 2), torch.rand(4, 1), [1.0, 2.0, 4.0, 8.0], [0, 0, 0, 1], [0, 0, 0, 0])
    rewards = _prepare(cfg, data, torch.device("cpu")).buffer[:]["next", "reward"]
    assert rewards.flatten().tolist() == [2.0, 4.0, 8.0, 8.0]
    cloning = BCConfig()
    cloning.replay_buffer.batch_size, cloning.data.reward_rule = 4, "raw"
    assert "steps_to_next_obs" not in _prepare(cloning, data, torch.device("cpu")).buffer[:]


def test_without_a_compiler_runs_are_eager_and_say_so(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="run eagerly.*no C\\+\\+ compiler"):
        assert choose_compile(True, 10) is False


def test_named_device_wins():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.fixture
def reset_products():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("reset_products")
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize(
    ("precision", "cpu", "gpu"), [("highest", "ieee", "ieee"), ("high", "tf32", "tf32"), ("medium", "bf16", "tf32")]
)
def test_precision_of_products_is_torchs(precision, cpu, gpu, onednn):
    set_matmul_precision("medium" if precision == "highest" else "highest")
    set_matmul_precision(precision, onednn=onednn)
    assert torch.backends.cuda.matmul.fp32_precision == gpu
    assert torch.backends.mkldnn.matmul.fp32_precision == ("bf16" if onednn else cpu)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of .*'medium'.*, got 'low'"):
        set_matmul_precision("low")


def test_products_of_onednn_are_float32_also_where_it_would_round_them():
    script = """
import torch
from torchrl_edp.training import set_matmul_precision
torch.set_num_threads(1)
set_matmul_precision(onednn=True)
assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
exact = a.double() @ a.double()
assert ((a @ a).double() - exact).norm() < 1e-6 * exact.norm()
"""
    environ = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", script]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("reset_products")
def test_products_that_onednn_rounds_all_the_same_stay_with_the_default_library(monkeypatch):
    def rounded(a, b):
        return (a.bfloat16() if a.dtype == torch.float32 else a).to(a.dtype).matmul(b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    with pytest.warns(UserWarning, match="oneDNN rounds products to bfloat16 here.*ONEDNN_MAX_CPU_ISA="):
        set_matmul_precision(onednn=True)
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be one of"):
        build_qvalue(OBSERVATIONS, ACTIONS, NetworkSettings(activation="step"))


def test_critics_have_their_own_layer_norm():
    layers = [type(m).__name__ for m in build_qvalue(3, 2, NetworkSettings(critic_layer_norm=True)).modules()]
    assert layers.count("LayerNorm") == 3
    assert "LayerNorm" not in [type(m).__name__ for m in build_qvalue(3, 2, NETWORK).modules()]
