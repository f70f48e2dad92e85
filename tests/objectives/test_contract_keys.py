"""The LossModule contract, for every loss: keys, and calls by keyword, by position and by tensordict."""

from __future__ import annotations

import pytest
import torch
from loss_cases import (
    NESTED,
    OBS,
    A,
    K,
    Keys,
    as_kwargs,
    dispatched,
    make_data,
    make_loss,
    make_networks,
    seeded,
    spread,
)
from tensordict import TensorDict, assert_close
from tensordict.nn import TensorDictModule
from tensordict.utils import unravel_key
from torch import nn
from torchrl.modules import ValueOperator

from torchrl_edp.modules import QValueNetwork

DRAWN = ["diffusion_step", "diffusion_noise", "initial_noise", ("next", "initial_noise")]
# Every loss reads the other inputs.
READ_BY = {"initial_noise": ["crr"], ("next", "initial_noise"): ["td3", "crr", "crr_paper"]}


def optional_inputs() -> TensorDict:
    return TensorDict(
        {
            "diffusion_step": torch.randint(K, (4,)),
            "diffusion_noise": torch.randn(4, A),
            "initial_noise": torch.randn(4, A),
            "priority_weight": torch.rand(4),
            "steps_to_next_obs": torch.arange(1, 5).unsqueeze(-1),
            "next": {"initial_noise": torch.randn(4, A)},
        },
        [4],
    )


@pytest.mark.parametrize("keys", [NESTED, Keys(*["x_" + name for name in vars(Keys())])], ids=["nested", "renamed"])
def test_renamed_keys(case, keys):
    plain = spread(make_loss(case))
    loss = make_loss(case, networks=make_networks(2, keys))
    loss.load_state_dict(plain.state_dict())
    if not case.has_value_network:  # with one, TorchRL's estimators refuse a value that it does not write
        loss.make_value_estimator()
    loss.set_keys(**keys.of_loss(case))
    data = make_data()
    renamed = TensorDict({}, batch_size=data.batch_size)
    for name, key in vars(Keys()).items():
        for before in ((), ("next",)):
            if (*before, key) in data.keys(True):
                renamed.set(unravel_key((*before, getattr(keys, name))), data[(*before, key)])
    expected = seeded(plain, data)
    assert_close(seeded(loss, renamed), expected)
    torch.testing.assert_close(renamed[keys.priority], data["td_error"])
    assert_close(dispatched(loss, renamed), expected)
    for name in ("diffusion_step", "diffusion_noise", "action", "observation"):
        assert unravel_key(getattr(keys, name)) in loss.in_keys


def test_set_keys(case):
    loss, data = spread(make_loss(case)), make_data()
    expected = seeded(loss, data)
    loss.set_keys(reward="rew", done="end", terminated=("a", "term"))  # reaches the estimator that exists by now
    data["next"].rename_key_("reward", "rew").rename_key_("done", "end").rename_key_("terminated", ("a", "term"))
    assert_close(seeded(loss, data), expected)
    assert {("next", "rew"), ("next", "end"), ("next", "a", "term")} < set(loss.in_keys)
    assert ("next", "reward") not in loss.in_keys
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(nonsense="a")
    loss.set_keys(reward=None)
    assert loss.tensor_keys.reward == "reward" and ("next", "reward") in loss.in_keys


@pytest.mark.parametrize("draws", [True, False])
def test_a_dispatched_call_equals_a_tensordict_call(case, draws):
    loss = spread(make_loss(case))
    data = make_data(draws=draws)
    expected = seeded(loss, data.copy())
    assert_close(dispatched(loss, data), expected)
    assert set(expected.keys()) == set(loss.out_keys)


@pytest.mark.parametrize("optional", [*DRAWN, "priority_weight", "steps_to_next_obs"], ids=str)
def test_a_dispatched_call_takes_each_optional_input(case, optional):
    loss, data = spread(make_loss(case)), make_data(draws=False)
    full = data.clone().update(optional_inputs())
    assert (optional in loss.in_keys) == (case.name in READ_BY.get(optional, [case.name]))
    for one in (data.clone().update(optional_inputs().select(optional)), full.exclude(optional)):
        assert_close(dispatched(loss, one), seeded(loss, one.copy()))
    without, given = seeded(loss, full.exclude(optional)), seeded(loss, full)
    changed = any((given[term] - without[term]).abs() > 1e-6 for term in case.terms)
    assert changed == (optional in loss.in_keys)


def test_positional_calls_follow_in_keys(case):
    loss, data = spread(make_loss(case)), make_data()
    given = [key for key in loss.in_keys if key in data.keys(True)]
    required = [key for key in given if key not in DRAWN]
    assert loss.in_keys[: len(required)] == required, "optional inputs come last"
    expected = seeded(loss, data.select(*required))
    torch.testing.assert_close(seeded(loss, *[data[key] for key in required])[0], expected[loss.out_keys[0]])


@pytest.mark.parametrize("draws", [True, False])
def test_select_out_keys(case, draws):
    loss, data = make_loss(case), make_data(draws=draws)
    everything = list(loss.out_keys)
    chosen = [case.terms[-1], "pred_value"]
    assert loss.select_out_keys(*chosen) is loss
    assert loss.out_keys == chosen and set(loss(data).keys()) == set(chosen)
    values = loss(**as_kwargs(data, loss))
    assert isinstance(values, tuple) and len(values) == 2
    loss.select_out_keys(chosen[0])
    assert isinstance(loss(**as_kwargs(data, loss)), torch.Tensor)
    loss.reset_out_keys()
    assert loss.out_keys == everything and set(loss(data).keys()) == set(everything)
    with pytest.raises(ValueError, match="nonsense"):
        loss.select_out_keys("nonsense")


def test_several_observation_keys_and_networks_of_their_own_inputs(case):
    """The actor reads two keys, the critics one of their own, the value network another: at both steps if needed."""
    networks = make_networks(2)
    networks["actor_network"].in_keys = ["left", "right", "initial_noise"]
    critics = [QValueNetwork(OBS, A, hidden_sizes=(8,)) for _ in range(2)]
    networks["qvalue_network"] = [ValueOperator(critic, in_keys=["judged", "action"]) for critic in critics]
    networks["value_network"] = TensorDictModule(nn.Linear(1, 1), in_keys=["privileged"], out_keys=["state_value"])
    loss, data = make_loss(case, networks=networks), make_data()
    for part in (data, data["next"]):
        part["left"], part["right"] = part["observation"].split([1, 2], -1)
        part["judged"] = part.pop("observation").cos()
        part["privileged"] = part["judged"].sum(-1, keepdim=True)
    assert_close(dispatched(loss, data), seeded(loss, data))
    read = {"left", "right", "privileged"} if case.has_value_network else {"left", "right", "judged"}
    assert {key[-1] for key in loss.in_keys if key[0] == "next"} - {"initial_noise"} == read | {
        "reward",
        "done",
        "terminated",
    }


def test_a_missing_input_is_named(case):
    for key in ("observation", "action"):
        with pytest.raises(KeyError, match=key):
            make_loss(case).actor_loss(make_data().exclude(key))
