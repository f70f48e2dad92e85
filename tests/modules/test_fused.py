"""The kernel samples what the solver's steps and the network's layers do one by one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_edp.diffusion import NoiseSchedule
from torchrl_edp.modules import DiffusionSampler, FrozenPolicy, NoisePredictionMLP, fused, fused_sampling, kernels
from torchrl_edp.modules.actor import EDPActor

OBSERVATION = 5
BOUNDS = {
    "none": lambda size: None,
    "numbers": lambda size: (-0.8, 0.6),
    "tensors": lambda size: (-torch.linspace(0.3, 1, size), torch.linspace(0.2, 1, size).double()),
}
SOLVERS = [
    ("dpm_solver", {"num_calls": 6}),
    ("dpm_solver", {"num_calls": 5, "solver_kwargs": {"order": 2, "spacing": "log_snr"}, "policy_scale": 0.7}),
    ("dpm_solver", {"num_calls": 2, "solver_kwargs": {"order": 1, "end_time": 0.1}, "initial_noise_scale": 0.5}),
    ("dpm_solver_pp", {"num_calls": 7, "solver_kwargs": {"end_time": 0.0}}),
    ("dpm_solver_pp", {"num_calls": 1, "policy_scale": 1.3}),
    ("ddim", {"num_calls": 4, "solver_kwargs": {"end_time": 0.02}}),
]


@pytest.fixture
def calls(monkeypatch):
    """The calls of the kernel, by rows."""
    seen: list[int] = []
    original = fused.sample_actions

    def counted(network, noise, *rest):
        seen.append(noise.shape[:-1].numel())
        return original(network, noise, *rest)

    monkeypatch.setattr("torchrl_edp.modules.sampler.sample_actions", counted)
    return seen


def make_sampler(sizes=(32, 32), action=3, network=None, **options):
    if network is None:
        network = NoisePredictionMLP(OBSERVATION, action, hidden_sizes=sizes)
    return DiffusionSampler(network, action_size=action, **{"schedule": NoiseSchedule(50), "num_calls": 4} | options)


def make_inputs(*shape, action=3):
    return torch.randn(*shape, OBSERVATION), torch.randn(*shape, action)


def check(sampler, observation, noise):
    """The kernel's actions: near those of the steps in float64, about as near as those of the steps in float32."""
    with torch.no_grad():
        exact = copy.deepcopy(sampler).double().sample(observation.double(), noise.double())
        steps = sampler.sample(observation, noise)
        with fused_sampling():
            actions = sampler.sample(observation, noise)
    assert actions.shape == noise.shape and actions.dtype == torch.float32
    if actions.numel():  # a solver may multiply rounding errors
        allowed = 1e-5 * exact.abs().max().clamp_min(1) + 3 * (steps - exact).abs().max()
        assert (actions - exact).abs().max() <= allowed
    return actions


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize(("solver", "options"), SOLVERS)
def test_every_deterministic_solver(solver, options, prediction, bounds, calls):
    sampler = make_sampler(solver=solver, prediction=prediction, bounds=BOUNDS[bounds](3), **options)
    observation, noise = make_inputs(9)
    actions = check(sampler, observation, noise)
    assert calls == [9] and actions.std() > 0.1


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 31, 33, 64, 100, 257])
@pytest.mark.parametrize(("sizes", "action"), [((16,), 1), ((20, 48, 7), 3), ((64, 64), 16), ((33, 16), 17)])
def test_every_size(sizes, action, rows, calls):
    sampler = make_sampler(sizes, action)
    observation, noise = make_inputs(rows, action=action)
    check(sampler, observation, noise)
    assert calls == [rows]


@pytest.fixture
def set_num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 3, 101])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_the_rows(threads, rows, set_num_threads, calls):
    set_num_threads(threads)
    check(make_sampler(), *make_inputs(rows))
    assert calls == [rows]


def test_candidates_share_their_observation(calls):
    sampler = make_sampler()
    observation, noise = torch.randn(6, OBSERVATION), torch.randn(10, 6, 3)
    actions = check(sampler, observation.expand(10, 6, OBSERVATION), noise)
    torch.testing.assert_close(actions, check(sampler, observation.repeat(10, 1, 1), noise), rtol=1e-5, atol=1e-5)
    assert calls == [60, 60]


