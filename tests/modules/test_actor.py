"""EDPActor by itself: what it reads and writes, its options, copies, precision, compilation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from modules_helpers import ACTION, OBSERVATION, Recorder, make_actor, make_data, make_network
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_edp.diffusion import NoiseSchedule, dpm_solver, dpm_solver_pp


@pytest.mark.parametrize("batch", [(), (5,), (3, 5), (1,)])
@pytest.mark.parametrize(("solver", "calls"), [("dpm_solver", 4), ("dpm_solver_pp", 4), ("ddim", 4), ("ddpm", None)])
def test_shapes(batch, solver, calls):
    data = make_actor(solver=solver, num_calls=calls)(make_data(*batch))
    assert data["action"].shape == (*batch, ACTION) and data.batch_size == batch
    assert (data["action"].abs() <= 1).all() and data["action"].requires_grad
    assert set(data.keys()) == {"observation", "action"}


def test_the_action_is_the_solvers():
    actor, data = make_actor(clip_actions=False), make_data(5, initial_noise=torch.randn(5, ACTION))
    network = actor.module.noise_network

    def model(noisy, step):
        return network(noisy, torch.full((5,), step), data["observation"])

    expected = dpm_solver(model, data["initial_noise"], actor.module.schedule, num_calls=4)
    torch.testing.assert_close(actor(data)["action"], expected)
    actor.module.solver, actor.module.num_calls, actor.module.solver_kwargs = "dpm_solver_pp", 7, {"spacing": "log_snr"}
    actor.module.policy_scale, actor.module.initial_noise_scale = 0.7, 0.5
    options = {"num_calls": 7, "spacing": "log_snr", "policy_scale": 0.7, "initial_noise_scale": 0.5}
    expected = dpm_solver_pp(model, data["initial_noise"], actor.module.schedule, **options)
    torch.testing.assert_close(actor(data)["action"], expected)


@pytest.mark.parametrize(
    "kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, ExplorationType.MODE, "mean", None]
)
def test_exploration_types(kind):
    kind = ExplorationType.MEAN if kind == "mean" else kind
    actor, data = make_actor(), make_data(5)
    with set_exploration_type(kind) if kind is not None else torch.no_grad():
        first, second = actor(data.clone())["action"], actor(data.clone())["action"]
        given = make_data(5, initial_noise=torch.ones(5, ACTION))
        state = torch.get_rng_state()
        torch.testing.assert_close(actor(given.clone())["action"], actor(given.clone())["action"], rtol=0, atol=0)
        assert torch.equal(state, torch.get_rng_state())
    from_zero = actor(data.clone().set("initial_noise", torch.zeros(5, ACTION)))["action"]
    if kind in (ExplorationType.RANDOM, None):
        assert not torch.equal(first, second)
    else:
        assert torch.equal(first, second) and torch.equal(first, from_zero)


@pytest.mark.parametrize(
    "options",
    [{"solver": "ddpm", "num_calls": None}, {"solver": "ddim", "num_calls": 5, "solver_kwargs": {"eta": 1.0}}],
)
def test_a_chain_adds_no_noise_where_actions_are_to_be_repeatable(options):
    actor, data = make_actor(**options), make_data(5)
    assert not torch.equal(actor(data.clone())["action"], actor(data.clone())["action"])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = actor(data.clone())["action"], actor(data.clone())["action"]
    assert torch.equal(first, second)
    zeros, none = torch.zeros(5, ACTION), torch.zeros(actor.module.num_steps, 5, ACTION)
    torch.testing.assert_close(first, actor.module.sample(data["observation"], zeros, step_noise=none))


def test_random_samples_are_those_of_the_global_generator():
    actor, data = make_actor(), make_data(5)
    torch.manual_seed(7)
    action = actor(data.clone())["action"]
    torch.manual_seed(7)
    data["initial_noise"] = torch.randn(5, ACTION)
    assert torch.equal(action, actor(data)["action"])


def test_keys_nested_renamed_and_several():
    network = make_network()
    plain = make_actor(network)
    renamed = make_actor(
        network, in_keys=[("agent", "pixels"), "goal"], out_keys=[("agent", "act")], initial_noise_key=("agent", "z")
    )
    assert renamed.in_keys == [("agent", "pixels"), "goal", ("agent", "z")] and renamed.out_keys == [("agent", "act")]
    assert renamed.observation_keys == [("agent", "pixels"), "goal"]
    data = make_data(5, initial_noise=torch.randn(5, ACTION))
    parts = data["observation"].split([3, 1], -1)
    other = TensorDict({"agent": {"pixels": parts[0], "z": data["initial_noise"]}, "goal": parts[1]}, [5])
    assert torch.equal(renamed(other)["agent", "act"], plain(data)["action"])
    with pytest.raises(KeyError, match=r"misses an observation: \[1\]"):
        renamed(other.exclude("goal"))


def test_dispatch():
    actor, data = make_actor(), make_data(5, initial_noise=torch.randn(5, ACTION))
    expected = actor(data.clone())["action"]
    assert torch.equal(actor(observation=data["observation"], initial_noise=data["initial_noise"]), expected)
    assert actor(observation=data["observation"]).shape == (5, ACTION)


@pytest.mark.parametrize("composite", [False, True])
@pytest.mark.parametrize("key", ["action", ("agent", "action")])
def test_bounds_come_from_the_spec(composite, key):
    low, high = torch.tensor([-3.0, 0.5]), torch.tensor([-2.0, 4.0])
    spec = Bounded(low, high, dtype=torch.float64)  # as dm_control's
    spec = spec if not composite else Composite({key: spec} if key == "action" else {"agent": {"action": spec}})
    actor = make_actor(nn.Identity(), spec=spec, out_keys=[key])
    assert actor.module.action_size == ACTION
    actor.module.noise_network = Recorder()
    action = actor(make_data(200))[key]
    assert ((action >= low) & (action <= high)).all() and action.dtype == torch.float32
    assert (action == high).any() and actor.spec[key] == Bounded(low, high, dtype=torch.float64)
    free = make_actor(Recorder(), spec=spec, out_keys=[key], clip_actions=False)(make_data(200))[key]
    assert ((free < low) | (free > high)).any()


def test_bounds_of_other_specs():
    assert make_actor(spec=Bounded(-2.0, 2.0, (ACTION,))).module.bounds == (-2.0, 2.0)
    assert make_actor(spec=Bounded(-2.0, 2.0, (7, ACTION))).module.bounds == (-2.0, 2.0)
    assert make_actor(spec=Unbounded((ACTION,))).module.bounds == (-1.0, 1.0)
    assert make_actor().module.bounds == (-1.0, 1.0)
    for low, high in (((-3.0, -2.0), (4.0, 4.0)), ((-3.0, -3.0), (4.0, 5.0))):  # one side by dimension is enough
        bounds = make_actor(spec=Bounded(torch.tensor(low), torch.tensor(high))).module.bounds
        assert [bound.tolist() for bound in bounds] == [list(low), list(high)]
    assert make_actor(clip_actions=False).module.bounds is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler"}, r"Unknown solver 'euler': choose one of \['ddim'"),
        ({"prediction": "score"}, "must be 'noise' or 'velocity', got 'score'"),
        ({"network": nn.Identity()}, "action size is unknown"),
        ({"action_size": 5}, r"same everywhere, got {'action_size': 5, 'noise_network': 2}"),
        (
            {"spec": Bounded(torch.tensor([[-1.0] * 2, [-2.0] * 2]), torch.ones(2, 2))},
            "same action bounds in every row",
        ),
        ({"spec": Bounded(-1, 1, (3,))}, r"same everywhere, got {'spec': 3, 'noise_network': 2}"),
        ({"network": nn.Identity(), "action_size": 0}, r"action_size must lie in \[1, inf\), got 0"),
        ({"spec": Bounded(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0]))}, "low bound is higher than the high"),
        ({"initial_noise_scale": 1.1}, r"initial_noise_scale must lie in \[0, 1\], got 1.1"),
        ({"policy_scale": 0.0}, r"policy_scale must lie in \(0, inf\), got 0.0"),
        ({"solver": "ddpm", "num_calls": 4}, "expected num_calls=50, got 4"),
        ({"solver_kwargs": {"num_calls": 9}}, r"solver_kwargs holds \['num_calls'\]"),
        (
            {"solver_kwargs": {"eta": 1.0}},
            "'dpm_solver' has no option 'eta': choose from .'order', 'spacing', 'end_time'",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_actor(**options)
    actor = make_actor()
    with pytest.raises(ValueError, match="Unknown solver 'euler'"):
        actor.module.solver = "euler"
    assert actor.module.solver == "dpm_solver"


class VelocityOf(nn.Module):
    """v with eps = alpha v + sigma x, for the vp schedule of K steps."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.steps, self.action_size = network, steps, network.action_size

    def forward(self, noisy_action, diffusion_step, observation):
        time = ((diffusion_step + 1) / self.steps).unsqueeze(-1)
        alpha = torch.exp(-0.25 * 9.9 * time**2 - 0.05 * time)
        noise = self.network(noisy_action, diffusion_step, observation)
        return (noise - (1 - alpha**2).sqrt() * noisy_action) / alpha


