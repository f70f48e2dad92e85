"""A train state that was saved and loaded goes on as if nothing had happened, bit for bit."""

import itertools

import pytest
import torch
from training_helpers import make_state

LOSSES = ("iql", "td3", "crr")
SOLVERS = {"ddpm": {}, "ddim": {"num_calls": 5}, "dpm_solver": {"num_calls": 4}, "dpm_solver_pp": {"num_calls": 3}}
UPDATES = 50


def state_with(name, solver, **options):
    options = {"actor_start": 3, "decay": "cosine", "gradient_steps": UPDATES, **options}
    state = make_state(name, **options)
    sampler = state.loss.actor_network.module
    sampler.solver, sampler.num_calls = solver, SOLVERS[solver].get("num_calls")
    return state


def copied(state):
    return {name: tensor.detach().clone() for name, tensor in state.state_dict().items()}


def differences(first, second):
    return [name for name in first if not torch.equal(first[name], second[name])]


def resumed_from(saved, name, solver, others, **options):
    """The end of a run from ``saved`` on, in a state that has been elsewhere before."""
    state = state_with(name, solver, **options)
    for _ in range(others):
        state.update()
    torch.manual_seed(12345)
    state.load_state_dict(saved)
    while state.updates < UPDATES:
        state.update()
    return copied(state)


def run_and_resume(name, solver, moments, **options):
    """Names of what differs at the end, by the update from which the run was resumed."""
    state = state_with(name, solver, **options)
    torch.manual_seed(7)
    saved = []
    for _ in range(UPDATES):
        state.update()
        saved.append(copied(state))
    end = saved[-1]
    ends = {moment: resumed_from(saved[moment - 1], name, solver, moment % 3, **options) for moment in moments}
    return {moment: differences(end, other) for moment, other in ends.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_resumed_runs_end_bit_identical(name, order):
    ends = run_and_resume(name, "dpm_solver_pp", (1, 2, 3, 4, 49, 50), update_order=order)
    assert ends == dict.fromkeys(ends, [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using lock_")
def test_a_compiled_run_resumes_bit_identical():
    ends = run_and_resume("td3", "dpm_solver_pp", (20,), compile=True)
    assert ends == {20: []}


@pytest.mark.long
def test_resume_from_every_update_of_every_loss_and_solver(record_property):
    """600 of 600: three losses, four solvers, fifty moments."""
    failed, total = [], 0
    for name, solver in itertools.product(LOSSES, SOLVERS):
        ends = run_and_resume(name, solver, range(1, UPDATES + 1))
        total += len(ends)
        failed += [(name, solver, moment, names) for moment, names in ends.items() if names]
    record_property("found", f"{total - len(failed)} of {total} bit-identical")
    assert total == 600 and not failed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("counter.updates"), r"difference in \['counter.updates'\]"),
        (lambda s: s.update(other=torch.zeros(1)), r"difference in \['other'\]"),
        (lambda s: s.update({"optimizer.qvalue.0": torch.zeros(3)}), r"optimizer.qvalue.0: expected .* got .*\[3\]"),
        (lambda s: s.update({"counter.targets": torch.zeros(())}), "counter.targets: expected torch.int64"),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(change, message):
    state = make_state()
    saved = copied(state)
    state.update()
    before = copied(state)
    change(saved)
    with pytest.raises(ValueError, match=message):
        state.load_state_dict(saved)
    assert not differences(before, copied(state))


def test_the_state_holds_every_tensor_that_an_update_changes():
    """An entry that was forgotten would be found here even if it mattered rarely."""
    state = state_with("iql", "dpm_solver_pp")
    for _ in range(4):
        before = copied(state)
        state.update()
        constant = [name for name, tensor in state.state_dict().items() if torch.equal(tensor, before[name])]
    trained = [name for name in constant if not name.startswith("optimizer.")]
    assert trained == ["loss._value_estimator.gamma"], trained
