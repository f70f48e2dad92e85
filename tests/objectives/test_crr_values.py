"""EDPCRRLoss against the equations written out sample by sample."""

from __future__ import annotations

import hand_computed as hand
import pytest
import torch
from loss_cases import CASES, A, K, gradients, make_loss, make_networks, spread

from torchrl_edp import EDPTD3Loss

(CRR,) = [case for case in CASES if case.name == "crr"]
PLAIN = hand.LIKELIHOOD | {
    "weight_function": "exp",
    "baseline": "mean",
    "num_action_samples": 3,
    "sample_from": "approximation",
    "sample_deviation": 0.8,
    "qvalue_aggregation": "min",
    "pessimism": 1.0,
    "clip_samples": False,
}
close = torch.testing.assert_close
SEED = 5


def aggregate(values, s) -> float:
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return {"min": min(values), "mean": mean, "lcb": mean - s["pessimism"] * deviation}[s["qvalue_aggregation"]]


def ddim_sample(networks, action, observation) -> torch.Tensor:
    """One action [A] of the online policy by DDIM's K steps (Eq. 12 of arXiv 2010.02502 without noise), clipped."""
    for k in reversed(range(K)):
        abar, before = hand.ABARS[k], hand.ABARS[k - 1] if k else 1.0
        noise = hand.predict(networks, action, k, observation).detach()
        clean = ((action - (1 - abar) ** 0.5 * noise) / abar**0.5).clamp(-1, 1)
        noise = (action - abar**0.5 * clean) / (1 - abar) ** 0.5  # that of the clipped action
        action = before**0.5 * clean + (1 - before) ** 0.5 * noise
    return action.clamp(-1, 1)


def literal_policy_loss(loss, networks, data, **settings) -> torch.Tensor:
    """f = exp(temperature (Q(s, a) - mean_i Q(s, a_i))), min inside (Eq. 21).

    The a_i lie around the approximated action, or are the policy's from the noise drawn or given.
    """
    s = PLAIN | settings
    errors, centers = hand.approximations(networks, data, s)
    torch.manual_seed(SEED)
    noise = torch.randn(s["num_action_samples"], len(data), A, dtype=torch.float64)
    if "initial_noise" in data and s["sample_from"] == "policy":
        noise = data["initial_noise"].view(len(data), -1, A).transpose(0, 1).expand_as(noise)
    extra = torch.randn(len(data), A, dtype=torch.float64)
    params, advantages = loss.qvalue_network_params, []

    def value(i, action) -> float:
        critics = range(loss.num_qvalue_nets)
        values = [hand.qvalue(networks, params, critic, data["observation"][i], action).detach() for critic in critics]
        return aggregate([float(value) for value in values], s)

    for i, center in enumerate(centers):
        if s["sample_from"] == "policy":
            samples = [ddim_sample(networks, start, data["observation"][i]) for start in noise[:, i]]
        else:
            samples = [center + s["sample_deviation"] * start for start in noise[:, i]]
            if s["clip_samples"]:
                samples = [sample.clamp(-1, 1) for sample in samples]
        others = [value(i, sample) for sample in samples]
        baseline = sum(others) / len(others) if s["baseline"] == "mean" else max(others)
        advantages.append(value(i, data["action"][i]) - baseline)
    factors = hand.advantage_factors(advantages, s)
    return hand.likelihood_loss(loss, data, (errors, centers), factors, extra, s)


def compare(num_critics=2, given: tuple[int, ...] | None = None, **settings) -> None:
    """``given``: shape of the noise in the data, per state, that the policy's samples start from; else it is drawn."""
    networks = make_networks(num_critics)
    sampler = networks["actor_network"].module
    sampler.solver, sampler.num_calls = "ddim", K
    loss = make_loss(CRR, num_critics, networks=networks, double=True, reduction="none", **(PLAIN | settings))
    spread(loss).qvalue_network_params.data.mul_(1.5)
    data = hand.double_data(7)
    del data["initial_noise"]
    if given is not None:
        data["initial_noise"] = torch.randn(7, *given, A, dtype=torch.float64)
    torch.manual_seed(SEED)
    found, metrics = loss.actor_loss(data)
    literal = literal_policy_loss(loss, networks, data, **settings)
    close(found, literal, rtol=1e-8, atol=1e-10)
    assert metrics["advantage_weight"].std() > 0, "all weights agree: this checks nothing"
    expected = gradients(loss, literal.mean())
    for name, gradient in gradients(loss, found.mean()).items():
        close(gradient, expected[name], rtol=1e-7, atol=1e-10)
        assert (gradient is not None) == name.startswith(("actor", "log_deviation"))