@pytest.mark.parametrize(("solver", "calls"), [("dpm_solver", 7), ("dpm_solver_pp", 4), ("ddim", 4), ("ddpm", None)])
def test_velocity_is_the_same_policy(solver, calls):
    network, options = make_network().double(), {"solver": solver, "num_calls": calls}
    noise, velocity = (
        make_actor(network, **options),
        make_actor(VelocityOf(network, 50), prediction="velocity", **options),
    )
    data = make_data(6, initial_noise=torch.randn(6, ACTION)).double()
    actions = []
    for actor in (noise, velocity):
        torch.manual_seed(0)
        actions.append(actor(data.clone())["action"])
    torch.testing.assert_close(*actions, rtol=1e-10, atol=1e-10)
    step = torch.tensor([0, 1, 7, 25, 48, 49])
    predicted = [a.module.predict_noise(data["initial_noise"], step, data["observation"]) for a in (noise, velocity)]
    torch.testing.assert_close(*predicted, rtol=1e-10, atol=1e-10)
    model_input = torch.cat([data["initial_noise"], data["observation"], step.unsqueeze(-1)], -1)
    torch.testing.assert_close(velocity.module.score_network(model_input), predicted[0], rtol=1e-10, atol=1e-10)


class Constant(nn.Module):
    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs):
        return self.output


