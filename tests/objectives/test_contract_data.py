"""The LossModule contract, for every loss: reductions, masks, weights, layouts and what a transition means."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import as_kwargs, gradients, make_data, make_loss, make_networks, spread, total
from tensordict import TensorDict, assert_close

NORMALIZATIONS = [None, "mean", "softmax"]


def losses(case, data, state=None, **kwargs) -> TensorDict:
    loss = make_loss(case, **kwargs)
    if state is not None:
        loss.load_state_dict(state)
    return loss(data)


def test_reductions(case):
    state, data = spread(make_loss(case)).state_dict(), make_data([3, 4])
    none = losses(case, data, state, reduction="none")
    assert none.batch_size == (3, 4)
    mean, default, added = (losses(case, data, state, reduction=r) for r in ("mean", None, "sum"))
    assert_close(mean, default)
    assert mean.batch_size == () and set(none.keys()) == set(mean.keys())
    for key in none.keys():
        assert none[key].shape == (3, 4)
        torch.testing.assert_close(mean[key], none[key].mean())
        # metrics are means whatever the losses are
        torch.testing.assert_close(added[key], none[key].sum() if key in case.terms else none[key].mean())


@pytest.mark.parametrize("mode", ["exclude", "non_tensor"])
def test_scalar_output_modes(case, mode):
    state, data = spread(make_loss(case)).state_dict(), make_data()
    mean = losses(case, data, state)
    loss = make_loss(case, reduction="none", scalar_output_mode=mode)
    loss.load_state_dict(state)
    output = loss(data)
    tensors = {key for key, value in output.items() if isinstance(value, torch.Tensor) and value.shape == (4,)}
    assert tensors == set(case.terms)
    if mode == "exclude":
        assert set(output.keys()) == set(case.terms) == set(loss.out_keys)
        assert len(loss(**as_kwargs(data.exclude("td_error")))) == len(case.terms)
        assert_close(losses(case, data, state, scalar_output_mode=mode), mean)
    else:
        for key in set(mean.keys()) - set(case.terms):
            torch.testing.assert_close(output.get_non_tensor(key), mean[key])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("key", [("collector", "mask"), "shifted_valid", "valid"], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masked_samples_change_nothing(case, key, reduction, normalization):
    loss = spread(make_loss(case, reduction=reduction, weight_normalization=normalization))
    if key == "valid":
        loss.loss_mask_key = key
    data = make_data([6])
    mask = torch.tensor([True, False, True, True, False, True])
    expected = loss(data[mask])
    data[key] = mask.unsqueeze(-1)
    for part in (data["action"], data["observation"], data["next", "observation"]):
        part[~mask] = 3.0  # far from everything else
    found = loss(data)
    if reduction == "none":
        for term in case.terms:
            assert (found[term][~mask] == 0).all()
        found = found[mask]
    assert_close(found, expected)
    loss.loss_mask_key = None
    assert (total(loss(data)) - total(expected)).abs() > 1e-4


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_batch_without_valid_samples_has_zero_loss_and_gradient(case, normalization):
    loss, data = make_loss(case, weight_normalization=normalization), make_data()
    data["collector", "mask"] = torch.zeros(4, 1, dtype=torch.bool)
    value = total(loss(data))
    assert value == 0
    assert all(not g.any() for g in gradients(loss, value).values() if g is not None)


def test_priority_weights(case):
    state, data = spread(make_loss(case)).state_dict(), make_data()
    none = losses(case, data.clone(), state, reduction="none")
    data["priority_weight"] = weight = torch.tensor([0.1, 1.0, 0.5, 0.0])
    mean, added = losses(case, data, state), losses(case, data, state, reduction="sum")
    unused = losses(case, data, state, reduction="none", use_prioritized_weights=False)
    each = losses(case, data, state, reduction="none", use_prioritized_weights=True)
    data["collector", "mask"] = torch.tensor([True, True, False, True])
    masked = losses(case, data, state, weight_normalization=None)
    plain = losses(
        case, data.exclude("priority_weight", "collector"), state, reduction="none", weight_normalization=None
    )
    for term in case.terms:
        torch.testing.assert_close(each[term], none[term] * weight)
        torch.testing.assert_close(unused[term], none[term])
        torch.testing.assert_close(added[term], (none[term] * weight).sum())
        torch.testing.assert_close(mean[term], (none[term] * weight).sum() / weight.sum())
        torch.testing.assert_close(masked[term], (plain[term] * weight)[[0, 1, 3]].sum() / 1.1)


@pytest.mark.parametrize("batch", [[], [1], [8], [2, 4]], ids=str)
def test_batch_layouts(case, batch):
    size = math.prod(batch)
    state, flat = spread(make_loss(case)).state_dict(), make_data([size])
    data = flat.view(*batch) if batch else flat[0]
    expected = losses(case, flat, state, reduction="none")
    found = losses(case, data, state, reduction="none")
    assert found.batch_size == torch.Size(batch) and data["td_error"].shape == torch.Size(batch)
    assert_close(found, expected.view(*batch) if batch else expected[0])
    total(losses(case, data.exclude("diffusion_step", "diffusion_noise"), state)).backward()


def test_vmap_equals_loop(case):
    state, data = spread(make_loss(case, 3)).state_dict(), make_data()
    assert_close(*(losses(case, data, state, num_qvalue_nets=3, deactivate_vmap=off) for off in (True, False)))


def test_steps_with_a_trailing_dimension(case):
    loss, data = spread(make_loss(case)), make_data()
    expected = loss(data)
    data["diffusion_step"] = data["diffusion_step"].unsqueeze(-1)
    assert_close(loss(data), expected)


def value_of_next(loss, data) -> torch.Tensor:
    with loss.value_network_params.to_module(loss.value_network), torch.no_grad():
        return loss.value_network.module(data["next", "observation"])


@pytest.mark.parametrize(("done", "terminated", "bootstraps"), [(False, False, 1), (True, False, 1), (True, True, 0)])
@pytest.mark.parametrize("steps", [None, 1, 3])
def test_the_target_of_the_critics(case, done, terminated, bootstraps, steps):
    """r + gamma^n V(s') (1 - terminated): truncated steps bootstrap, terminated ones do not."""
    loss = spread(make_loss(case, double=True, reduction="none", delay_actor=False, delay_qvalue=False))
    loss.make_value_estimator(gamma=0.5)
    data = make_data(dtype=torch.float64)
    data["next", "done"].fill_(done)
    data["next", "terminated"].fill_(terminated)
    if steps is not None:
        data["steps_to_next_obs"] = torch.full((4, 1), steps)
    target = data["next", "reward"] + 0.5 ** (steps or 1) * bootstraps * value_of_next(loss, data)
    predicted = loss._qvalues(data, loss.qvalue_network_params)
    found, metrics = loss.qvalue_loss(data)
    torch.testing.assert_close(found, (predicted - target.squeeze(-1)).square().sum(0))
    torch.testing.assert_close(metrics["pred_value"], predicted.mean(0))


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
    predicted = loss._qvalues(data, loss.qvalue_network_params)
    expected = (predicted - target.squeeze(-1)).square().sum(0)
    torch.testing.assert_close(loss.qvalue_loss(data)[0], expected, rtol=1e-5, atol=1e-6)


def test_draws_are_fresh_and_repeatable(case):
    loss, data = make_loss(case, networks=make_networks(2)), make_data(draws=False)
    assert loss(data)["loss_actor"] != loss(data)["loss_actor"]
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(loss(data)["loss_actor"])
    assert values[0] == values[1]
