"""A frozen policy acts as the policy it was made from."""

from __future__ import annotations

import pytest
import torch
from modules_helpers import ACTION, OBSERVATION, Recorder, make_actor, make_data
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ValueOperator

from torchrl_edp.data import ActionScaler, ObservationNormalizer
from torchrl_edp.diffusion import NoiseSchedule
from torchrl_edp.modules import EnergyBasedActionSelector, FrozenPolicy, NoisePredictionMLP, QValueNetwork
from torchrl_edp.modules.frozen import fold_constants
from torchrl_edp.training import EnvironmentPolicy

SOLVERS = {
    "dpm_solver": {"num_calls": 6},
    "dpm_solver_pp": {"num_calls": 4, "solver_kwargs": {"spacing": "log_snr"}},
    "ddim": {"num_calls": 3},
    "ddpm": {"num_calls": None, "schedule": NoiseSchedule(8, "vp")},
}
TOLERANCES = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}


SELECTIONS = [{}, {"mode": "argmax"}, {"critics": 1}, {"num_action_samples": 1}, {"min_noise_scale": 0.1}]


def make_selector(dtype=torch.float32, critics=2, **options):
    """A selector whose actions lie inside the bounds, so that they tell solvers apart."""
    actor = make_actor(NoisePredictionMLP(OBSERVATION, ACTION, hidden_sizes=(16, 16)), num_calls=3, clip_actions=False)
    values = [
        ValueOperator(QValueNetwork(OBSERVATION, ACTION, hidden_sizes=(16,)), in_keys=["observation", "action"])
        for _ in range(critics)
    ]
    params = TensorDict.from_modules(*values, as_module=True) if critics > 1 else None
    options = {"num_action_samples": 5, "temperature": 0.01} | options
    return EnergyBasedActionSelector(actor, values[0], qvalue_params=params, **options).to(dtype)


def make_environment_policy():
    normalizer = ObservationNormalizer(torch.ones(OBSERVATION), torch.full((OBSERVATION,), 3.0))
    return EnvironmentPolicy(make_selector(), normalizer, ActionScaler([-2.0] * ACTION, [4.0] * ACTION))


def draw(policy, data, seed=1):
    torch.manual_seed(seed)
    return policy(data.clone())["action"]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_actor_from_the_same_noise(solver, prediction, dtype):
    options = {"prediction": prediction, "solver": solver, "clip_actions": False} | SOLVERS[solver]
    actor = make_actor(NoisePredictionMLP(OBSERVATION, ACTION, hidden_sizes=(16, 16)), **options).to(dtype)
    data = make_data(3, initial_noise=torch.randn(3, ACTION)).to(dtype)
    frozen = draw(FrozenPolicy(actor, compile=False), data)
    assert frozen.dtype == dtype and frozen.std() > 0.1
    torch.testing.assert_close(frozen, draw(actor, data).detach(), **TOLERANCES[dtype])


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("options", SELECTIONS)
def test_selector_chooses_the_same_candidate(batch, options):
    selector = make_selector(torch.float64, **options)
    data = make_data(*batch).double()
    frozen = FrozenPolicy(selector, compile=False)
    for seed in range(5):
        torch.testing.assert_close(draw(frozen, data, seed), draw(selector, data, seed), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("onednn", [False, True, None])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_policy_for_an_environment(onednn):
    policy = make_environment_policy()
    frozen = FrozenPolicy(policy, onednn=onednn)
    data = make_data(4)
    before = torch.backends.mkldnn.matmul.fp32_precision
    for seed in range(5):
        torch.testing.assert_close(draw(frozen, data, seed), draw(policy, data, seed).detach(), rtol=1e-5, atol=1e-5)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_policy_for_an_environment():
    policy = make_environment_policy()
    data = make_data(4)
    action = draw(FrozenPolicy(policy, compile=False), data)
    torch.testing.assert_close(action, draw(policy, data).detach(), rtol=1e-5, atol=1e-5)


def test_the_original_is_left_alone_and_not_followed():
    policy = make_selector()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    frozen = FrozenPolicy(policy, compile=False)
    data = make_data(4)
    action = draw(frozen, data)
    assert policy.training and all(parameter.requires_grad for parameter in policy.parameters())
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5)
    assert torch.equal(draw(frozen, data), action)
    assert not list(frozen.parameters()) and not action.requires_grad