def test_velocity_is_what_it_says():
    """sqrt(abar) eps - sqrt(1 - abar) a gives the noise that made the noisy action."""
    actor, step = make_actor(prediction="velocity"), torch.tensor([0, 10, 49])
    action = torch.rand(3, ACTION).double()
    noisy, noise = actor.module.add_noise(action, step)
    alpha_bar = actor.module.schedule.alpha_bars[step].unsqueeze(-1)
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * action
    actor.module.noise_network = Constant(velocity)
    torch.testing.assert_close(actor.module.predict_noise(noisy, step, action), noise)


def test_the_state_is_the_networks():
    actor = make_actor()
    names = {f"module.noise_network.{name}" for name in actor.module.noise_network.state_dict()}
    assert set(actor.state_dict()) == names
    assert not list(actor.buffers()) and len(list(actor.parameters())) == len(names)
    other = make_actor()
    other.load_state_dict(actor.state_dict())
    data = make_data(5, initial_noise=torch.randn(5, ACTION))
    assert torch.equal(other(data.clone())["action"], actor(data.clone())["action"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda actor: pickle.loads(pickle.dumps(actor))])
def test_copies(copied):
    actor = make_actor(
        num_calls=6, policy_scale=0.9, spec=Bounded(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]))
    )
    actor.module.add_noise(torch.zeros(1, ACTION), torch.tensor([3]))  # fills the schedule's cache
    other, data = copied(actor), make_data(5, initial_noise=torch.randn(5, ACTION))
    assert torch.equal(other(data.clone())["action"], actor(data.clone())["action"])
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert not torch.equal(other(data.clone())["action"], actor(data.clone())["action"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_other_precisions(dtype, prediction):
    actor, data = make_actor(prediction=prediction), make_data(5, initial_noise=torch.randn(5, ACTION))
    expected = actor(data.clone())["action"]
    action = actor.to(dtype)(data.to(dtype))["action"]
    assert action.dtype == dtype
    torch.testing.assert_close(action.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float64 else 0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_diffusion_steps_apart(dtype):
    actor = make_actor(Recorder(), schedule=NoiseSchedule(1000), num_calls=3, prediction="velocity")
    network, zeros = actor.module.noise_network, torch.zeros(3, ACTION, dtype=dtype)
    actor.module.predict_noise(zeros, torch.tensor([997, 998, 999]), zeros)
    assert network.steps[0].tolist() == [997, 998, 999]
    actor(TensorDict({"observation": torch.zeros(3, OBSERVATION, dtype=dtype)}, [3]))
    steps = [float(step[0]) for step in network.steps[1:]]
    torch.testing.assert_close(steps[0], 999.0, rtol=1e-6, atol=0)
    assert steps[1] % 1 != 0
    model_input = torch.cat([zeros, zeros, torch.full((3, 1), 999, dtype=dtype)], -1)
    actor.module.score_network(model_input)  # bfloat16 rounds the step to 1000, outside every table
    assert network.steps[-1].tolist() == [999] * 3


def test_the_network_sees_the_step_of_a_float_tensor():
    actor = make_actor(Recorder(), schedule=NoiseSchedule(100), num_calls=3, solver="ddim")
    actor(make_data(2, 3))
    steps = actor.module.noise_network.steps
    assert all(step.shape == (2, 3) and step.dtype == torch.float32 for step in steps)
    torch.testing.assert_close(torch.stack(steps)[:, 0, 0], torch.tensor([99, 99 - 100 / 3, 99 - 200 / 3]))


@pytest.mark.parametrize("solver", ["dpm_solver", "ddim"])
def test_gradients_reach_every_weight_through_the_chain(solver):
    actor, data = make_actor(solver=solver, clip_actions=False), make_data(5)
    actor(data)["action"].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())


def test_the_steps_are_embedded_together():
    actor, rows = make_actor(num_calls=4), []
    actor.module.noise_network.embedding.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    actor(make_data(5))
    assert rows == [4]


def test_compiled_in_one_graph():
    torch.compiler.reset()  # every actor compiles the same code again, of which dynamo keeps eight versions
    actor = make_actor(make_network(4), num_calls=2)
    compiled = torch.compile(actor, fullgraph=True, backend="aot_eager")
    for calls in (2, 1):
        actor.module.num_calls = calls  # taken up after compilation
        data = make_data(5, initial_noise=torch.randn(5, ACTION))
        action = compiled(data.clone())["action"]
        torch.testing.assert_close(action, actor(data.clone())["action"], rtol=1e-4, atol=1e-5)
    fresh = make_data(5)
    assert not torch.equal(compiled(fresh.clone())["action"], compiled(fresh.clone())["action"]), "it samples"


@pytest.mark.parametrize(
    ("solver", "calls", "options"), [("ddim", 2, {"eta": 0.5}), ("ddpm", None, {}), ("dpm_solver_pp", 2, {})]
)
def test_other_solvers_compiled_in_one_graph(solver, calls, options):
    torch.compiler.reset()  # every actor compiles the same code again, of which dynamo keeps eight versions
    schedule = NoiseSchedule(5, "vp")
    actor = make_actor(make_network(4), schedule=schedule, solver=solver, num_calls=calls, solver_kwargs=options)
    actions = []
    for policy in (actor, torch.compile(actor, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        actions.append(policy(TensorDict({"observation": torch.ones(5, OBSERVATION)}, [5]))["action"])
    torch.testing.assert_close(*actions, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_by_inductor():
    actor, data = make_actor(make_network(4), num_calls=2), make_data(5, initial_noise=torch.randn(5, ACTION))
    action = torch.compile(actor, fullgraph=True)(data.clone())["action"]
    torch.testing.assert_close(action, actor(data)["action"], rtol=1e-4, atol=1e-5)


def test_a_spec_that_no_diffusion_policy_can_have_is_refused():
    with pytest.raises(ValueError, match="continuous actions, got the spec OneHot"):
        make_actor(spec=OneHot(ACTION))
    half = Bounded(torch.full((ACTION,), -1.0), torch.full((ACTION,), torch.inf))
    with pytest.raises(ValueError, match=r"bounds must be finite, or clip_actions=False; got .*inf"):
        make_actor(spec=half)
    make_actor(spec=half, clip_actions=False)
