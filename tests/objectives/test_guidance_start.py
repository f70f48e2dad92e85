"""Where the guided action comes from: one call, a chain from the data, or the whole way from noise (Diffusion-QL)."""

from __future__ import annotations

import math

import hand_computed as hand
import pytest
import torch
from loss_cases import CASES, OBS, A, K, gradients, make_loss, make_networks, spread
from torch.autograd.graph import saved_tensors_hooks

from torchrl_edp import EDPActor, NoiseSchedule
from torchrl_edp.modules import NoisePredictionMLP

IQL, TD3, CRR = (next(case for case in CASES if case.name == name) for name in ("iql", "td3", "crr"))
close = torch.testing.assert_close


def losses_with(networks, **settings):
    return spread(make_loss(TD3, networks=networks, double=True, **settings))


# --- calls of the noise network


@pytest.mark.parametrize("case", [IQL, TD3, CRR], ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({}, 1),
        ({"approximation_steps": 1}, 1),
        ({"approximation_steps": 4}, 4),
        ({"guidance_start": "noise"}, 15 + 1),
        ({"guidance_start": "noise", "approximation_steps": 6}, 6 + 1),
        ({"guidance_start": "noise", "solver": "ddpm"}, K + 1),
        ({"guidance_start": "noise", "guidance_weight": 0.0}, 1),
        ({"approximation_steps": 4, "guidance_weight": 0.0}, 1),
        ({"guidance_weight": 0.0}, 1),
    ],
    ids=str,
)
def test_network_calls_per_policy_update(case, settings, calls):
    networks, settings = make_networks(2), dict(settings)
    if "solver" in settings:
        networks["actor_network"].module.solver = settings.pop("solver")
        networks["actor_network"].module.num_calls = None
    if case is not TD3:
        settings["likelihood"] = "approximation"
    loss = make_loss(case, networks=networks, double=True, **settings)
    made = []
    # Its last layer runs once in every call, also in those that share the first layer's work.
    networks["actor_network"].module.noise_network.net[-1].register_forward_hook(lambda *args: made.append(1))
    value, _ = loss.actor_loss(hand.double_data(4))
    solver_calls = networks["actor_network"].module.num_calls or K
    assert len(made) == calls + (solver_calls if case is CRR else 0), "CRR also samples its baseline"
    reached = {name.split(".")[0] for name, g in gradients(loss, value).items() if g is not None}
    assert reached == {"actor_network_params"}


@pytest.mark.parametrize("case", [IQL, CRR], ids=lambda case: case.name)
@pytest.mark.parametrize("chain", [{"guidance_start": "noise"}, {"approximation_steps": 2}], ids=str)
@pytest.mark.parametrize("likelihood", hand.LIKELIHOODS)
def test_a_likelihood_without_the_action_refuses_chains(case, chain, likelihood):
    if likelihood in ("approximation", "log_prob", "sampled_mse"):
        assert make_loss(case, likelihood=likelihood, **chain).likelihood == likelihood
        return
    with pytest.raises(ValueError, match="does not train through the approximated action"):
        make_loss(case, likelihood=likelihood, **chain)


# --- chains from the data


def literal_chain(networks, data, calls, clipped):
    """DDIM from every sample's own step, in ``calls`` steps of equal length (rounded up)."""
    actions = []
    for i in range(len(data)):
        k, a, eps = int(data["diffusion_step"][i]), data["action"][i], data["diffusion_noise"][i]
        x = math.sqrt(hand.ABARS[k]) * a + math.sqrt(1 - hand.ABARS[k]) * eps
        for call in range(calls):
            step = math.ceil((k + 1) * (calls - call) / calls) - 1
            if call:
                x = math.sqrt(hand.ABARS[step]) * clean + math.sqrt(1 - hand.ABARS[step]) * noise  # noqa: F821
            keep, rest = math.sqrt(hand.ABARS[step]), math.sqrt(1 - hand.ABARS[step])
            noise = hand.predict(networks, x, step, data["observation"][i])
            clean = (x - rest * noise) / keep
            if clipped:
                clean = clean.clamp(-1, 1)
                noise = (x - keep * clean) / rest
        actions.append(clean)
    return torch.stack(actions)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("calls", [1, 2, 3, 7])
def test_a_chain_from_the_data(calls, clipped):
    networks = make_networks(2)
    loss = losses_with(networks, approximation_steps=calls, clip_approximation=clipped)
    data = hand.double_data(6)
    found, literal = loss._diffuse(data).approximated_action, literal_chain(networks, data, calls, clipped)
    close(found, literal, rtol=1e-7, atol=1e-9)
    direction = torch.randn_like(found)
    expected = gradients(loss, (literal * direction).sum())
    for name, gradient in gradients(loss, (found * direction).sum()).items():
        close(gradient, expected[name], rtol=1e-5, atol=1e-7)


# --- Diffusion-QL


