"""Several seeds in one loss: each is what it would be alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from loss_cases import (
    CASES,
    OBS,
    WEIGHTS,
    WIDTHS,
    WITH_VALUE,
    A,
    K,
    LossCase,
    make_data,
    make_loss,
    make_networks,
    seeded,
    spread,
)
from torchrl.objectives import SoftUpdate, ValueEstimators

from torchrl_edp import EDPActor, NoiseSchedule
from torchrl_edp.configs.losses import EDPIQLLossConfig
from torchrl_edp.modules import NoisePredictionMLP
from torchrl_edp.objectives import EDPIQLLoss, MultiSeedLoss

LEARNED = {"likelihood": "log_prob", "deviation": "learned"}  # a parameter beside the networks'
ALL = [
    *CASES,
    LossCase("learned", EDPIQLLoss, EDPIQLLossConfig, WITH_VALUE, WEIGHTS, settings=LEARNED),
    replace(CASES[1], name="chain", settings={"guidance_start": "noise", "approximation_steps": 4}),
    replace(CASES[1], name="steps", settings={"approximation_steps": 3}),
]
every_case = pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
IQL = CASES[0]


FIRST = ("module", "net", "0", "weight")


def changed_actor(**options) -> EDPActor:
    return EDPActor(NoisePredictionMLP(OBS, A, hidden_sizes=WIDTHS), **{"schedule": NoiseSchedule(K)} | options)


def several(make, seeds) -> MultiSeedLoss:
    loss = MultiSeedLoss(make, seeds)
    SoftUpdate(loss, tau=0.25)
    return loss


def spread_apart(case, seeds) -> MultiSeedLoss:
    """In double precision, targets away from what they follow."""
    loss = several(lambda: make_loss(case, double=True), seeds)
    for own in loss.losses:
        spread(own)
    return loss


def renamed(loss, reward):
    loss.set_keys(reward=reward)
    return loss


def gradients(total, loss):
    parameters = dict(loss.named_parameters())
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {name: value for name, value in zip(parameters, found, strict=True) if value is not None}


@every_case
def test_one_seed_is_the_loss_itself(case):
    """With the same draws, those inside included: outputs, terms, gradients."""
    loss, data = spread_apart(case, [3]), make_data(dtype=torch.float64, draws=False)
    alone = loss.losses[0]
    ours, expected = seeded(loss, data.unsqueeze(0).clone()), seeded(alone, data.clone())
    assert set(ours.keys()) == set(expected.keys())
    for key, value in expected.items():
        torch.testing.assert_close(ours[key][0], value, rtol=1e-12, atol=1e-12, msg=key)
    for method in case.methods:
        total, metrics = seeded(getattr(loss, method), data.unsqueeze(0).clone())
        value, other = seeded(getattr(alone, method), data.clone())
        torch.testing.assert_close(total[0], value, rtol=1e-12, atol=1e-12, msg=method)
        assert set(metrics) == set(other)
        found = gradients(total.sum(), loss)
        for name, gradient in gradients(value, alone).items():
            torch.testing.assert_close(found[name][0], gradient, rtol=1e-10, atol=1e-12, msg=f"{method}: {name}")


def test_every_seed_has_its_own_parameters_and_batch():
    loss = spread_apart(IQL, range(3))
    data = make_data((3, 4), dtype=torch.float64)
    output = loss(data.clone())
    for seed, alone in enumerate(loss.losses):
        for key, value in alone(data[seed].clone()).items():
            torch.testing.assert_close(output[key][seed], value, rtol=1e-12, atol=1e-12, msg=f"{seed}: {key}")
    for name, gradient in gradients(output["loss_actor"][1] + output["loss_qvalue"][1], loss).items():
        assert gradient[1].abs().sum() > 0 and not gradient[[0, 2]].any(), name


def test_seeds_draw_apart():
    loss = several(lambda: make_loss(IQL), [0, 0])
    data = make_data((1, 4), draws=False).expand(2, 4).contiguous()
    output = loss(data)
    assert output["diffusion_error"][0] != output["diffusion_error"][1]
    assert output["loss_value"][0] == output["loss_value"][1]  # in which nothing is drawn


def test_seeds_are_those_of_torch_s_generator():
    def make():
        return make_loss(IQL)

    torch.manual_seed(9)
    before = torch.get_rng_state()
    loss = MultiSeedLoss(make, [4, 7])
    assert torch.equal(torch.get_rng_state(), before)
    for own, seed in zip(loss.losses, (4, 7), strict=True):
        torch.manual_seed(seed)
        for (name, value), expected in zip(own.named_parameters(), make().parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=0, msg=name)


@every_case
def test_losses_are_views(case):
    """A step of the stacked parameters and targets is one of every seed's, after a change of precision, too."""
    loss = MultiSeedLoss(lambda: make_loss(case), range(2)).double()
    updater = SoftUpdate(loss, tau=0.25)
    stacked = dict(loss.named_parameters())
    for parameter in stacked.values():
        parameter.data.mul_(1.5)
    updater.step()
    assert any(name.startswith("target_") for name, _ in loss.named_buffers())
    stacked |= {name: value for name, value in loss.named_buffers() if name.startswith("target_")}
    for seed, own in enumerate(loss.losses):
        tensors = {**dict(own.named_parameters()), **dict(own.named_buffers())}
        for name, value in stacked.items():
            assert tensors[name].dtype == torch.float64 and torch.equal(tensors[name], value[seed]), name


