"""EDPIQLLoss against the equations written out sample by sample, and against IQLLoss and DiffusionBCLoss."""

from __future__ import annotations

from copy import deepcopy

import hand_computed as hand
import pytest
import torch
from loss_cases import CASES, gradients, make_data, make_loss, make_networks, spread
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import DiffusionBCLoss, IQLLoss, SoftUpdate

(IQL,) = [case for case in CASES if case.name == "iql"]
SEED = 7


def literal_policy_loss(loss, networks, data, **settings) -> Tensor:
    """The policy's loss with f = exp(temperature (Q - V)), Q of the target critics."""
    s = hand.LIKELIHOOD | {"qvalue_aggregation": "min", "pessimism": 1.0} | settings
    targets = loss._modules["target_qvalue_network_params"]
    advantages = []
    for observation, action in zip(data["observation"], data["action"], strict=True):
        with torch.no_grad():
            value = float(networks["value_network"].module(observation))
            values = [float(hand.qvalue(networks, targets, critic, observation, action)) for critic in range(2)]
        mean, spread_of_two = sum(values) / 2, abs(values[0] - values[1]) / 2
        bound = mean - s["pessimism"] * spread_of_two
        aggregated = {"min": min(values), "mean": mean, "lcb": bound}[s["qvalue_aggregation"]]
        advantages.append(aggregated - value)
    torch.manual_seed(SEED)
    extra = torch.randn(data["action"].shape, dtype=torch.float64)
    terms = hand.approximations(networks, data, s)
    return hand.likelihood_loss(loss, data, terms, hand.advantage_factors(advantages, s), extra, s)


def compare(**settings) -> None:
    networks = make_networks(2)
    loss = spread(make_loss(IQL, networks=networks, double=True, reduction="none", **(hand.LIKELIHOOD | settings)))
    data = hand.double_data(7)
    torch.manual_seed(SEED)
    found, metrics = loss.actor_loss(data)
    literal = literal_policy_loss(loss, networks, data, **settings)
    torch.testing.assert_close(found, literal, rtol=1e-9, atol=1e-11)
    assert metrics["advantage_weight"].std() > 0, "all weights agree: this checks nothing"
    expected = gradients(loss, literal.mean())
    for name, gradient in gradients(loss, found.mean()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11)
        assert (gradient is not None) == name.startswith(("actor", "log_deviation"))


@pytest.mark.parametrize("guidance_weighting", ["uniform", "alpha_bar", "snr"])
@pytest.mark.parametrize("action_reduction", ["mean", "sum"])
@pytest.mark.parametrize("likelihood", hand.LIKELIHOODS)
def test_the_policy_loss(likelihood, action_reduction, guidance_weighting):
    compare(likelihood=likelihood, action_reduction=action_reduction, guidance_weighting=guidance_weighting)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_normalization": "mean"},
        {"weight_normalization": "softmax"},
        {"weight_cap": None, "temperature": 0.5},
        {"guidance_steps": (5, 30), "guidance_weighting": "snr"},
        {"likelihood": "approximation", "clip_approximation": True},
        {"likelihood": "log_prob", "deviation": 0.3},
        {"likelihood": "log_prob", "deviation": "learned", "action_reduction": "sum"},
        {"likelihood": "sampled_mse", "deviation": "learned"},
        {"qvalue_aggregation": "mean"},
        {"qvalue_aggregation": "lcb", "pessimism": 2.5},
    ],
    ids=str,
)
def test_the_policy_loss_with(settings):
    compare(**settings)


@pytest.mark.parametrize("aggregation", ["min", "mean", "lcb"])
def test_the_value_loss_by_aggregation(aggregation):
    networks = make_networks(2)
    options = {"qvalue_aggregation": aggregation, "pessimism": 0.3, "expectile": 0.8}
    loss, data = spread(make_loss(IQL, networks=networks, double=True, **options)), hand.double_data(6)
    targets, losses = loss._modules["target_qvalue_network_params"], []
    for observation, action in zip(data["observation"], data["action"], strict=True):
        first, second = (hand.qvalue(networks, targets, critic, observation, action).detach() for critic in range(2))
        mean, half = (first + second) / 2, abs(first - second) / 2
        aggregated = {"min": min(first, second), "mean": mean, "lcb": mean - 0.3 * half}[aggregation]
        difference = aggregated - networks["value_network"].module(observation).squeeze(-1)
        losses.append((0.8 if difference > 0 else 0.2) * difference**2)
    found, _ = loss.value_loss(data)
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradients(loss, found), gradients(loss, expected), rtol=1e-8, atol=1e-11)