def diffusion_ql_loss(networks, params, data, head, steps, weight, step_noise):
    """The policy's loss of https://arxiv.org/abs/2208.06193: cloning + weight * -mean Q_i / mean |Q_j|."""
    betas = torch.linspace(1e-4 * 1000 / steps, 0.02 * 1000 / steps, steps, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    network, state = networks["actor_network"].module.noise_network, data["observation"]

    def noise_at(x, t):
        return network(x, t.to(x.dtype).expand(len(x)), state)

    t = data["diffusion_step"]
    noisy = abar[t, None].sqrt() * data["action"] + (1 - abar[t, None]).sqrt() * data["diffusion_noise"]
    cloning = (noise_at(noisy, t) - data["diffusion_noise"]).square().mean()
    x = data["initial_noise"]
    for i in reversed(range(steps)):
        clean = (1 / abar[i]).sqrt() * x - (1 / abar[i] - 1).sqrt() * noise_at(x, torch.tensor(i))
        clean = clean.clamp(-1, 1)
        mean = betas[i] * before[i].sqrt() / (1 - abar[i]) * clean
        mean = mean + (1 - before[i]) * (1 - betas[i]).sqrt() / (1 - abar[i]) * x
        variance = betas[i] * (1 - before[i]) / (1 - abar[i])
        x = mean + (variance.sqrt() * step_noise[steps - 1 - i] if i > 0 else 0)

    def values(critic):
        critics = networks["qvalue_network"][0]
        with params[critic].to_module(critics):
            return critics.module(state, x)

    return cloning - weight * values(head).mean() / values(1 - head).abs().mean().detach()


def test_diffusion_ql():
    steps, weight, networks = 25, 0.7, make_networks(2)
    network = NoisePredictionMLP(OBS, A, hidden_sizes=(8,))
    actor = EDPActor(network, schedule=NoiseSchedule(steps), solver="ddpm", num_calls=None)
    networks["actor_network"] = actor
    loss = losses_with(
        networks, guidance_start="noise", qvalue_normalization="other", alpha=weight, guidance_weight=1.0
    )
    data = hand.double_data(6)
    data["diffusion_step"] %= steps
    data["initial_noise"] = torch.randn(6, A, dtype=torch.float64)
    heads = set()
    for seed in range(5):
        torch.manual_seed(seed)
        found, _ = loss.actor_loss(data)
        torch.manual_seed(seed)
        step_noise = [torch.randn(6, A, dtype=torch.float64) for _ in range(steps - 1)]
        params = loss.qvalue_network_params.detach()
        literal = [diffusion_ql_loss(networks, params, data, head, steps, weight, step_noise) for head in range(2)]
        head = int(abs(found - literal[1]) < abs(found - literal[0]))
        heads.add(head)
        close(found, literal[head], rtol=1e-6, atol=0)
        expected = gradients(loss, literal[head])
        for name, gradient in gradients(loss, found).items():
            close(gradient, expected[name], rtol=1e-6, atol=1e-9)
        cloning = gradients(loss, diffusion_ql_loss(networks, params, data, head, steps, 0.0, step_noise))
        shift = max((expected[name] - g).abs().max() for name, g in cloning.items() if g is not None)
        assert shift > 1e-3, "the chain carries no gradient"
    assert heads == {0, 1}


def test_guidance_from_noise_has_no_weight_by_step():
    data = hand.double_data(4)
    data["initial_noise"] = torch.randn(4, A, dtype=torch.float64)
    settings = {"guidance_start": "noise", "guidance_qvalue": "mean"}
    state = make_loss(TD3, double=True).state_dict()
    values = []
    for weighting in ("uniform", "alpha_bar"):
        loss = make_loss(TD3, double=True, guidance_weighting=weighting, **settings)
        loss.load_state_dict(state)
        values.append(loss.actor_loss(data)[0])
    close(*values)


def test_bounds_of_the_loss_hold_for_actions_from_noise():
    loss = make_loss(TD3, guidance_start="noise", bounds=(-0.1, 0.1), double=True)
    action = loss._diffuse(hand.double_data(8)).approximated_action.detach()
    assert action.abs().amax() == pytest.approx(0.1)


# --- checkpointing


def saved_bytes(compute):
    """What ``compute`` keeps for the backward pass."""
    sizes = {}
    with saved_tensors_hooks(
        lambda t: sizes.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
    ):
        value = compute()
    return value, sum(sizes.values())


@pytest.mark.parametrize(
    "settings", [{"approximation_steps": 50}, {"guidance_start": "noise", "approximation_steps": 50}]
)
def test_checkpointing_changes_no_gradient_and_saves_memory(settings, monkeypatch):
    networks = make_networks(2)
    networks["actor_network"] = EDPActor(
        NoisePredictionMLP(OBS, A, hidden_sizes=(64, 64)), schedule=NoiseSchedule(K, "vp"), solver="ddim"
    )
    networks["actor_network"].module.prediction = "velocity"
    loss = make_loss(TD3, networks=networks, double=True, guidance_qvalue="mean", **settings)
    data = hand.double_data(16)
    data["initial_noise"] = torch.randn(16, A, dtype=torch.float64)
    thrifty, few = saved_bytes(lambda: loss.actor_loss(data)[0])
    monkeypatch.setattr(loss, "_checkpointed_network", loss._network)
    plain, many = saved_bytes(lambda: loss.actor_loss(data)[0])
    close(thrifty, plain, rtol=0, atol=0)
    close(gradients(loss, thrifty), gradients(loss, plain), rtol=1e-12, atol=1e-14)
    assert few < many / 5