def test_what_is_frozen_stays_so():
    """Parameters without gradients and a network's buffers are stacked as what they are."""

    def make():
        loss = make_loss(IQL)
        loss.actor_network_params.get(frozen).requires_grad_(False)
        return loss

    frozen = next(iter(make_loss(IQL).actor_network_params.keys(True, True)))
    stacked = several(make, range(2))
    assert not stacked.actor_network_params.get(frozen).requires_grad
    names = [name for name, _ in stacked.losses[0].named_parameters()]
    assert [name for name, _ in stacked.named_parameters()] == names


def test_a_copy_has_losses_of_its_own():
    loss = several(lambda: make_loss(IQL), range(2))
    other = copy.deepcopy(loss)
    for parameter in other.parameters():
        parameter.data.add_(1.0)
    for name, value in other.named_parameters():
        for seed in range(2):
            assert torch.equal(dict(other.losses[seed].named_parameters())[name], value[seed])
            assert not torch.equal(dict(loss.losses[seed].named_parameters())[name], value[seed])


def test_state_dict():
    first, second = (MultiSeedLoss(lambda: make_loss(IQL), seeds) for seeds in ([0, 1], [2, 3]))
    second.load_state_dict(first.state_dict())
    for own, other in zip(first.losses, second.losses, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))


def test_bounds_of_every_dimension():
    bounds = torch.tensor([-0.1, -0.2]), torch.tensor([0.1, 0.2])
    loss = several(lambda: make_loss(CASES[1], bounds=bounds, guidance_qvalue="min"), [0, 1])
    data = make_data((2, 4))
    for seed, alone in enumerate(loss.losses):
        for key, value in alone(data[seed].clone()).items():
            torch.testing.assert_close(seeded(loss, data)[key][seed], value, msg=key)


def test_parameters_are_drawn_anew_as_those_of_one():
    loss = several(lambda: make_loss(IQL), [0, 1])
    before = {name: value.clone() for name, value in loss.named_parameters()}
    torch.manual_seed(5)
    loss.reset_parameters_recursive()
    alone = [make_loss(IQL) for _ in range(2)]
    torch.manual_seed(5)
    for one in alone:
        one.reset_parameters_recursive()
    for name, value in loss.named_parameters():
        assert not torch.equal(value, before[name])
        assert torch.equal(value, torch.stack([dict(one.named_parameters())[name] for one in alone])), name
    assert torch.equal(*[getattr(loss, f"{side}qvalue_network_params").get(FIRST).data for side in ("", "target_")])


def test_refusals():
    networks = make_networks(2)
    for change in ({"schedule": NoiseSchedule(K + 1)}, {"solver_kwargs": {"order": 2}}):
        actors = iter([make_networks()["actor_network"], changed_actor(**change)])
        with pytest.raises(ValueError, match="same settings at every call, got actor's"):
            MultiSeedLoss(lambda: make_loss(IQL, networks={**make_networks(2), "actor_network": next(actors)}), [0, 1])  # noqa: B023
    with pytest.raises(ValueError, match="at least one seed"):
        MultiSeedLoss(lambda: make_loss(IQL), [])
    with pytest.raises(ValueError, match="share parameters"):
        MultiSeedLoss(lambda: make_loss(IQL, networks=networks), [0, 1])
    weights = iter([1.0, 100.0])
    with pytest.raises(ValueError, match=r"same settings at every call, got guidance_weight 1.0 and 100.0\."):
        MultiSeedLoss(lambda: make_loss(IQL, guidance_weight=next(weights)), [0, 1])
    names = iter(["reward", "other"])
    with pytest.raises(ValueError, match="same settings at every call, got keys"):
        MultiSeedLoss(lambda: renamed(make_loss(IQL), next(names)), [0, 1])
    with pytest.raises(ValueError, match="got TDLambdaEstimator and None"):
        MultiSeedLoss(lambda: make_loss(IQL).make_value_estimator(ValueEstimators.TDLambda), [0])
    with pytest.raises(ValueError, match="got TD0Estimator and 'non_tensor'"):
        MultiSeedLoss(lambda: make_loss(IQL, reduction="none", scalar_output_mode="non_tensor"), [0])
    with pytest.raises(TypeError, match="EDP loss, got Linear"):
        MultiSeedLoss(lambda: torch.nn.Linear(2, 2), [0])
    with pytest.raises(ValueError, match=r"batch of every seed, \[2, ...\], got batch size \[3, 4\]"):
        several(lambda: make_loss(IQL), [0, 1])(make_data((3, 4)))


@pytest.mark.parametrize("method", ["set_keys", "make_value_estimator", "select_out_keys"])
def test_what_would_have_no_effect_is_refused(method):
    with pytest.raises(RuntimeError, match=f"{method} has no effect .* Call it in make_loss"):
        getattr(several(lambda: make_loss(IQL), [0, 1]), method)()


def test_outputs_selected_by_make_loss():
    def selected():
        loss = make_loss(IQL)
        loss.select_out_keys("loss_actor")
        return loss

    assert list(several(selected, [0, 1])(make_data((2, 4))).keys()) == ["loss_actor"]
