"""EDPIQLLoss against the equations written out sample by sample, and against IQLLoss and DiffusionBCLoss."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from loss_cases import CASES, K, gradients, make_data, make_loss, make_networks, spread
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import DiffusionBCLoss, IQLLoss, SoftUpdate

(IQL,) = [case for case in CASES if case.name == "iql"]
LIKELIHOODS = ["noise", "elbo", "beta_elbo", "normalized_elbo", "approximation", "log_prob", "sampled_mse"]
PLAIN = {
    "likelihood": "noise",
    "action_reduction": "mean",
    "guidance_weighting": "uniform",
    "guidance_steps": None,
    "guidance_weight": 0.7,
    "temperature": 2.0,
    "weight_cap": 3.0,
    "weight_normalization": None,
    "deviation": 1.0,
    "clip_approximation": False,
}
SEED = 7


def literal_policy_loss(loss, networks, data, **settings) -> Tensor:
    """L_diff + lambda E[w f * -likelihood], one scalar at a time (K = 50, linear schedule)."""
    s = PLAIN | settings
    b = [(1e-4 + i / (K - 1) * (0.02 - 1e-4)) * 1000 / K for i in range(K)]
    abar = [math.prod(1 - b[j] for j in range(i + 1)) for i in range(K)]
    elbo = {  # Eq. 12; the reference's form; the same with mean 1
        "elbo": [b[i] / (2 * (1 - b[i]) * (1 - abar[max(i - 1, 0)])) for i in range(K)],
        "beta_elbo": [b[i] / (2 * (1 - b[i]) * (1 - abar[i])) for i in range(K)],
    }
    elbo["normalized_elbo"] = [w * K / sum(elbo["beta_elbo"]) for w in elbo["beta_elbo"]]
    snr = [min(a / (1 - a), 5) / 5 for a in abar]
    by_step = {"uniform": [1.0] * K, "alpha_bar": abar, "snr": snr}[s["guidance_weighting"]]
    first, last = s["guidance_steps"] or (0, K - 1)
    over = torch.mean if s["action_reduction"] == "mean" else torch.sum

    def qvalue(i: int, critic: int) -> Tensor:
        with loss._modules["target_qvalue_network_params"][critic].to_module(networks["qvalue_network"][0]):
            return networks["qvalue_network"][0].module(data["observation"][i], data["action"][i])

    value = networks["value_network"].module
    factors = []
    with torch.no_grad():
        for i in range(len(data)):
            advantage = min(qvalue(i, 0), qvalue(i, 1)) - value(data["observation"][i])
            factors.append(math.exp(s["temperature"] * float(advantage)))
            if s["weight_cap"] is not None and s["weight_normalization"] != "softmax":
                factors[i] = min(factors[i], s["weight_cap"])
    if s["weight_normalization"] is not None:
        scale = {"mean": len(factors), "softmax": 1}[s["weight_normalization"]] / sum(factors)
        factors = [factor * scale for factor in factors]

    torch.manual_seed(SEED)
    extra = torch.randn(len(data), data["action"].shape[-1], dtype=torch.float64)
    losses = []
    for i in range(len(data)):
        k, a, eps = int(data["diffusion_step"][i]), data["action"][i], data["diffusion_noise"][i]
        noisy = math.sqrt(abar[k]) * a + math.sqrt(1 - abar[k]) * eps  # Eq. 8
        step = torch.tensor(float(k), dtype=torch.float64)
        predicted = networks["actor_network"].module.noise_network(noisy, step, data["observation"][i])
        error = over((eps - predicted) ** 2)  # Eq. 5
        approximated = noisy / math.sqrt(abar[k]) - math.sqrt(1 - abar[k]) / math.sqrt(abar[k]) * predicted  # Eq. 9
        if s["clip_approximation"]:
            approximated = approximated.clamp(-1, 1)
        deviation = (
            loss.log_deviation.exp()
            if s["deviation"] == "learned"
            else torch.tensor(s["deviation"], dtype=torch.float64)
        )
        if s["likelihood"] == "noise":
            negative = error
        elif s["likelihood"] in elbo:
            negative = elbo[s["likelihood"]][k] * error
        elif s["likelihood"] == "approximation":  # Eq. 13
            negative = over((a - approximated) ** 2)
        elif s["likelihood"] == "log_prob":
            negative = over(-torch.distributions.Normal(approximated, deviation).log_prob(a))
        else:
            negative = over((a - (approximated + deviation * extra[i])) ** 2)
        weight = by_step[k] if first <= k <= last else 0.0
        losses.append(error + s["guidance_weight"] * weight * factors[i] * negative)
    return torch.stack(losses)


def compare(**settings) -> None:
    networks = make_networks(2)
    loss = spread(make_loss(IQL, networks=networks, double=True, reduction="none", **(PLAIN | settings)))
    data = make_data([7], dtype=torch.float64)
    data["diffusion_step"][:2] = torch.tensor([0, K - 1])
    torch.manual_seed(SEED)
    found, metrics = loss.actor_loss(data)
    hand = literal_policy_loss(loss, networks, data, **settings)
    torch.testing.assert_close(found, hand, rtol=1e-9, atol=1e-11)
    assert metrics["advantage_weight"].std() > 0, "all weights agree: this checks nothing"
    expected = gradients(loss, hand.mean())
    for name, gradient in gradients(loss, found.mean()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11)
        assert (gradient is not None) == name.startswith(("actor", "log_deviation"))


@pytest.mark.parametrize("guidance_weighting", ["uniform", "alpha_bar", "snr"])
@pytest.mark.parametrize("action_reduction", ["mean", "sum"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
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
    ],
    ids=str,
)
def test_the_policy_loss_with(settings):
    compare(**settings)


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


def test_cloning_does_not_see_infinite_weights():
    loss = make_loss(IQL, guidance_weight=0.0, weight_cap=None, weight_normalization=None, temperature=1e30)
    value, metrics = spread(loss).actor_loss(make_data([16]))
    assert metrics["advantage_weight"].isinf().any() and value.isfinite()
    assert all(g is None or g.isfinite().all() for g in gradients(loss, value).values())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
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
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_loss(IQL, **settings)


def test_an_actor_of_another_kind_is_refused():
    networks = make_networks(2)
    with pytest.raises(TypeError, match="needs an EDPActor"):
        make_loss(IQL, networks={**networks, "actor_network": deepcopy(networks["value_network"])})