def test_guidance_weight_0_is_cloning_and_equals_diffusion_bc():
    """Our diffusion term is the value of TorchRL's DiffusionBCLoss for the same draw."""
    networks = make_networks(2)
    loss = make_loss(IQL, networks=networks, guidance_weight=0.0, action_reduction="mean")
    cloning = DiffusionBCLoss(networks["actor_network"])
    data = make_data([16], draws=False)
    torch.manual_seed(SEED)
    ours, metrics = loss.actor_loss(data)
    torch.manual_seed(SEED)
    theirs = cloning(data)["loss_diffusion_bc"]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(metrics["diffusion_error"].mean(), theirs)
    parameters = list(loss.actor_network_params.values(True, True))
    torch.testing.assert_close(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters))


def test_cloning_does_not_see_broken_critics():
    loss = spread(make_loss(IQL, guidance_weight=0.0))
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        params.data.apply_(lambda value: value.fill_(torch.inf))
    value, metrics = loss.actor_loss(make_data([16]))
    assert metrics["guidance"].isnan().all() and value.isfinite()
    assert all(g is None or g.isfinite().all() for g in gradients(loss, value).values())


@pytest.mark.parametrize("likelihood", hand.LIKELIHOODS)
def test_one_network_call(likelihood):
    networks = make_networks(2)
    loss = make_loss(IQL, networks=networks, likelihood=likelihood)
    calls = []
    networks["actor_network"].module.noise_network.register_forward_hook(lambda *args: calls.append(1))
    loss.actor_loss(make_data())
    assert len(calls) == 1
    loss.value_loss(make_data())
    loss.qvalue_loss(make_data())
    assert len(calls) == 1
    loss(make_data())
    assert len(calls) == 2


@pytest.mark.parametrize("loss_function", ["l2", "l1", "smooth_l1"])
def test_value_and_qvalue_terms_equal_torchrls_iql(loss_function):
    ours = make_loss(IQL, networks=make_networks(2), double=True, expectile=0.8, loss_function=loss_function)
    ours = spread(ours)
    networks = make_networks(2)
    gaussian = TensorDictModule(
        nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), in_keys=["observation"], out_keys=["loc", "scale"]
    )
    actor = ProbabilisticActor(TensorDictSequential(gaussian), in_keys=["loc", "scale"], distribution_class=TanhNormal)
    theirs = IQLLoss(
        actor, networks["qvalue_network"], networks["value_network"], expectile=0.8, loss_function=loss_function
    ).double()
    SoftUpdate(theirs, tau=0.1)
    for name in ("qvalue_network_params", "target_qvalue_network_params", "value_network_params"):
        theirs._modules[name].data.update_(ours._modules[name].data)
    for loss in (ours, theirs):
        loss.make_value_estimator(gamma=0.9)

    data = make_data([32], dtype=torch.float64)
    data["next", "done"] |= torch.rand(32, 1) < 0.3
    for term, params in (("value_loss", "value_network_params"), ("qvalue_loss", "qvalue_network_params")):
        (mine, _), (other, _) = getattr(ours, term)(data), getattr(theirs, term)(data)
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)
        pairs = [(loss._modules[params], value) for loss, value in ((ours, mine), (theirs, other))]
        found, expected = (torch.autograd.grad(value, list(p.values(True, True))) for p, value in pairs)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_a_learned_deviation_is_trained():
    loss = make_loss(IQL, likelihood="log_prob", deviation="learned", guidance_weight=1.0)
    assert any(parameter is loss.log_deviation for parameter in loss.parameters())
    before = loss.log_deviation.detach().clone()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss(make_data())["loss_actor"].backward()
    optimizer.step()
    assert (loss.log_deviation != before).all()
    loss.reset_parameters_recursive()
    assert (loss.log_deviation == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "nll"}, "likelihood must be one of"),
        ({"weight_normalization": "sum"}, "weight_normalization must be one of"),
        ({"expectile": 1.0}, r"expectile must lie in \(0, 1\)"),
        ({"weight_cap": 0.0}, "weight_cap must be positive"),
        ({"deviation": "fixed"}, "deviation must be a positive float"),
        ({"deviation": -1.0}, "deviation must be a positive float"),
        ({"likelihood": "noise", "deviation": "learned"}, "learned deviation has no effect"),
        ({"action_reduction": "max"}, "action_reduction must be one of"),
        ({"scalar_output_mode": "all"}, "scalar_output_mode must be one of"),
        ({"guidance_weighting": "sigma"}, "guidance_weighting must be"),
        ({"qvalue_aggregation": "max"}, "qvalue_aggregation must be"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_loss(IQL, **settings)


def test_an_actor_of_another_kind_is_refused():
    networks = make_networks(2)
    with pytest.raises(TypeError, match="an EDPActor or a torchrl"):
        make_loss(IQL, networks={**networks, "actor_network": deepcopy(networks["value_network"])})