@pytest.mark.parametrize("shape", [(), (2, 0), (2, 3, 4)])
def test_batches_of_any_shape(shape, calls):
    sampler = make_sampler()
    observation, noise = make_inputs(*shape)
    actions = check(sampler, observation, noise)
    assert calls == [math.prod(shape)] and actions.shape == noise.shape


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 16), (40, 33), (256, 256)])
def test_layers_are_laid_out_by_the_kernel_as_by_operators(inputs, outputs):
    weight, bias = torch.randn(outputs, inputs + 4)[:, :inputs], torch.randn(2 * outputs)[::2]
    layers = [(weight, bias), (torch.randn(inputs, outputs).T, torch.zeros(1).expand(outputs))]
    packed = fused.pack(layers)
    expected = torch.vmap(lambda bias: fused.pack([(weight, bias), layers[1]]))(bias[None])[0]
    torch.testing.assert_close(packed, expected, rtol=0, atol=0)
    lanes = fused.LANES  # by its definition: [panel][input][lane], zeros where there is no output
    for out in range(-(-outputs // lanes) * lanes):
        row = packed[out // lanes * lanes * inputs + out % lanes :][: inputs * lanes : lanes]
        torch.testing.assert_close(row, weight[out] if out < outputs else torch.zeros(inputs), rtol=0, atol=0)


class Wrapped(torch.Tensor):
    """A tensor of a class of its own."""


def test_memory_is_read_of_plain_tensors_only():
    value = torch.zeros(2)
    assert kernels.may_read_memory(value, nn.Parameter(value))
    assert not kernels.may_read_memory(value, value.as_subclass(Wrapped))
    with FakeTensorMode():
        assert not kernels.may_read_memory(torch.zeros(2))
    found = []
    torch.vmap(lambda x: found.append(kernels.may_read_memory(x)) or x)(value)
    make_fx(lambda x: found.append(kernels.may_read_memory(x)) or x)(value)
    graph = torch.compile(lambda x: x + kernels.may_read_memory(x), backend="eager", fullgraph=True)
    assert found == [False, False] and not graph(value).any()
    layers = [(torch.ones(16, 3).as_subclass(Wrapped), torch.ones(16))]
    assert fused.pack(layers).shape == (64,)


def test_mish_everywhere():
    """One layer of one unit that multiplies by 1, as a probe; its output weight is 1 and the solver hands it on."""
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, 1e-30, -1e-30, 3e38])])[:, None]
    one, zero = torch.ones(1, 1), torch.zeros(1)
    network = fused.pack([(one, zero), (one, zero)])
    table = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])  # the clean action is the network's output
    bounds = torch.tensor([[-math.inf], [math.inf]])
    shares = torch.zeros(1, fused.LANES)
    values = fused.sample(x, shares, shares, network, table, bounds, [1, 1, 1])
    expected = F.mish(x.double()).float()
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-35)


def test_what_is_no_number_stays_none(calls):
    sampler = make_sampler()
    observation, noise = make_inputs(20)
    observation[3, 1] = math.nan
    noise[17, 2] = math.nan
    with torch.no_grad(), fused_sampling():
        actions = sampler.sample(observation, noise)
    assert actions.isnan().any(1).nonzero().flatten().tolist() == [3, 17]
    assert calls == [20]


class Doubled(NoisePredictionMLP):
    def forward(self, noisy_action, diffusion_step, observation):
        return 2 * super().forward(noisy_action, diffusion_step, observation)


