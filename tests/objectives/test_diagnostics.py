from __future__ import annotations

import math

import hand_computed as hand
import pytest
import torch
from loss_cases import CASES, K, make_data, make_loss, make_networks, spread

from torchrl_edp.objectives import (
    clipped_share_by_step,
    guidance_share_by_step,
    qvalue_bound,
    qvalue_spread,
    weight_saturation,
)

(TD3,) = [case for case in CASES if case.name == "td3"]
(IQL,) = [case for case in CASES if case.name == "iql"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighting", ["uniform", "alpha_bar"])
def test_shares_of_td3_by_hand(weighting, masked):
    """Through the approximated action: norm of w sqrt(1 - abar) / sqrt(abar) dQ/da, unless it is clipped."""
    networks = make_networks(2)
    loss = make_loss(TD3, networks=networks, double=True, guidance_weighting=weighting, guidance_qvalue="mean")
    loss, data = spread(loss), hand.double_data(40)
    counts = torch.arange(40) % 3 > 0 if masked else torch.ones(40, dtype=torch.bool)
    if masked:
        data["collector", "mask"] = counts.unsqueeze(-1)
    settings = hand.COMMON | {"clip_approximation": True}
    _, actions = hand.approximations(networks, data, settings)
    sizes = [0.0] * 5
    for i, action in enumerate(actions):
        k, action = int(data["diffusion_step"][i]), action.detach().requires_grad_()
        values = [hand.qvalue(networks, loss.qvalue_network_params, j, data["observation"][i], action) for j in (0, 1)]
        (slope,) = torch.autograd.grad(sum(values) / 2, action)
        slope = slope * (action.abs() < 1) * ((1 - hand.ABARS[k]) / hand.ABARS[k]) ** 0.5
        sizes[k * 5 // K] += float(hand.BY_STEP[weighting][k] * slope.norm() * counts[i])
    found = guidance_share_by_step(loss, data, num_bins=5)
    expected = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_shares_of_the_noise_likelihood_by_hand():
    networks = make_networks(2)
    settings = {"likelihood": "noise", "weight_normalization": None, "guidance_steps": (10, 44)}
    loss, data = spread(make_loss(IQL, networks=networks, double=True, **settings)), hand.double_data(30)
    with torch.no_grad():
        terms = loss._diffuse(data)
        weight = loss._guidance(data, terms)[1]["advantage_weight"]
    sizes = [0.0] * 10
    for i, k in enumerate(data["diffusion_step"].tolist()):
        slope = (terms.predicted_noise[i] - data["diffusion_noise"][i]).norm() * 2 / 2  # mean of two squares
        sizes[k // 5] += float(weight[i] * slope) if 10 <= k <= 44 else 0.0
    found = guidance_share_by_step(loss, data.exclude("next"))
    torch.testing.assert_close(found, torch.tensor(sizes, dtype=torch.float64) / sum(sizes), rtol=1e-8, atol=1e-12)
    assert (found[[0, 1, 9]] == 0).all() and (found[2:9] > 0).all()


@pytest.mark.parametrize(("weighting", "dominates"), [("uniform", True), ("alpha_bar", False)])
def test_high_noise_dominates_unless_weighted(weighting, dominates):
    loss = make_loss(TD3, double=True, guidance_weighting=weighting, clip_approximation=False)
    with torch.no_grad():  # under any mode of gradients
        shares = guidance_share_by_step(loss, make_data([512], dtype=torch.float64))
    assert shares.sum() == pytest.approx(1) and shares.shape == (10,) and not shares.requires_grad
    assert bool(shares[-2:].sum() > 0.6) == dominates
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_a_batch_of_several_dimensions_is_one_batch():
    settings = {"double": True, "guidance_qvalue": "mean", "qvalue_normalization": None}
    loss, data = spread(make_loss(TD3, **settings)), hand.double_data(24)
    data["collector", "mask"] = torch.arange(24).unsqueeze(-1) % 3 > 0
    expected = guidance_share_by_step(loss, data)
    assert (expected > 0).sum() > 3
    torch.testing.assert_close(guidance_share_by_step(loss, data.view(4, 6)), expected)


def test_without_a_gradient_all_shares_are_zero():
    loss = make_loss(TD3, guidance_steps=(0, 0))
    data = make_data([8])
    data["diffusion_step"].fill_(7)
    assert (guidance_share_by_step(loss, data) == 0).all()


@pytest.mark.parametrize("settings", [{"guidance_start": "noise"}, {"approximation_steps": 2}], ids=str)
def test_chains_of_calls_have_no_step(settings):
    with pytest.raises(ValueError, match="guidance_start='data' and a single approximation step"):
        guidance_share_by_step(make_loss(TD3, **settings), make_data())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_clipped_shares_by_hand(clip, masked):
    """Entries of Eq. 9's action beyond +-1, whether the loss clips them or not."""
    networks = make_networks(2)
    loss = spread(make_loss(TD3, networks=networks, double=True, clip_approximation=clip))
    data = hand.double_data(60)
    data["diffusion_step"] = torch.arange(60) % (K - 5)  # none of the last five steps
    counts = torch.arange(60) % 3 > 0 if masked else torch.ones(60, dtype=torch.bool)
    if masked:
        data["collector", "mask"] = counts.unsqueeze(-1)
    _, actions = hand.approximations(networks, data, hand.COMMON)
    entries = [[] for _ in range(10)]
    for i in range(60):
        if counts[i]:
            entries[int(data["diffusion_step"][i]) // 5] += (actions[i].abs() > 1).tolist()
    found = clipped_share_by_step(loss, data)
    expected = [sum(part) / len(part) for part in entries[:9]]
    assert found[:9].tolist() == pytest.approx(expected) and found[9].isnan() and not found.requires_grad
    assert len(set(expected)) > 3


def test_clipped_shares_with_drawn_noise_leave_the_input_alone():
    loss, data = make_loss(TD3), make_data([400], draws=False)
    keys, before = set(data.keys(True)), data.clone()
    found = clipped_share_by_step(loss, data, num_bins=4)
    assert (0 <= found).all() and (found <= 1).all() and found[-1] > found[0] and found.shape == (4,)
    assert set(data.keys(True)) == keys and (data == before).all()
    shaped = make_data([8, 50])
    torch.testing.assert_close(clipped_share_by_step(loss, shaped), clipped_share_by_step(loss, shaped.view(-1)))


def test_the_first_action_of_a_chain_counts_and_other_bounds_do():
    networks, data = make_networks(2), make_data([64])
    one, two = (make_loss(TD3, networks=networks, approximation_steps=steps) for steps in (None, 2))
    assert torch.equal(clipped_share_by_step(one, data), clipped_share_by_step(two, data))
    wide = make_loss(TD3, networks=networks, bounds=(-1e6, 1e6))
    assert clipped_share_by_step(wide, data).tolist() == [0] * 10


def test_what_is_not_approximated_is_not_clipped():
    with pytest.raises(ValueError, match="needs guidance_start='data' and an actor with action bounds"):
        clipped_share_by_step(make_loss(TD3, guidance_start="noise"), make_data())
    loss = make_loss(TD3)
    loss._bounds = None
    with pytest.raises(ValueError, match="needs guidance_start='data' and an actor with action bounds"):
        clipped_share_by_step(loss, make_data())


def test_spread_of_q_by_hand():
    qvalues = torch.tensor([[1.0, 2.0, 6.0], [3.0, 2.0, 10.0]])  # means 2, 2, 8; deviations over critics 1, 0, 2
    mean, deviation, disagreement = (float(value) for value in qvalue_spread(qvalues))
    assert (mean, deviation, disagreement) == pytest.approx((4.0, math.sqrt(8), 1.0))
    assert [float(value) for value in qvalue_spread(torch.tensor([[5.0]]))] == [5, 0, 0]
    torch.testing.assert_close(qvalue_spread(qvalues.view(2, 3, 1)), qvalue_spread(qvalues))


LOG3 = math.log(3)


@pytest.mark.parametrize(
    ("advantage", "settings", "at_cap", "effective"),
    [
        ([0.0, LOG3], {"cap": 3.0}, 0.5, 16 / (2 * 10)),  # weights 1 and 3
        ([0.0, LOG3], {"cap": 3.1}, 0.0, 16 / (2 * 10)),
        ([0.0, LOG3], {"cap": 2.0}, 0.5, 9 / (2 * 5)),  # 1 and 2
        ([0.0, LOG3 / 2], {"cap": 9.0, "temperature": 4.0}, 0.5, 100 / (2 * 82)),  # 1 and 9
        ([0.0, LOG3], {"cap": 2.0, "normalization": "mean"}, 0.5, 9 / (2 * 5)),
        ([0.0, LOG3], {"cap": 2.0, "normalization": "softmax"}, 0.0, 16 / (2 * 10)),
        ([0.0, LOG3], {"cap": None}, 0.0, 16 / (2 * 10)),
        ([-1.0, 2.0, 3.0, 9.0], {"cap": 2.0, "function": "step"}, 0.0, 3 / 4),
        ([-1.0, -2.0], {"function": "step"}, 0.0, 0.0),
        ([-1e9, -1e9], {}, 0.0, 0.0),  # all weights underflow
        ([1e9, -1e9, -1e9, -1e9], {}, 0.25, 0.25),
        ([[0.0, 0.0], [0.0, 0.0]], {}, 0.0, 1.0),
    ],
)
def test_saturation_of_weights_by_hand(advantage, settings, at_cap, effective):
    found = weight_saturation(torch.tensor(advantage), **settings)
    assert [float(value) for value in found] == pytest.approx([at_cap, effective], rel=1e-5)


def test_bound_of_q():
    rewards = torch.tensor([[-3.0], [2.0]])
    assert qvalue_bound(rewards, 0.99) == pytest.approx(300)
    assert qvalue_bound(rewards, 0.0) == 3 and qvalue_bound(rewards, 1.0) == math.inf
    steps = torch.tensor([[2], [1]])
    assert qvalue_bound(rewards, 0.5, steps) == pytest.approx(4)  # 3 / (1 - 1/4), 2 / (1 - 1/2)
    assert qvalue_bound(rewards, 1.0, steps) == math.inf
    assert qvalue_bound(rewards, 0.5, steps.flip(0)) == pytest.approx(6)
