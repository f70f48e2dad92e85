"""EDPTD3Loss against the equations written out sample by sample, and against TorchRL's TD3BCLoss."""

from __future__ import annotations

import hand_computed as hand
import pytest
import torch
from loss_cases import CASES, A, K, gradients, make_loss, make_networks, spread
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded, Categorical, Composite
from torchrl.objectives import SoftUpdate, TD3BCLoss

from torchrl_edp.diffusion import ddim, ddpm, dpm_solver, dpm_solver_pp

(TD3,) = [case for case in CASES if case.name == "td3"]
PLAIN = hand.COMMON | {"alpha": 2.5, "guidance_qvalue": "random", "qvalue_normalization": "same"}
close = torch.testing.assert_close


def make(num_critics=2, **settings):
    networks = make_networks(num_critics)
    return networks, spread(make_loss(TD3, num_critics, networks=networks, double=True, **settings))


def literal_policy_loss(loss, networks, data, head, mask, **settings) -> torch.Tensor:
    """L_diff - lambda w alpha Q(s, approximated action) / mean |Q|; ``head`` guides if one does."""
    s = PLAIN | settings
    errors, actions = hand.approximations(networks, data, s)
    params, count = loss.qvalue_network_params.detach(), loss.num_qvalue_nets
    values = [  # [samples][critics]
        [hand.qvalue(networks, params, critic, data["observation"][i], action) for critic in range(count)]
        for i, action in enumerate(actions)
    ]
    pick = {"random": lambda row: row[head], "mean": lambda row: sum(row) / count, "min": lambda row: min(row)}
    guides = [pick[s["guidance_qvalue"]](row) for row in values]
    sources = [row[(head + 1) % count] for row in values] if s["qvalue_normalization"] == "other" else guides
    sizes = [abs(float(source.detach())) for source, counts in zip(sources, mask, strict=True) if counts]
    scale = s["alpha"] if s["qvalue_normalization"] is None else s["alpha"] * len(sizes) / sum(sizes)
    losses = []
    for i, (error, guide) in enumerate(zip(errors, guides, strict=True)):
        weight = s["guidance_weight"] * hand.step_weight(int(data["diffusion_step"][i]), s)
        losses.append(error - weight * scale * guide if mask[i] else 0 * error)
    return torch.stack(losses)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_qvalue": "mean"},
        {"guidance_qvalue": "min", "qvalue_normalization": None},
        {"qvalue_normalization": "other", "alpha": 1.0},
        {"qvalue_normalization": None, "alpha": 0.3},
        {"guidance_weight": 3.0, "action_reduction": "sum"},
        {"guidance_weighting": "alpha_bar"},
        {"guidance_weighting": "snr", "guidance_steps": (0, 20)},
        {"clip_approximation": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_policy_loss(settings, masked):
    networks, loss = make(reduction="none", **(PLAIN | settings))
    data = hand.double_data(6)
    mask = [not masked or i not in (1, 4) for i in range(6)]
    if masked:
        data["collector", "mask"] = torch.tensor(mask).unsqueeze(-1)
    literal = [literal_policy_loss(loss, networks, data, head, mask, **settings) for head in range(2)]
    expected = [gradients(loss, values.mean()) for values in literal]
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        found, _ = loss.actor_loss(data)
        head = int((found - literal[1]).norm() < (found - literal[0]).norm())
        seen.add(head)
        close(found, literal[head], rtol=1e-9, atol=1e-11)
        for name, gradient in gradients(loss, found.mean()).items():
            close(gradient, expected[head][name], rtol=1e-8, atol=1e-11)
            assert (gradient is not None) == name.startswith("actor")
    assert seen == ({0, 1} if (PLAIN | settings)["guidance_qvalue"] == "random" else {0})


def test_the_gradient_of_guidance_is_zero_where_the_action_saturates():
    networks, loss = make(clip_approximation=True, bounds=(-0.01, 0.01), guidance_weight=1.0, reduction="none")
    data = hand.double_data(6)
    terms = loss._diffuse(data)
    guidance, metrics = loss._guidance(data, terms)
    (slope,) = torch.autograd.grad(guidance.sum(), terms.predicted_noise, allow_unused=True)
    inside = terms.approximated_action.abs() < 0.01
    assert not inside.all() and (slope[~inside] == 0).all()
    assert metrics["state_action_value_actor"].shape == (6,)


def test_three_critics_each_guide_and_divide_by_the_next():
    networks, loss = make(3, reduction="none", **PLAIN | {"qvalue_normalization": "other"})
    data, seen = hand.double_data(5), set()
    settings = {"qvalue_normalization": "other"}
    literal = torch.stack([literal_policy_loss(loss, networks, data, h, [True] * 5, **settings) for h in range(3)])
    for seed in range(12):
        torch.manual_seed(seed)
        found, _ = loss.actor_loss(data)
        seen.add(int((literal - found).norm(dim=-1).argmin()))
        assert (literal - found).norm(dim=-1).min() < 1e-9
    assert seen == {0, 1, 2}


def test_critics_that_are_zero_everywhere_guide_nowhere():
    _, loss = make(guidance_weight=5.0)
    loss.qvalue_network_params.data.zero_()
    value, metrics = loss.actor_loss(hand.double_data(4))
    close(value, metrics["diffusion_error"].mean())
    assert all(g is None or g.isfinite().all() for g in gradients(loss, value).values())


# --- critics


def solve(solver, networks, params, observation, noise, bounds):
    """Actions [*B, A] of the target policy, by the solver function itself."""
    network, schedule = networks["actor_network"].module.noise_network, networks["actor_network"].module.schedule
    options = {"num_calls": 5}
    if solver == "ddpm":
        options = {"variance": "posterior"}
    functions = {"ddpm": ddpm, "ddim": ddim, "dpm_solver": dpm_solver, "dpm_solver_pp": dpm_solver_pp}

    def model(noisy, step):
        with params.to_module(networks["actor_network"]):
            velocity = network(noisy, torch.full(noisy.shape[:-1], step, dtype=noisy.dtype), observation)
        time = (step + 1) / K
        return schedule.alpha(time) * velocity + schedule.sigma(time) * noisy

    action = functions[solver](model, noise, schedule, bounds=bounds, initial_noise_scale=0.3, **options)
    return action.clamp(*bounds)


def literal_qvalue_loss(loss, networks, data, actions, top_k=1, aggregation="min", pessimism=1.0):
    """Squared TD errors, summed over critics; ``actions`` [B, number of backup actions, A]."""
    targets, losses, metrics = loss._modules["target_qvalue_network_params"], [], []
    count = loss.num_qvalue_nets
    for i in range(len(data)):
        next_observation, per_critic = data["next", "observation"][i], []
        for critic in range(count):
            values = [float(hand.qvalue(networks, targets, critic, next_observation, a).detach()) for a in actions[i]]
            per_critic.append(sorted(values, reverse=True)[top_k - 1])
        mean = sum(per_critic) / count
        deviation = (sum((value - mean) ** 2 for value in per_critic) / count) ** 0.5
        value = {"min": min(per_critic), "mean": mean, "lcb": mean - pessimism * deviation}[aggregation]
        goes_on = 0.0 if data["next", "terminated"][i] else 1.0
        target = float(data["next", "reward"][i]) + 0.875 * goes_on * value
        params = loss.qvalue_network_params
        predicted = [
            hand.qvalue(networks, params, critic, data["observation"][i], data["action"][i]) for critic in range(count)
        ]
        losses.append(sum((q - target) ** 2 for q in predicted))
        metrics.append((value, target))
    return torch.stack(losses), torch.tensor(metrics, dtype=torch.float64).unbind(-1)


def compare_critics(solver="dpm_solver", num_critics=2, given=None, limits=(-1.0, 1.0), **settings):
    """``given``: actions per state whose initial noise is in the data; else it is drawn. ``limits`` of the actions."""
    networks = make_networks(num_critics)
    sampler = networks["actor_network"].module
    sampler.solver, sampler.num_calls = solver, None if solver == "ddpm" else 5
    sampler.prediction, sampler.initial_noise_scale = "velocity", 0.3  # keep an untrained policy within the bounds
    loss = spread(make_loss(TD3, num_critics, networks=networks, double=True, reduction="none", **settings))
    loss.make_value_estimator(gamma=0.875)
    data, count = hand.double_data(5), settings.get("num_backup_actions", 1)
    del data["next", "initial_noise"]
    if given is not None:
        noise = torch.randn(5, *given, A, dtype=torch.float64)
        data["next", "initial_noise"] = noise
        noise = noise.view(5, -1, A).expand(5, count, A).transpose(0, 1)
    torch.manual_seed(3)
    found, metrics = loss.qvalue_loss(data)
    torch.manual_seed(3)
    if given is None:
        noise = torch.randn(count, 5, A, dtype=torch.float64)
    observation = data["next", "observation"].expand(count, 5, -1)
    params = loss._modules["target_actor_network_params"]
    with torch.no_grad():
        actions = solve(solver, networks, params, observation, noise, limits).transpose(0, 1)
    inside = (actions > actions.amin()) & (actions < actions.amax())
    assert inside.sum() > actions.numel() / 3, "sampled actions are corners: this checks little"
    options = {"aggregation": settings.get("qvalue_aggregation", "min"), "pessimism": settings.get("pessimism", 1.0)}
    top_k = settings.get("backup_top_k", 1)
    literal, (value, target) = literal_qvalue_loss(loss, networks, data, actions, top_k, **options)
    close(found, literal, rtol=1e-8, atol=1e-10)
    close(metrics["next_state_value"], value, rtol=1e-8, atol=1e-10)
    close(metrics["target_value"], target, rtol=1e-8, atol=1e-10)
    expected = gradients(loss, literal.mean())
    for name, gradient in gradients(loss, found.mean()).items():
        close(gradient, expected[name], rtol=1e-7, atol=1e-10)
        assert (gradient is not None) == name.startswith("qvalue")


@pytest.mark.parametrize("given", [None, ()], ids=["drawn", "given"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm_solver", "dpm_solver_pp"])
def test_the_critics_target_by_solver(solver, given):
    compare_critics(solver, given=given)


@pytest.mark.parametrize("aggregation", ["min", "mean", "lcb"])
def test_the_critics_target_by_aggregation(aggregation):
    compare_critics(num_critics=3, given=(), qvalue_aggregation=aggregation, pessimism=0.7)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("given", [None, (4,)], ids=["drawn", "given"])
def test_the_critics_target_by_backup(top_k, given):
    compare_critics(given=given, num_backup_actions=4, backup_top_k=top_k)


@pytest.mark.parametrize(
    "bounds",
    [
        {"bounds": (-1.5, 2.0)},
        {"bounds": (torch.tensor([-1.5, -0.5]), torch.tensor([2.0, 0.5]))},
        {"action_spec": Bounded(-1.5, 2.0, (A,))},
        {"action_spec": Composite(action=Bounded(-1.5, 2.0, (5, A)), shape=(5,))},
    ],
    ids=["floats", "tensors", "spec", "batched"],
)
def test_bounds_of_the_loss_hold_in_the_target(bounds):
    limits = (-1.5, 2.0)
    if isinstance(bounds.get("bounds", [0])[0], torch.Tensor):
        limits = tuple(bound.double() for bound in bounds["bounds"])
    compare_critics("ddim", limits=limits, **bounds)


class FixedNoise(nn.Module):
    """Our actor's action for one initial noise at every state: an actor as TD3BCLoss knows it."""

    def __init__(self, sampler, noise):
        super().__init__()
        self.sampler, self.noise = sampler, noise

    def forward(self, observation):
        return self.sampler.sample(observation, self.noise)


@pytest.mark.parametrize("loss_function", ["l2", "smooth_l1"])
def test_the_qvalue_loss_equals_torchrls_td3_bc(loss_function):
    networks = make_networks(2)
    data, noise = hand.double_data(8), torch.randn(8, A, dtype=torch.float64)
    data["next", "initial_noise"] = noise
    ours = spread(make_loss(TD3, networks=networks, double=True, loss_function=loss_function))
    actor = FixedNoise(make_networks(2)["actor_network"].module, noise)
    actor = TensorDictModule(actor, in_keys=["observation"], out_keys=["action"])
    critics = make_networks(2)["qvalue_network"]
    theirs = TD3BCLoss(actor, critics, bounds=(-1.0, 1.0), policy_noise=0.0, loss_function=loss_function).double()
    SoftUpdate(theirs, tau=0.1)
    for name in ("qvalue_network_params", "target_qvalue_network_params", "target_actor_network_params"):
        source = dict(ours._modules[name].data.flatten_keys(".").items())
        for key, tensor in theirs._modules[name].data.flatten_keys(".").items():
            tensor.copy_(source[key.replace("module.sampler.", "module.")])
    for loss in (ours, theirs):
        loss.make_value_estimator(gamma=0.875)
    (mine, metrics), (other, expected) = ours.qvalue_loss(data), theirs.qvalue_loss(data)
    close(mine, other, rtol=1e-6, atol=0)
    for name in ("td_error", "next_state_value", "target_value"):
        close(metrics[name], expected[name], rtol=1e-6, atol=1e-9)
    pairs = [(loss.qvalue_network_params, value) for loss, value in ((ours, mine), (theirs, other))]
    found, wanted = (torch.autograd.grad(value, list(p.values(True, True))) for p, value in pairs)
    close(found, wanted, rtol=1e-6, atol=1e-12)
    close(ours.value_loss(data)[0], mine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_qvalue": "max"}, "guidance_qvalue must be one of"),
        ({"qvalue_normalization": "both"}, "qvalue_normalization must be one of"),
        ({"qvalue_normalization": "other", "guidance_qvalue": "min"}, "needs guidance_qvalue='random' and at least"),
        ({"qvalue_normalization": "other", "num_qvalue_nets": 1}, "at least two critics"),
        ({"num_backup_actions": 2, "backup_top_k": 3}, r"backup_top_k must lie in 1..num_backup_actions = 2, got 3"),
        ({"backup_top_k": 0}, "backup_top_k must lie in"),
        ({"bounds": (-1.0, 1.0), "action_spec": Bounded(-1, 1, (A,))}, "not both"),
        ({"action_spec": Categorical(4)}, "action_spec must be Bounded, got Categorical"),
        ({"bounds": (1.0, -1.0)}, "low bound is higher"),
        ({"qvalue_aggregation": "max"}, "qvalue_aggregation must be"),
        ({"guidance_start": "prior"}, "guidance_start must be one of"),
        ({"guidance_start": "noise", "guidance_steps": (0, 9)}, "guidance_steps must be None"),
        ({"approximation_steps": 0}, rf"approximation_steps must lie in \[1, {K}\], got 0"),
        ({"guidance_steps": (0, K)}, r"guidance_steps must be None or \(first, last\) and satisfy"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_loss(TD3, **settings)


def test_gamma_belongs_to_the_value_estimator():
    with pytest.raises(TypeError, match="make_value_estimator"):
        make_loss(TD3, gamma=0.9)
