"""Multi-step returns: against a table by hand and a loop in float64, and in the target of every loss."""

import pytest
import torch
from data_helpers import arrays
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_edp import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.configs import FEED_FORWARD
from torchrl_edp.data import DatasetError, apply_reward_rule, from_arrays, multi_step
from torchrl_edp.training import (
    DiffusionSettings,
    EDPTargetUpdate,
    NetworkSettings,
    build_actor,
    build_qvalue,
    build_value,
)
from torchrl_edp.training.feed_forward import build_feed_forward_loss

EDP = {"edp_iql": EDPIQLLoss, "edp_td3": EDPTD3Loss, "edp_crr": EDPCRRLoss}
NETWORK = NetworkSettings(hidden_sizes=[8])


def transitions(rewards, terminated, truncated):
    count = len(rewards)
    observations = torch.arange(count + 1.0).unsqueeze(-1)
    flags = torch.tensor([terminated, truncated], dtype=torch.bool).unsqueeze(-1)
    after = {"observation": observations[1:], "reward": torch.tensor(rewards).unsqueeze(-1)}
    after |= {"terminated": flags[0], "truncated": flags[1], "done": flags[0] | flags[1]}
    return TensorDict({"observation": observations[:-1], "action": torch.rand(count, 2), "next": after}, [count])


def test_values_by_hand():
    data = transitions([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0])
    before = data.clone()
    ahead = multi_step(data, steps=3, gamma=0.5)
    assert ahead["next", "reward"].flatten().tolist() == [3.0, 4.0, 4.0, 16.0, 16.0, 32.0]
    assert ahead["steps_to_next_obs"].tolist() == [[3], [2], [1], [2], [1], [1]]  # the last row's record breaks off
    assert ahead["steps_to_next_obs"].dtype == torch.int64
    assert torch.equal(ahead["next", "steps_to_next_obs"], ahead["steps_to_next_obs"])
    assert ahead["next", "observation"].flatten().tolist() == [3.0, 3.0, 3.0, 5.0, 5.0, 6.0]
    assert ahead["next", "terminated"].flatten().tolist() == [True, True, True, False, False, False]
    assert ahead["next", "truncated"].flatten().tolist() == [False, False, False, True, True, False]
    assert ahead["next", "done"].flatten().tolist() == [True, True, True, True, True, False]
    assert torch.equal(ahead["action"], data["action"]) and (data == before).all()


@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.9, 1.0]),
)
def test_equals_a_loop(layout, steps, gamma):
    data = from_arrays(**arrays(layout)).transitions
    data["next", "reward"] = torch.randn(len(data), 1)
    ahead = multi_step(data, steps, gamma)
    reward, done = data["next", "reward"].double().flatten().tolist(), data["next", "done"].flatten().tolist()
    for i in range(len(data)):
        total, last = 0.0, i
        for k in range(steps):
            total, last = total + gamma**k * reward[i + k], i + k
            if done[last] or last + 1 == len(data):
                break
        assert ahead["next", "reward"][i].item() == pytest.approx(total, rel=1e-6, abs=1e-6)
        assert ahead["steps_to_next_obs"][i].item() == last - i + 1
        others = ahead["next"][i].exclude("reward", "steps_to_next_obs")
        assert (others == data["next"][last].exclude("reward")).all()


@pytest.mark.parametrize(
    ("steps", "gamma", "message"),
    [
        (0, 0.9, "return steps: expected a whole number of at least 1, got 0"),
        (1.5, 0.9, "return steps: expected a whole number of at least 1, got 1.5"),
        (True, 0.9, "return steps: expected a whole number of at least 1, got True"),
        (2, 1.1, r"gamma: expected a number in \[0, 1\], got 1.1"),
    ],
)
def test_what_makes_no_sense_is_refused(steps, gamma, message):
    with pytest.raises(DatasetError, match=message):
        multi_step(transitions([1.0], [1], [0]), steps, gamma)


def test_missing_keys_are_named():
    with pytest.raises(DatasetError, match="terminated"):
        multi_step(transitions([1.0], [1], [0]).exclude(("next", "terminated")), 2, 0.9)


def test_sums_are_not_summed_again_and_rules_come_before():
    ahead = multi_step(transitions([1.0, 2.0], [0, 1], [0, 0]), 2, 0.9)
    with pytest.raises(DatasetError, match="transitions: expected one step a row, got steps_to_next_obs"):
        multi_step(ahead, 2, 0.9)
    for key in ("steps_to_next_obs", ("next", "steps_to_next_obs")):
        with pytest.raises(DatasetError, match="Begin with the transitions as recorded"):
            multi_step(ahead.exclude(key), 2, 0.9)
        with pytest.raises(DatasetError, match="Apply the rule before multi_step"):
            apply_reward_rule("antmaze_iql", ahead.exclude(key))
    with pytest.raises(DatasetError, match=r"expected batch size \[N\], got \[1, 2\]"):
        multi_step(transitions([1.0, 2.0], [0, 1], [0, 0])[None], 2, 0.9)


def make_loss(name):
    if name not in EDP:
        cfg = FEED_FORWARD[name]()
        cfg.network, cfg.loss.gamma = NETWORK, 0.5
        return build_feed_forward_loss(cfg, 1, 2)
    networks = [build_actor(1, 2, NETWORK, DiffusionSettings(num_steps=50)), build_qvalue(1, 2, NETWORK)]
    networks += [build_value(1, NETWORK)] if name == "edp_iql" else []
    return EDP[name](*networks).make_value_estimator(gamma=0.5)


def constant(loss, name, value):
    """Let a network of the loss give ``value`` everywhere."""
    for key, parameter in getattr(loss, name).items(True, True):
        is_last_bias = key[-1] == "bias" and parameter.shape[-1] == 1
        parameter.data.fill_(value if is_last_bias else 0.0)


@pytest.mark.parametrize("name", [*EDP, "td3_bc", "crr"])
def test_every_loss_discounts_by_the_steps_taken(name):
    loss = make_loss(name)
    EDPTargetUpdate(loss)
    data = transitions([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0])
    constant(loss, "qvalue_network_params", 0.0)
    for network in ("value", "qvalue"):
        if getattr(loss, f"target_{network}_network_params", None) is not None:
            constant(loss, f"target_{network}_network_params", 100.0)
    _, metrics = loss.qvalue_loss(multi_step(data, 3, 0.5))
    # r + gamma^n 100, nothing after the terminal state
    expected = torch.tensor([3.0, 4.0, 4.0, 16.0 + 25.0, 16.0 + 50.0, 32.0 + 50.0])
    torch.testing.assert_close(metrics["td_error"].reshape(-1, 6)[0].sqrt(), expected)
