"""What is not finite never enters the state: 54 injections eagerly, 45 compiled, and the masks that a GPU would use."""

import math
from contextlib import contextmanager

import pytest
import torch
from training_helpers import make_state

from torchrl_edp.training import state as state_module

LOSSES = ("iql", "td3", "crr")
VALUES = (math.nan, math.inf, -math.inf)
FIELDS = ("observation", "action", ("next", "reward"), ("next", "observation"))


def snapshot(state):
    """Parameters, targets and optimizers as they are now."""
    return {k: v.clone() for k, v in state.state_dict().items() if k.startswith(("loss.", "optimizer."))}


def changed(before, after):
    """Names of what is no longer the same, NaN counting as itself."""
    return {k for k, v in before.items() if not torch.allclose(v, after[k], rtol=0, atol=0, equal_nan=True)}


@contextmanager
def injected(state, where, value):
    """``value`` in the data, in a parameter or in a gradient, until the block ends."""
    parameter = state.optimizers["qvalue"].parameters[2]
    if where == "gradient":
        hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
        yield
        hook.remove()
        return
    target = parameter.data if where == "parameter" else state.buffer[:].get(where)
    kept = target.clone()
    target[..., 0] = value  # a first entry of every row, since not every row is drawn
    yield
    target.copy_(kept)


def expected_cause(where):
    if where == "gradient":
        return "lower optim.lr"
    if where == "parameter":
        return "parameters of the qvalue network"
    return f"the data's {where if isinstance(where, str) else '.'.join(where)} is not finite at row 0"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("where", [*FIELDS, "parameter", "gradient"], ids=str)
@pytest.mark.parametrize("value", VALUES)
def test_no_step_is_taken(name, where, value):
    state = make_state(name)
    state.update()
    with injected(state, where, value):
        before = snapshot(state)
        with pytest.raises(FloatingPointError, match="Update 2: .* = (nan|inf|-inf)") as error:
            state.update()
        assert not changed(before, snapshot(state))
    assert expected_cause(where) in str(error.value)
    state.update()  # the cause repaired, training goes on


@pytest.mark.parametrize("name", LOSSES)
def test_the_error_says_what_a_sequential_update_stepped_before(name):
    state = make_state(name, update_order="sequential")
    first = {"iql": "value"}.get(name, "qvalue")
    for parameter in state.optimizers["actor"].parameters:
        parameter.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    before = snapshot(state)
    with pytest.raises(FloatingPointError, match=f"only the earlier step of {first} was; all else is as it was"):
        state.update()
    moved = {changed_name.split(".")[1].split("_network")[0] for changed_name in changed(before, snapshot(state))}
    assert moved == {first}


@pytest.mark.parametrize("order", ["joint", "sequential"])
@pytest.mark.parametrize("where", [*FIELDS, "parameter"], ids=str)
def test_masks_do_what_the_early_return_does(monkeypatch, where, order):
    """On a GPU nothing is read in the update: kernels are told to leave everything as it is."""
    monkeypatch.setattr(state_module, "_go", lambda valid: (True, valid))
    state = make_state(update_order=order)
    state.update()
    state.check_every = 100
    with injected(state, where, math.inf):
        before = snapshot(state)
        for _ in range(2):
            state.update()
        moved = changed(before, snapshot(state))
        if order == "joint":
            assert not moved
        else:  # a network that made its finite step before the term that failed keeps it
            assert not any(name.startswith(("loss.target", "loss.qvalue", "optimizer.qvalue")) for name in moved)
    after = snapshot(state)
    assert all(value.isfinite().all() for value in after.values())
    with pytest.raises(FloatingPointError, match="Update 2:"):
        state.check()
    state.check()  # an error is raised once


def test_masked_updates_are_those_without_masks(monkeypatch):
    results = []
    for masked in (False, True):
        if masked:
            monkeypatch.setattr(state_module, "_go", lambda valid: (True, valid))
        state = make_state()
        torch.manual_seed(3)
        for _ in range(10):
            state.update()
        results.append(snapshot(state))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_check_comes_at_the_latest_after_its_interval(monkeypatch):
    monkeypatch.setattr(state_module, "_go", lambda valid: (True, valid))
    state = make_state()
    state.check_every = 5
    state.update()
    with injected(state, "action", math.nan):
        state.update()
    state.update()
    state.update()
    with pytest.raises(FloatingPointError, match="Update 2: .*loss_actor = nan"):
        state.update()
    assert state.updates == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using lock_")
@pytest.mark.parametrize("name", LOSSES)
def test_the_compiled_update_takes_no_such_step_either(name):
    state = make_state(name, compile=True)
    state.update()
    for where in [*FIELDS, "parameter"]:
        for value in VALUES:
            with injected(state, where, value):
                before = snapshot(state)
                with pytest.raises(FloatingPointError) as error:
                    state.update()
                assert not changed(before, snapshot(state)), (where, value)
            assert expected_cause(where) in str(error.value)
            before = snapshot(state)
            state.update()
            assert changed(before, snapshot(state))
