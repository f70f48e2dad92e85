"""Extreme but finite input gives finite losses and gradients, and moderate input the formula's own values."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from loss_cases import CASES, gradients, make_data, make_loss, make_networks, seeded, spread, total
from torch import nn

from torchrl_edp.objectives.functional import StepWeighting, advantage_weight, aggregate_qvalues
from torchrl_edp.objectives.likelihood import Likelihood

IQL, TD3, CRR, CLONING = CASES[:4]
LARGE = 1e6


class Scaled(nn.Module):
    """A critic times a factor, plus an offset."""

    def __init__(self, network: nn.Module, factor: float, offset: float) -> None:
        super().__init__()
        self.network, self.factor, self.offset = network, factor, offset

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.factor * self.network(*inputs) + self.offset


def scaled_networks(factor, offset=0.0):
    """Those of every loss, with critics of this size."""
    networks = make_networks(2)
    for critic in [*networks["qvalue_network"], networks["value_network"]]:
        critic.module = Scaled(critic.module, factor, offset)
    return networks


def on_bounds(data):
    data["action"] = data["action"].sign()


def constant_column(data):
    for key in ("observation", ("next", "observation")):
        data[key][..., 0] = 3.0


def constant_rewards(data):
    data["next", "reward"].fill_(1.0)


def large_rewards(data):
    data["next", "reward"].mul_(LARGE)


def ended(data):
    for key in ("done", "terminated"):
        data["next", key].fill_(True)


def all_zero(data):
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        data[key].zero_()


def noisiest(data):
    data["diffusion_step"].fill_(49)


DATA = [on_bounds, constant_column, constant_rewards, large_rewards, ended, all_zero, noisiest]
# factor and offset of the critics
CRITICS = {
    "usual": (1.0, 0.0),
    "zero": (0.0, 0.0),
    "tiny": (1e-30, 0.0),
    "large": (LARGE, 0.0),
    "far": (1.0, LARGE),
    "low": (1.0, -LARGE),
}
SETTINGS = [
    *((case, {"likelihood": name}) for case in (IQL, CRR) for name in get_args(Likelihood)),
    *((case, {"weight_normalization": name}) for case in (IQL, CRR) for name in (None, "mean", "softmax")),
    *(
        (case, {"weight_cap": None, "weight_normalization": n})
        for case in (IQL, CRR)
        for n in (None, "mean", "softmax")
    ),
    *((case, {"temperature": value, "weight_cap": None}) for case in (IQL, CRR) for value in (1e-3, 1e3, 1e30)),
    *((case, {"temperature": 1e6, "weight_cap": None, "weight_normalization": None}) for case in (IQL, CRR)),
    *((case, {"likelihood": "log_prob", "deviation": value}) for case in (IQL, CRR) for value in (1e-3, "learned")),
    (CRR, {"weight_function": "step"}),
    (CRR, {"baseline": "max", "weight_cap": None, "weight_normalization": None}),
    *((TD3, {"qvalue_normalization": name}) for name in (None, "same", "other")),
    *((TD3, {"guidance_weighting": name, "clip_approximation": False}) for name in get_args(StepWeighting)),
    (TD3, {"guidance_qvalue": "min", "num_backup_actions": 3, "backup_top_k": 2}),
    (TD3, {"guidance_start": "noise", "approximation_steps": 3}),
    *((case, {"qvalue_aggregation": "lcb"}) for case in (IQL, TD3, CRR)),
    *((case, {"loss_function": name}) for case in (IQL, TD3) for name in ("l1", "smooth_l1")),
    (CLONING, {}),
    (CLONING, {"weight_cap": None, "weight_normalization": None, "temperature": 1e6}),
]


def check_finite(loss, data):
    """Losses, metrics, gradients and what clips gradients: their common norm."""
    output = seeded(loss, data)
    assert all(value.isfinite().all() for value in output.values()), output
    found = {name: value for name, value in gradients(loss, total(output)).items() if value is not None}
    assert found and all(value.isfinite().all() for value in found.values())
    assert torch.stack([value.square().sum() for value in found.values()]).sum().isfinite()


@pytest.mark.parametrize("critics", [name for name in CRITICS if name != "usual"])
@pytest.mark.parametrize(("case", "settings"), SETTINGS, ids=[f"{c.name}-{s}" for c, s in SETTINGS])
def test_every_setting_with_extreme_critics(case, settings, critics):
    torch.manual_seed(0)
    loss = spread(make_loss(case, networks=scaled_networks(*CRITICS[critics]), **settings))
    check_finite(loss, make_data([1]))
    data = make_data([6])
    for change in (on_bounds, constant_column, constant_rewards, ended, noisiest):
        change(data)
    check_finite(loss, data)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("change", DATA)
def test_every_loss_with_extreme_data(case, change, rows):
    torch.manual_seed(0)
    loss, data = spread(make_loss(case)), make_data([rows])
    change(data)
    check_finite(loss, data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cap", [None, 100.0])
@pytest.mark.parametrize("normalization", [None, "mean", "softmax"])
def test_no_advantage_overflows(normalization, cap, dtype):
    for advantage in ([LARGE], [LARGE, -LARGE, 0.0], [-LARGE, -LARGE], [0.0, 0.0], [3e38, -3e38, 1.0]):
        for temperature in (0.0, 1e-3, 1.0, 1e6):
            weight = advantage_weight(torch.tensor(advantage, dtype=dtype), temperature, cap, normalization)
            assert weight.isfinite().all() and weight.square().sum().isfinite(), (advantage, temperature)


@pytest.mark.parametrize("cap", [None, 100.0])
def test_moderate_advantages_keep_the_formulas_weights(cap):
    advantage = torch.linspace(-20, 20, 401, dtype=torch.float64)
    limit = math.inf if cap is None else cap
    for temperature in (1e-3, 0.3, 1.0, 10.0):
        exact = (temperature * advantage).exp().clamp_max(limit)
        torch.testing.assert_close(advantage_weight(advantage, temperature, cap), exact, rtol=1e-12, atol=0)
        mean = advantage_weight(advantage, temperature, cap, "mean")
        torch.testing.assert_close(mean, exact / exact.mean(), rtol=1e-12, atol=0)
        uncapped = (temperature * advantage).exp()
        softmax = advantage_weight(advantage, temperature, cap, "softmax")
        torch.testing.assert_close(softmax, uncapped / uncapped.sum(), rtol=1e-12, atol=0)


def test_an_uncapped_weight_ends_at_the_cube_root_of_the_largest_number():
    for dtype in (torch.float32, torch.float64):
        largest = torch.finfo(dtype).max
        edge = math.log(largest) / 3
        weight = advantage_weight(torch.tensor([0.999 * edge, 1.001 * edge, 1e5], dtype=dtype), 1.0, None)
        expected = torch.tensor([largest ** (0.999 / 3), largest ** (1 / 3), largest ** (1 / 3)], dtype=dtype)
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=0)
    # Normalised weights are relative: nothing ends there.
    pair = torch.tensor([1e5, 1e5 + 1], dtype=torch.float64)
    expected = torch.tensor([2 / (1 + math.e), 2 * math.e / (1 + math.e)], dtype=torch.float64)
    torch.testing.assert_close(advantage_weight(pair, 1.0, None, "mean"), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, LARGE, 1e15])
def test_the_lower_bound_of_critics_of_any_size(size):
    qvalues = (size * torch.tensor([[1.0, 1.0], [1.0, -1.0]])).requires_grad_()
    bound = aggregate_qvalues(qvalues, "lcb", 2.0)
    torch.testing.assert_close(bound, torch.tensor([size, -2 * size]), rtol=1e-6, atol=1e-18)
    (slope,) = torch.autograd.grad(bound.sum(), qvalues)
    assert slope.isfinite().all()


def test_the_lambda_of_td3_in_float64_is_alpha_over_the_mean():
    for factor in (1e-3, 1.0, LARGE):
        networks = scaled_networks(factor)
        loss = spread(make_loss(TD3, networks=networks, double=True, guidance_qvalue="mean"))
        output = seeded(loss, make_data([1], dtype=torch.float64))  # one row: the mean is its value
        expected = loss.alpha / output["state_action_value_actor"].abs()
        torch.testing.assert_close(output["lmbd"], expected, rtol=1e-12, atol=0)
