"""The LossModule contract, for every loss: what each term trains, outputs, targets and learning."""

from __future__ import annotations

import warnings

import pytest
import torch
from loss_cases import (
    CASES,
    gradients,
    make_data,
    make_loss,
    make_networks,
    qvalues,
    seeded,
    spread,
    total,
    value_of_next,
)
from tensordict import TensorDict, assert_close
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.objectives import HardUpdate, LossModule, SoftUpdate, ValueEstimators

(TD3,) = [case for case in CASES if case.name == "td3"]
SUPPORTED = [ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda]
ENSEMBLES = [(size, estimator) for size in (1, 2, 4) for estimator in (None, *SUPPORTED)]


@pytest.mark.parametrize(("num_qvalue_nets", "estimator"), [*ENSEMBLES, (8, None)])
def test_each_term_trains_its_own_network_and_every_leaf_of_it(case, num_qvalue_nets, estimator):
    loss = make_loss(case, num_qvalue_nets)
    if estimator is not None:
        assert loss.make_value_estimator(estimator, gamma=0.9) is loss
    data = make_data([3, 5])
    data.refine_names(None, "time")
    output = seeded(loss, data)
    named = dict(loss.named_parameters())
    assert {name.split("_params")[0] for name in named} == set(case.networks.values())
    assert sum("qvalue" in name for name in named) == len(list(loss.qvalue_network_params.keys(True, True)))
    for term, network in case.networks.items():
        heads = num_qvalue_nets if network == "qvalue_network" else 1
        for name, gradient in gradients(loss, output[term]).items():
            if name.startswith(f"{network}_params"):
                assert gradient.reshape(heads, -1).any(-1).all(), f"{term} does not reach all of {name}"
            else:
                assert gradient is None or not gradient.any(), f"{term} reaches {name}"
    for term, method in zip(case.terms, case.methods, strict=True):
        assert_close(TensorDict({term: seeded(getattr(loss, method), data)[0]}), output.select(term))


@pytest.mark.parametrize(("name", "error"), [("gamma", TypeError), ("priority_key", RuntimeError)])
def test_old_arguments_are_refused(case, name, error):
    with pytest.raises(error):
        make_loss(case, **{name: 0.9 if name == "gamma" else "priority"})


def test_only_the_priority_is_written_to_the_input(case):
    loss, data = spread(make_loss(case)), make_data()
    before = data.clone()
    keys = set(data.keys(True, True))
    output = loss(data)
    assert set(data.keys(True, True)) == keys | {"td_error"}
    assert_close(data.exclude("td_error"), before)
    target = data["next", "reward"] + 0.99 * value_of_next(loss, data) * ~data["next", "terminated"]
    errors = qvalues(loss, data["observation"], data["action"]) - target
    torch.testing.assert_close(data["td_error"], errors.detach().square().amax(0).squeeze(-1))
    assert set(output.keys()) == set(loss.out_keys)
    for key, metric in output.items():
        assert metric.requires_grad == key.startswith("loss_")
    for method in case.methods:
        getattr(loss, method)(before)
    assert set(before.keys(True, True)) == keys, "the terms on their own write nothing"


def test_only_the_terms_are_wrapped_by_the_metaclass(case):
    """TorchRL runs every attribute that ends in "loss" under DETERMINISTIC: that must be the terms alone."""
    names = {name for base in case.loss.__mro__ if base not in LossModule.__mro__ for name in vars(base)}
    alias = {"value_loss"} if case is TD3 else set()
    assert {name for name in names if name.endswith("loss")} == set(case.methods) | alias


def test_td3s_value_loss_is_its_qvalue_loss():
    """TorchRL's TD3 optimisation stepper calls it by that name."""
    loss, data = spread(make_loss(TD3)), make_data()
    (found, metrics), (expected, others) = loss.value_loss(data), loss.qvalue_loss(data)
    assert found == expected and found.requires_grad
    assert_close(TensorDict(metrics), TensorDict(others))


@pytest.mark.parametrize("draws", [True, False])
def test_the_exploration_type_changes_nothing(case, draws):
    loss, data = spread(make_loss(case)), make_data(draws=draws)
    expected = seeded(loss, data)
    for kind in ExplorationType:
        with set_exploration_type(kind):
            assert_close(seeded(loss, data), expected, rtol=0, atol=0)


@pytest.mark.parametrize("direct", [True, False])
def test_target_actions_are_samples(case, direct):
    """Not the action of zero noise, which DETERMINISTIC would give: it is the same in equal states."""
    loss, data = spread(make_loss(case, reduction="none")), make_data(draws=False)
    data = data[:1].expand(6).clone()
    found = loss.qvalue_loss(data)[0] if direct else loss(data)["loss_qvalue"]
    assert (found.std() > 1e-6) == (not case.has_value_network)


def test_draws_are_fresh_and_repeatable(case):
    loss, data = make_loss(case), make_data(draws=False)
    first, second = loss(data), loss(data)
    assert first["loss_actor"] != second["loss_actor"]
    assert (first["loss_qvalue"] != second["loss_qvalue"]) == (not case.has_value_network)
    assert_close(seeded(loss, data), seeded(loss, data), rtol=0, atol=0)


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


@pytest.mark.parametrize("network", ["actor", "qvalue"])
def test_without_delay_the_networks_themselves_are_used(case, network):
    networks = make_networks(2)
    delayed = make_loss(case, networks=networks)
    direct = make_loss(case, networks=networks, **{f"delay_{network}": False})
    data = make_data([32])
    assert_close(seeded(delayed, data), seeded(direct, data))
    delayed._modules[f"target_{network}_network_params"].data.apply_(lambda x: x.add_(0.3 * torch.randn_like(x)))
    found, expected = seeded(delayed, data), seeded(direct, data)
    changed = {term for term in case.terms if (found[term] - expected[term]).abs() > 1e-6}
    if not case.has_value_network:
        assert changed == {"loss_qvalue"}
    elif network == "actor":
        assert not changed
    else:
        assert changed == {"loss_value"} | ({"loss_actor"} if case.name == "iql" else set())


def test_every_term_falls_when_its_network_learns(case):
    loss, data = make_loss(case), make_data([32])
    for method, network in zip(case.methods, case.networks.values(), strict=True):
        optimizer = torch.optim.Adam(loss._modules[f"{network}_params"].values(True, True), lr=3e-2)
        values = []
        for _ in range(20):
            value, _ = seeded(getattr(loss, method), data)
            values.append(float(value.detach()))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert values[-1] < values[0] - 0.1 * abs(values[0]), method
