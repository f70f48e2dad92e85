from __future__ import annotations

import hand_computed as hand
import pytest
import torch
from loss_cases import CASES, K, make_data, make_loss, make_networks, spread

from torchrl_edp.objectives import guidance_share_by_step

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
