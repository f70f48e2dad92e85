"""The LossModule contract, for every loss: gradients, estimators, keys, calls and outputs."""

from __future__ import annotations

import warnings

import pytest
import torch
from loss_cases import NESTED, Keys, as_kwargs, gradients, make_data, make_loss, make_networks, spread, total
from tensordict import TensorDict, assert_close
from tensordict.nn import TensorDictModule
from tensordict.utils import unravel_key
from torch import nn
from torchrl.objectives import HardUpdate, LossModule, SoftUpdate, ValueEstimators
from torchrl.objectives.value import TD0Estimator

SUPPORTED = [ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda]


@pytest.mark.parametrize("num_qvalue_nets", [1, 2, 4])
@pytest.mark.parametrize("estimator", [None, *SUPPORTED])
def test_each_term_trains_its_own_network_and_every_leaf_of_it(case, num_qvalue_nets, estimator):
    loss = make_loss(case, num_qvalue_nets)
    if estimator is not None:
        assert loss.make_value_estimator(estimator, gamma=0.9) is loss
    data = make_data([3, 5])
    data.refine_names(None, "time")
    output = loss(data)
    named = dict(loss.named_parameters())
    assert {name.split("_params")[0] for name in named} == set(case.networks.values())
    assert sum("qvalue" in name for name in named) == len(list(loss.qvalue_network_params.keys(True, True)))
    for term, network in case.networks.items():
        for name, gradient in gradients(loss, output[term]).items():
            reached = gradient is not None and bool((gradient != 0).any())
            assert reached == name.startswith(f"{network}_params"), f"{term} and {name}"
    methods = [term.removeprefix("loss_") + "_loss" for term in case.terms]
    for term, method in zip(case.terms, methods, strict=True):
        assert_close(TensorDict({term: getattr(loss, method)(data)[0]}), output.select(term))


@pytest.mark.parametrize("estimator", [e for e in ValueEstimators if e not in SUPPORTED])
def test_other_estimators_are_not_implemented(case, estimator):
    with pytest.raises(NotImplementedError):
        make_loss(case).make_value_estimator(estimator)


def test_an_estimator_object_may_be_given(case):
    loss, data = spread(make_loss(case)), make_data()
    expected = loss.make_value_estimator(gamma=0.5)(data)["loss_qvalue"]
    other = make_loss(case)
    other.load_state_dict(loss.state_dict(), strict=False)  # its estimator is missing
    estimator = TD0Estimator(gamma=0.5, value_network=other.value_network)
    assert other.make_value_estimator(estimator) is other
    torch.testing.assert_close(other(data)["loss_qvalue"], expected)


@pytest.mark.parametrize(("name", "error"), [("gamma", TypeError), ("priority_key", RuntimeError)])
def test_old_arguments_are_refused(case, name, error):
    with pytest.raises(error):
        make_loss(case, **{name: 0.9 if name == "gamma" else "priority"})


@pytest.mark.parametrize("keys", [NESTED, Keys(*["x_" + name for name in vars(Keys())])], ids=["nested", "renamed"])
def test_renamed_keys(case, keys):
    plain = spread(make_loss(case))
    loss = make_loss(case, networks=make_networks(2, keys))
    loss.load_state_dict(plain.state_dict())
    loss.set_keys(**keys.of_loss())
    data = make_data()
    renamed = TensorDict({}, batch_size=data.batch_size)
    for name, key in vars(Keys()).items():
        for before in ((), ("next",)):
            if (*before, key) in data.keys(True):
                renamed.set(unravel_key((*before, getattr(keys, name))), data[(*before, key)])
    assert_close(loss(renamed), plain(data))
    torch.testing.assert_close(renamed[keys.priority], data["td_error"])
    values = loss(**as_kwargs(renamed.exclude(keys.priority)))
    assert_close(TensorDict(dict(zip(loss.out_keys, values, strict=True))), plain(data))
    for name in ("diffusion_step", "diffusion_noise", "action", "observation"):
        assert unravel_key(getattr(keys, name)) in loss.in_keys


def test_set_keys(case):
    loss, data = spread(make_loss(case)), make_data()
    expected = loss(data)
    loss.set_keys(reward="rew", done="end", terminated=("a", "term"))  # reaches the estimator that exists by now
    data["next"].rename_key_("reward", "rew").rename_key_("done", "end").rename_key_("terminated", ("a", "term"))
    assert_close(loss(data), expected)
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
    torch.manual_seed(0)
    expected = loss(data.copy())
    torch.manual_seed(0)
    values = loss(**as_kwargs(data))
    assert_close(TensorDict(dict(zip(loss.out_keys, values, strict=True))), expected)
    assert set(expected.keys()) == set(loss.out_keys)


@pytest.mark.parametrize("optional", ["priority_weight", "steps_to_next_obs"])
def test_a_dispatched_call_takes_the_other_optional_inputs(case, optional):
    loss, data = spread(make_loss(case)), make_data()
    before = loss(data.copy())
    shape = [4] if optional == "priority_weight" else [4, 1]
    data[optional] = torch.arange(1, 5).view(shape).to(torch.float32 if optional == "priority_weight" else torch.int64)
    expected = loss(data.copy())
    assert (expected["loss_qvalue"] - before["loss_qvalue"]).abs() > 1e-6
    values = loss(**as_kwargs(data))
    assert_close(TensorDict(dict(zip(loss.out_keys, values, strict=True))), expected)


def test_positional_calls_follow_in_keys(case):
    loss, data = spread(make_loss(case)), make_data()
    required = [key for key in loss.in_keys if key in data.keys(True)]
    assert loss.in_keys[: len(required)] == required, "optional inputs come last"
    torch.testing.assert_close(loss(*[data[key] for key in required])[0], loss(data)[loss.out_keys[0]])


