"""The LossModule contract, for every loss: value estimators, multi-step data and what a transition means."""

from __future__ import annotations

import pytest
import torch
from loss_cases import make_data, make_loss, qvalues, spread, value_of_next
from torchrl.data.postprocs import MultiStep
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import TD0Estimator

SUPPORTED = [ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda]


@pytest.mark.parametrize("estimator", [e for e in ValueEstimators if e not in SUPPORTED])
def test_other_estimators_are_not_implemented(case, estimator):
    with pytest.raises(NotImplementedError):
        make_loss(case).make_value_estimator(estimator)


@pytest.mark.parametrize("as_class", [True, False])
def test_an_estimator_object_may_be_given(case, as_class):
    loss, data = spread(make_loss(case)), make_data()
    expected, _ = loss.make_value_estimator(gamma=0.5).qvalue_loss(data)
    other = make_loss(case)
    other.load_state_dict(loss.state_dict(), strict=False)  # its estimator is missing
    arguments = {"gamma": 0.5, "value_network": getattr(other, "value_network", None)}
    estimator = TD0Estimator if as_class else TD0Estimator(**arguments)
    assert other.make_value_estimator(estimator, **(arguments if as_class else {})) is other
    other.value_estimator.set_keys(value="state_value" if case.has_value_network else "state_action_value")
    torch.testing.assert_close(other.qvalue_loss(data)[0], expected)


def check_target(loss, data, target) -> None:
    """The critics' term and its metric for a TD target [*B, 1]."""
    predicted = qvalues(loss, data["observation"], data["action"]).detach()
    found, metrics = loss.qvalue_loss(data)
    expected = (predicted - target).square().sum(0).squeeze(-1)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics["pred_value"], predicted.mean(0).squeeze(-1))


@pytest.mark.parametrize(("done", "terminated", "bootstraps"), [(False, False, 1), (True, False, 1), (True, True, 0)])
@pytest.mark.parametrize("steps", [None, [1, 1, 1, 1], [3, 1, 4, 2]], ids=str)
def test_the_target_of_the_critics(case, done, terminated, bootstraps, steps):
    """r + gamma^n V(s') (1 - terminated): truncated steps bootstrap, terminated ones do not."""
    loss = spread(make_loss(case, double=True, reduction="none"))
    loss.make_value_estimator(gamma=0.5)
    data = make_data(dtype=torch.float64)
    data["next", "done"].fill_(done)
    data["next", "terminated"].fill_(terminated)
    discount = torch.full((4, 1), 0.5, dtype=torch.float64)
    if steps is not None:
        data["steps_to_next_obs"] = torch.tensor(steps).unsqueeze(-1)
        discount **= data["steps_to_next_obs"]
    check_target(loss, data, data["next", "reward"] + discount * bootstraps * value_of_next(loss, data))


def test_data_of_torchrls_multi_step(case):
    """Rewards of two steps, then the value two steps ahead; fewer where the episode or the data end."""
    loss = spread(make_loss(case, double=True, reduction="none"))
    loss.make_value_estimator(gamma=0.5)
    data = make_data([2, 6], dtype=torch.float64)
    data["next", "done"][:] = data["next", "terminated"][:] = False
    data["next", "done"][0, 2] = True  # truncated: MultiStep forgets that a step ahead terminated
    data.refine_names(None, "time")
    values, target = value_of_next(loss, data), torch.empty(2, 6, 1, dtype=torch.float64)
    for row, end_of_first in ((0, 2), (1, 5)):
        for t in range(6):
            last = min(t + 1, end_of_first if t <= end_of_first else 5)
            rewards = sum(0.5 ** (u - t) * data["next", "reward"][row, u] for u in range(t, last + 1))
            target[row, t] = rewards + 0.5 ** (last + 1 - t) * values[row, last]

    check_target(loss, MultiStep(gamma=0.5, n_steps=2)(data), target)


@pytest.mark.parametrize(("estimator", "lmbda"), [("tdlambda", 0.8), ("td1", 1.0)])
def test_longer_targets_follow_the_trajectory(case, estimator, lmbda):
    loss, data = spread(make_loss(case, double=True, reduction="none")), make_data([2, 6], dtype=torch.float64)
    data["next", "done"][:] = data["next", "terminated"][:] = False
    data["next", "done"][0, 2] = data["next", "terminated"][0, 2] = data["next", "done"][1, 3] = True
    data.refine_names(None, "time")
    loss.make_value_estimator(estimator, gamma=0.5, **({} if estimator == "td1" else {"lmbda": lmbda}))
    values, target = value_of_next(loss, data), torch.empty(2, 6, 1, dtype=torch.float64)
    for row in range(2):
        for t in reversed(range(6)):
            ends = t == 5 or data["next", "done"][row, t]
            ahead = values[row, t] if ends else (1 - lmbda) * values[row, t] + lmbda * target[row, t + 1]
            target[row, t] = data["next", "reward"][row, t] + 0.5 * ahead * ~data["next", "terminated"][row, t]
    check_target(loss, data, target)