def _hooked():
    network = NoisePredictionMLP(OBSERVATION, 3, hidden_sizes=(8, 8))
    network.net[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return network


def _replaced_forward():
    network = NoisePredictionMLP(OBSERVATION, 3, hidden_sizes=(8, 8))
    network.net[3].forward = lambda x: 2 * x
    return network


NETWORKS = {
    "no hidden layer": lambda: NoisePredictionMLP(OBSERVATION, 3, hidden_sizes=()),
    "replaced forward": _replaced_forward,
    "subclass": lambda: Doubled(OBSERVATION, 3, hidden_sizes=(8, 8)),
    "hook": _hooked,
    "relu": lambda: NoisePredictionMLP(OBSERVATION, 3, hidden_sizes=(8, 8), activation=nn.ReLU),
    "layer norm": lambda: NoisePredictionMLP(OBSERVATION, 3, hidden_sizes=(8, 8), layer_norm=True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_are_called_layer_by_layer(name, calls):
    sampler = make_sampler(network=NETWORKS[name]())
    observation, noise = make_inputs(4)
    check(sampler, observation, noise)
    assert not calls


def test_gradients_draws_and_other_types_go_step_by_step(calls):
    sampler = make_sampler()
    observation, noise = make_inputs(4)
    with fused_sampling():
        assert sampler.sample(observation, noise).requires_grad
        with torch.no_grad():
            sampler.double().sample(observation.double(), noise.double())
            sampler.float()
            sampler.sample(observation, noise, order=2)
            with torch.autocast("cpu"):
                sampler.sample(observation, noise)
            make_sampler(solver="ddim", solver_kwargs={"eta": 0.5}).sample(observation, noise)
            make_sampler(solver="ddpm", num_calls=None).sample(observation, noise)
    with torch.no_grad():
        sampler.sample(observation, noise)
    assert not calls


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_goes_step_by_step(calls):
    with pytest.warns(UserWarning, match="without C\\+\\+ kernels, they cannot be compiled here"):
        check(make_sampler(), *make_inputs(4))
    check(make_sampler(), *make_inputs(4))  # says it once
    assert not calls
    with pytest.raises(RuntimeError, match="by a kernel that cannot be compiled here"):
        fused.sample(*[torch.zeros(1, 1)] * 6, [1, 1])


def test_the_kernel_takes_nothing_that_does_not_fit():
    row, widths = torch.zeros(1, 16), [16, 16, 16]
    values = [torch.zeros(4, 16), row, row, torch.zeros(2 * 17 * 16), torch.zeros(2, 4), torch.zeros(2, 16)]
    fused.sample(*values, widths)
    for i, value in enumerate(values):
        for wrong in (value.double(), torch.zeros(*value.shape[:-1], value.shape[-1] + 1)):
            with pytest.raises(ValueError, match="Expected float32 tensors"):
                fused.sample(*values[:i], wrong, *values[i + 1 :], widths)


def test_noise_of_another_width_is_refused_as_without_the_kernel():
    observation, noise = make_inputs(4, action=5)
    with torch.no_grad(), fused_sampling(), pytest.raises(RuntimeError):
        make_sampler().sample(observation, noise)


def test_bounds_that_are_one_number_in_a_tensor(calls):
    sampler = make_sampler()
    sampler.bounds = (torch.tensor(-0.5), torch.tensor(0.4))
    check(sampler, *make_inputs(4))
    assert calls == [4]


CONTEXTS = {
    "inference": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
    "fake": lambda: FakeTensorMode(allow_non_fake_inputs=True),
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_where_it_was_called_first_makes_no_difference(context):
    fused._kept_tensors.cache_clear()
    sampler, inputs = make_sampler(), make_inputs(4)
    with torch.no_grad(), fused_sampling(), CONTEXTS[context]():
        sampler.sample(*inputs)
    check(sampler, *inputs)


@pytest.mark.parametrize("solver", ["dpm_solver", "ddim"])
def test_deterministic_actions(solver, calls):
    actor = EDPActor(NoisePredictionMLP(OBSERVATION, 3, hidden_sizes=(8, 8)), solver=solver, num_calls=4)
    observation = torch.randn(4, OBSERVATION)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        steps = actor(observation=observation)
        with fused_sampling():
            actions = actor(observation=observation)
    assert calls == [4]
    torch.testing.assert_close(actions, steps, rtol=1e-4, atol=1e-5)


def test_seeds_by_vmap(calls):
    samplers = [make_sampler() for _ in range(3)]
    params, _ = torch.func.stack_module_state(samplers)
    observation, noise = torch.randn(3, 8, OBSERVATION), torch.randn(8, 3)

    def sample(params, observation):
        return torch.func.functional_call(samplers[0], params, (observation, noise))

    with torch.no_grad(), fused_sampling():
        actions = torch.func.vmap(sample)(params, observation)
    assert calls == [8]
    for seed, sampler in enumerate(samplers):
        torch.testing.assert_close(actions[seed], check(sampler, observation[seed], noise), rtol=1e-5, atol=1e-5)


def test_changed_settings_and_weights_are_seen(calls):
    sampler = make_sampler(bounds=None)
    observation, noise = make_inputs(4)
    first = check(sampler, observation, noise)
    sampler.num_calls, sampler.policy_scale, sampler.solver = 7, 0.5, "dpm_solver_pp"
    second = check(sampler, observation, noise)
    with torch.no_grad():
        sampler.noise_network.net[2].weight.mul_(-3)
    third = check(sampler, observation, noise)
    assert (first - second).abs().max() > 1e-3 and (second - third).abs().max() > 1e-3
    assert calls == [4, 4, 4]


def test_compiled_it_takes_up_changed_settings(calls):
    torch.compiler.reset()
    sampler = make_sampler(bounds=None, prediction="velocity")
    compiled = torch.compile(sampler.sample, fullgraph=True, backend="aot_eager")
    observation, noise = make_inputs(6)
    changes = [{}, {"num_calls": 3}, {"policy_scale": 0.5}, {"initial_noise_scale": 0.1}, {"prediction": "noise"}]
    changes += [{"schedule": NoiseSchedule(20, "vp")}, {"solver_kwargs": {"end_time": 0.2}}, {"solver": "ddim"}]
    for change in changes:
        for name, value in change.items():
            setattr(sampler, name, value)
        with torch.no_grad(), fused_sampling():
            actions = compiled(observation, noise)
        torch.testing.assert_close(actions, check(sampler, observation, noise), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2 * len(changes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_and_frozen(calls):
    torch.compiler.reset()
    sampler = make_sampler()
    observation, noise = make_inputs(6)
    expected = check(sampler, observation, noise)
    actor = EDPActor(sampler.noise_network, schedule=sampler.schedule, num_calls=4)
    calls.clear()
    with torch.no_grad(), fused_sampling():
        compiled = torch.compile(sampler.sample, fullgraph=True)(observation, noise)
    assert calls == [6]
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(FrozenPolicy(actor).act(observation, noise), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) > 1  # tracing called it