def test_making_a_graph_draws_nothing_from_the_callers_generator():
    frozen = FrozenPolicy(make_selector(), compile=False)
    data = make_data(4)
    assert torch.equal(draw(frozen, data), draw(frozen, data))


def test_new_shapes_and_exploration_types_are_obeyed():
    actor = make_actor(clip_actions=False)
    frozen = FrozenPolicy(actor, compile=False)
    for batch in (4, 2, 4):
        data = make_data(batch)
        torch.testing.assert_close(draw(frozen, data), draw(actor, data).detach())
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            torch.testing.assert_close(draw(frozen, data), draw(actor, data).detach())


def test_called_by_keyword():
    frozen = FrozenPolicy(make_actor(), compile=False)
    data = make_data(5, initial_noise=torch.randn(5, ACTION))
    assert torch.equal(frozen(**data), frozen(data.clone())["action"])


def test_plain_tensors_and_nested_keys():
    actor = make_actor(in_keys=[("agent", "state"), "goal"], out_keys=[("agent", "act")], clip_actions=False)
    actor.module.noise_network = NoisePredictionMLP(OBSERVATION + 1, ACTION, hidden_sizes=(8,))
    frozen = FrozenPolicy(actor, compile=False)
    state, goal, noise = torch.randn(3, OBSERVATION), torch.randn(3, 1), torch.randn(3, ACTION)
    data = TensorDict({"agent": {"state": state}, "goal": goal, "initial_noise": noise}, [3])
    action = frozen(data)["agent", "act"]
    torch.testing.assert_close(action, actor(data.clone())["agent", "act"].detach())
    assert torch.equal(frozen.act(state, goal, noise), action)


def test_any_noise_network():
    class Own(NoisePredictionMLP):
        def forward(self, noisy_action, diffusion_step, observation):
            return 0.1 * noisy_action + observation[..., :ACTION] / (1 + diffusion_step.unsqueeze(-1))

    for network in (Recorder(), Own(OBSERVATION, ACTION)):
        actor = make_actor(network)
        data = make_data(3)
        torch.testing.assert_close(draw(FrozenPolicy(actor, compile=False), data), draw(actor, data))


def test_what_is_constant_is_folded():
    """Neither the step's embedding nor the splitting of weights is left in the graph."""
    frozen = FrozenPolicy(make_selector(), compile=False)
    frozen.act(torch.zeros(1, OBSERVATION))
    (graph,) = frozen._graphs.values()
    left = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not [name for name in left if name.split(".")[1] in ("cos", "sin", "arange", "full", "split", "t")]
    products = [node for node in graph.graph.nodes if str(node.target).startswith(("aten.addmm", "aten.mm"))]
    hoisted = [node for node in products if node.meta["val"].shape == (1, 16)]  # one row for five candidates
    assert len(hoisted) == 1 and len(products) == 1 + 3 * 3 + 2 * 2


def test_random_draws_are_not_constants():
    graph = fold_constants(make_fx(lambda x: x + torch.randn(3) * torch.ones(3))(torch.zeros(3)))
    assert not torch.equal(graph(torch.zeros(3)), graph(torch.zeros(3)))


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="policy must be a TensorDict module, got Linear"):
        FrozenPolicy(nn.Linear(2, 2))
    two = TensorDictModule(lambda x: (x, x), ["observation"], ["a", "b"])
    with pytest.raises(ValueError, match=r"one out_key, got \['a', 'b'\]"):
        FrozenPolicy(two)
    with pytest.raises(KeyError, match="observation"):
        FrozenPolicy(make_actor(), compile=False)(TensorDict({}, [2]))