@pytest.mark.parametrize("likelihood", hand.LIKELIHOODS)
@pytest.mark.parametrize("action_reduction", ["mean", "sum"])
def test_the_policy_loss(likelihood, action_reduction):
    compare(likelihood=likelihood, action_reduction=action_reduction, guidance_weighting="snr")


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_normalization": "mean"},
        {"weight_normalization": "softmax"},
        {"weight_cap": None, "temperature": 0.5},
        {"weight_cap": 1.1},
        {"weight_cap": 0.9},
        {"weight_function": "step"},
        {"weight_function": "step", "weight_normalization": "mean"},
        {"weight_function": "step", "weight_normalization": "softmax"},
        {"baseline": "max"},
        {"sample_deviation": 0.0},
        {"num_action_samples": 1},
        {"clip_approximation": True, "likelihood": "approximation"},
        {"clip_samples": True},
        {"guidance_steps": (10, 40), "guidance_weighting": "alpha_bar"},
        {"likelihood": "log_prob", "deviation": "learned"},
        {"likelihood": "sampled_mse", "deviation": 0.3},
        {"qvalue_aggregation": "mean"},
        {"num_critics": 3, "qvalue_aggregation": "lcb", "pessimism": 0.5},
    ],
    ids=str,
)
def test_the_policy_loss_with(settings):
    compare(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_action_samples": 1, "weight_normalization": "mean"},
        {"baseline": "max", "likelihood": "approximation", "clip_approximation": True},
        {"given": ()},
        {"given": (3,), "temperature": 1.0},
    ],
    ids=str,
)
def test_the_policy_loss_with_samples_of_the_policy(settings):
    compare(sample_from="policy", sample_deviation=1.0, **settings)


def test_noise_for_another_number_of_samples_is_refused():
    loss, data = make_loss(CRR, double=True, num_action_samples=3), hand.double_data(4)
    data["initial_noise"] = torch.zeros(4, 2, A, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"Expected initial noise for 3 actions per state, .* got \[4, 2, 2\]"):
        loss.actor_loss(data)


def test_the_minimum_over_critics_is_inside_both_terms():
    """Q1 = a, Q2 = -a: the values are -|a|, so an action beats those around it by its distance to 0 alone."""
    networks = make_networks(2)
    loss = make_loss(CRR, networks=networks, double=True, sample_from="approximation", sample_deviation=0.0)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss._qvalues_of_several = lambda data, params, action: sign.view(2, *[1] * (action.ndim - 1)) * action[..., 0]
    data = hand.double_data(6)
    terms = loss._diffuse(data)
    expected = terms.approximated_action[:, 0].abs() - data["action"][:, 0].abs()
    close(loss._advantage(data, terms), expected.detach())


@pytest.mark.parametrize("aggregation", ["min", "mean", "lcb"])
@pytest.mark.parametrize("solver", ["ddpm", "dpm_solver"])
def test_the_critics_loss_is_that_of_td3(solver, aggregation):
    """EDPTD3Loss's is compared with hand computation."""
    networks = make_networks(2)
    sampler = networks["actor_network"].module
    sampler.solver, sampler.num_calls, sampler.prediction = solver, None if solver == "ddpm" else 6, "velocity"
    options = {"num_backup_actions": 3, "backup_top_k": 2, "qvalue_aggregation": aggregation, "reduction": "none"}
    ours = spread(make_loss(CRR, networks=networks, double=True, **options))
    theirs = EDPTD3Loss(networks["actor_network"], networks["qvalue_network"], **options).double()
    for name in ("qvalue_network_params", "target_qvalue_network_params", "target_actor_network_params"):
        theirs._modules[name].data.update_(ours._modules[name].data)
    data, results = hand.double_data(6), []
    del data["next", "initial_noise"]
    for loss in (ours, theirs):
        loss._has_update_associated = dict.fromkeys(loss._has_update_associated, True)
        torch.manual_seed(SEED)
        results.append(loss.qvalue_loss(data))
    (mine, metrics), (other, expected) = results
    close(mine, other, rtol=1e-12, atol=0)
    close(metrics, expected, rtol=1e-12, atol=0)
    reached = {name.split(".")[0] for name, g in gradients(ours, mine.sum()).items() if g is not None}
    assert reached == {"qvalue_network_params"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_function": "relu"}, "weight_function must be one of"),
        ({"baseline": "median"}, "baseline must be one of"),
        ({"sample_from": "data"}, "sample_from must be one of"),
        ({"sample_deviation": 0.5}, "sample_deviation has no effect on samples of the policy"),
        ({"num_action_samples": 0}, r"num_action_samples must lie in \[1, inf\), got 0"),
        ({"num_backup_actions": 1, "backup_top_k": 2}, "backup_top_k must lie in"),
        ({"likelihood": "nll"}, "likelihood must be one of"),
        ({"weight_normalization": "sum"}, "weight_normalization must be one of"),
        ({"weight_cap": -1.0}, "weight_cap must be positive"),
        ({"deviation": "learned"}, "learned deviation has no effect"),
        ({"deviation": 0.0}, "deviation must be a positive float"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_loss(CRR, **settings)


def test_gamma_belongs_to_the_value_estimator():
    with pytest.raises(TypeError, match="make_value_estimator"):
        make_loss(CRR, gamma=0.9)