@pytest.mark.parametrize("draws", [True, False])
def test_select_out_keys(case, draws):
    loss, data = make_loss(case), make_data(draws=draws)
    everything = list(loss.out_keys)
    chosen = [case.terms[-1], "pred_value"]
    assert loss.select_out_keys(*chosen) is loss
    assert loss.out_keys == chosen and set(loss(data).keys()) == set(chosen)
    values = loss(**as_kwargs(data.exclude("td_error")))
    assert isinstance(values, tuple) and len(values) == 2
    loss.select_out_keys(chosen[0])
    assert isinstance(loss(**as_kwargs(data.exclude("td_error"))), torch.Tensor)
    loss.reset_out_keys()
    assert loss.out_keys == everything and set(loss(data).keys()) == set(everything)
    with pytest.raises(ValueError, match="nonsense"):
        loss.select_out_keys("nonsense")


def test_only_the_priority_is_written_to_the_input(case):
    loss, data = spread(make_loss(case)), make_data()
    before = data.clone()
    keys = set(data.keys(True, True))
    output = loss(data)
    assert set(data.keys(True, True)) == keys | {"td_error"}
    assert_close(data.exclude("td_error"), before)
    assert data["td_error"].shape == (4,)
    predicted = loss._qvalues(data, loss.qvalue_network_params)
    with loss.value_network_params.to_module(loss.value_network):
        value = loss.value_network.module(data["next", "observation"])
    target = data["next", "reward"] + 0.99 * value * ~data["next", "terminated"]
    torch.testing.assert_close(data["td_error"], (predicted - target.squeeze(-1)).square().amax(0))
    for key, metric in output.items():
        assert metric.requires_grad == key.startswith("loss_")
    for term in case.terms:
        getattr(loss, term.removeprefix("loss_") + "_loss")(before)
    assert set(before.keys(True, True)) == keys, "the terms on their own write nothing"


def test_only_the_terms_are_wrapped_by_the_metaclass(case):
    """TorchRL runs every attribute that ends in "loss" under DETERMINISTIC: that must be the terms alone."""
    names = {name for base in case.loss.__mro__ if base not in LossModule.__mro__ for name in vars(base)}
    assert {name for name in names if name.endswith("loss")} == {t.removeprefix("loss_") + "_loss" for t in case.terms}


@pytest.mark.parametrize("updater", [None, SoftUpdate, HardUpdate])
@pytest.mark.parametrize("delays", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_the_warning_about_targets_is_the_only_one(case, delays, updater):
    loss = make_loss(case, updater=False, delay_actor=delays[0], delay_qvalue=delays[1])
    targets = [name for name in ("actor", "qvalue") if f"target_{name}_network_params" in loss._modules]
    assert targets == [name for name, delayed in zip(("actor", "qvalue"), delays, strict=True) if delayed]
    if updater is not None and targets:
        updater(loss, **({"tau": 0.1} if updater is SoftUpdate else {"value_network_update_interval": 1}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        total(loss(make_data())).backward()
    messages = {str(warning.message) for warning in caught}
    assert messages == ({loss.TARGET_NET_WARNING} if targets and updater is None else set())


@pytest.mark.parametrize("updater", [SoftUpdate, HardUpdate])
def test_updaters_move_the_targets(case, updater):
    loss = spread(make_loss(case, updater=False))
    tau = 0.25 if updater is SoftUpdate else 1.0
    move = updater(loss, **({"tau": tau} if updater is SoftUpdate else {"value_network_update_interval": 1}))
    names = [name for name in loss._modules if name.startswith("target_")]
    assert len(names) == 2
    before = {name: loss._modules[name].data.clone() for name in names}
    move.step()
    for name in names:
        source = loss._modules[name.removeprefix("target_")].data
        assert_close(loss._modules[name].data.to_tensordict(), before[name].lerp(source, tau))


def test_without_delay_the_critics_themselves_are_used(case):
    networks = make_networks(2)
    delayed = make_loss(case, networks=networks)
    direct = make_loss(case, networks=networks, updater=False, delay_actor=False, delay_qvalue=False)
    data = make_data()
    assert_close(delayed(data), direct(data))
    delayed._modules["target_qvalue_network_params"].data.apply_(lambda x: x.add_(0.3 * torch.randn_like(x)))
    assert (delayed(data)["advantage"] - direct(data)["advantage"]).abs() > 1e-6


def test_several_observation_keys_and_a_value_network_of_its_own_input(case):
    networks = make_networks(2)
    networks["actor_network"].in_keys = ["left", "right", "initial_noise"]
    networks["value_network"] = TensorDictModule(nn.Linear(1, 1), in_keys=["privileged"], out_keys=["state_value"])
    loss, data = make_loss(case, networks=networks), make_data()
    for part in (data, data["next"]):
        part["left"], part["right"] = part["observation"].split([1, 2], -1)
        part["privileged"] = part["observation"].sum(-1, keepdim=True)
    expected = loss(data.copy())
    del data["next", "observation"], data["next", "left"], data["next", "right"]
    values = loss(**as_kwargs(data))
    assert_close(TensorDict(dict(zip(loss.out_keys, values, strict=True))), expected)


def test_a_missing_input_is_named(case):
    with pytest.raises(KeyError, match="observation"):
        make_loss(case).actor_loss(make_data().exclude("observation"))
    with pytest.raises(KeyError, match="action"):
        make_loss(case).actor_loss(make_data().exclude("action"))
