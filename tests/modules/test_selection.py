from __future__ import annotations

import math

import pytest
import torch
from modules_helpers import ACTION, OBSERVATION, make_actor, make_data, make_network
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ValueOperator
from torchrl.objectives import SoftUpdate

from torchrl_edp.modules import EnergyBasedActionSelector, QValueNetwork, ValueNetwork
from torchrl_edp.objectives import EDPIQLLoss

CANDIDATES = torch.tensor([-1.5, -0.5, 0.25, 1.0])


class Menu(nn.Module):
    """An actor whose i-th candidate is the i-th entry of a list, for all observations."""

    def __init__(self, values: torch.Tensor = CANDIDATES) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, observation):
        count = observation.shape[0]
        return self.values[:count].reshape(count, *[1] * (observation.ndim - 1)).expand(*observation.shape[:-1], 1)


class Scale(nn.Module):
    def __init__(self, factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.factor, self.shift = nn.Parameter(torch.tensor(factor)), shift

    def forward(self, action):
        return self.factor * action + self.shift


def make_selector(critic=None, actor=None, **options):
    actor = TensorDictModule(actor or Menu(), ["observation"], ["action"])
    critic = TensorDictModule(critic or Scale(1.0), ["action"], ["state_action_value"])
    return EnergyBasedActionSelector(actor, critic, **{"num_action_samples": len(CANDIDATES)} | options)


def select(selector, *batch: int) -> torch.Tensor:
    return selector(make_data(*batch))["action"]


@pytest.mark.parametrize(
    ("batch", "rows"), [((), (len(CANDIDATES),)), ((5,), (len(CANDIDATES) * 5,)), ((2, 5), (len(CANDIDATES) * 2, 5))]
)
def test_candidates_are_rows_to_the_critic(batch, rows):
    """Convolutions and BatchNorm know one batch dimension."""
    seen = []
    critic = Scale(1.0)
    critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    select(make_selector(critic), *batch)
    assert seen == [(*rows, 1)]


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
@pytest.mark.parametrize(
    ("critic", "best"),
    [(Scale(1.0), 1.0), (Scale(-1.0), -1.5), (nn.Sequential(nn.Softplus(), Scale(-1.0)), -1.5)],
)
def test_argmax_takes_the_best(batch, critic, best):
    action = select(make_selector(critic, mode="argmax"), *batch)
    assert torch.equal(action, torch.full((*batch, 1), best))


def test_every_observation_gets_its_own_choice():
    """Q = -(a - o)^2: the nearest candidate."""
    selector = make_selector(mode="argmax")
    critic = TensorDictModule(
        lambda observation, action: -((action - observation[..., :1]) ** 2), ["observation", "action"], ["value"]
    )
    selector.qvalue_network, selector.value_key = critic, "value"
    observation = torch.tensor([[-9.0], [-0.7], [0.3], [5.0]])
    action = selector(TensorDict({"observation": observation}, [4]))["action"]
    assert torch.equal(action, CANDIDATES.unsqueeze(-1))


@pytest.mark.parametrize(("temperature", "factor"), [(1.0, 1.0), (0.5, 1.0), (2.0, 3.0), (5.0, -1.0)])
def test_frequencies_follow_the_softmax(temperature, factor):
    count = 40_000
    action = select(make_selector(Scale(factor), temperature=temperature), count).squeeze(-1)
    seen = torch.stack([(action == value).sum() for value in CANDIDATES])
    expected = count * (factor * CANDIDATES / temperature).softmax(0)
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert seen.sum() == count and chi_square < 16.3, "0.1 % of a chi-square with 3 degrees of freedom"


@pytest.mark.parametrize("offset", [1e6, -1e7, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_frequencies_do_not_depend_on_a_common_offset(offset, dtype):
    """Far from 0 the noise that draws candidates would be rounded away, and the first one be taken."""
    torch.manual_seed(0)
    count, energies = 40_000, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=dtype) + offset
    action = select(make_selector(Table(energies)), count)
    seen = torch.stack([(action == value).sum() for value in CANDIDATES])
    odds = math.e if abs(offset) < 1e30 else 1.0  # 1e30 swallows 1
    expected = count * torch.tensor([1.0, 1.0, odds, odds]) / (2 + 2 * odds)
    assert ((seen - expected) ** 2 / expected).sum() < 16.3, "0.1 % of a chi-square with 3 degrees of freedom"


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("factor", [0.0, 1e6, -1e15])
def test_extreme_energies_and_temperatures(standardize, temperature, factor):
    action = select(make_selector(Scale(factor), temperature=temperature, standardize=standardize), 4_000)
    assert torch.isin(action, CANDIDATES).all()
    spread = 1.0 if standardize and factor else abs(factor)
    if spread / temperature < 1e-3:  # all alike
        assert all((action == value).sum() > 850 for value in CANDIDATES)
    else:
        assert (action == (1.0 if factor > 0 else -1.5)).all()


@pytest.mark.parametrize("mode", ["sample", "argmax"])
@pytest.mark.parametrize(("factor", "shift"), [(1e-3, 0.0), (100.0, -700.0)])
def test_standardize_makes_the_scale_of_q_irrelevant(mode, factor, shift):
    def choices(factor, shift, **options):
        torch.manual_seed(0)
        return select(make_selector(Scale(factor, shift), mode=mode, **options), 500)

    assert torch.equal(choices(1.0, 0.0, standardize=True), choices(factor, shift, standardize=True))
    if mode == "sample":
        assert not torch.equal(choices(1.0, 0.0), choices(factor, shift))
        energies = (CANDIDATES - CANDIDATES.mean()) / CANDIDATES.std()
        torch.manual_seed(0)
        by_hand = select(make_selector(actor=Menu(), critic=Table(energies)), 500)
        assert torch.equal(by_hand, choices(1.0, 0.0, standardize=True))


class Table(nn.Module):
    """The energy of each candidate from a list."""

    def __init__(self, energies: torch.Tensor) -> None:
        super().__init__()
        self.energies = energies

    def forward(self, action):
        return self.energies[(action - CANDIDATES).abs().argmin(-1, keepdim=True)]


def test_standardize_without_a_difference():
    assert select(make_selector(Scale(0.0), standardize=True), 50).isfinite().all()


def test_one_candidate_needs_no_critic():
    def critic(action):
        raise AssertionError("asked")

    selector = make_selector(num_action_samples=1)
    selector.qvalue_network = TensorDictModule(critic, ["action"], ["state_action_value"])
    assert torch.equal(select(selector, 3), selector.actor_network(make_data(3))["action"])


def test_the_energy_is_the_minimum_over_critics():
    """min(a, -a) = -abs(a): the candidate nearest to 0; each critic alone chooses an end."""
    critics = [TensorDictModule(Scale(f), ["action"], ["state_action_value"]) for f in (1.0, -1.0)]
    params = TensorDict.from_modules(*critics, as_module=True)
    for stacked, best in [(params, 0.25), (params[:1], 1.0), (params[1:], -1.5), (params[0], 1.0), (params[1], -1.5)]:
        selector = make_selector(Scale(5.0), mode="argmax", qvalue_params=stacked)
        assert torch.equal(select(selector, 2, 3), torch.full((2, 3, 1), best))


def test_dropout_in_the_critics_is_allowed():
    critics = [
        TensorDictModule(nn.Sequential(Scale(1.0), nn.Dropout(0.5)), ["action"], ["state_action_value"]) for _ in "12"
    ]
    params = TensorDict.from_modules(*critics, as_module=True)
    selector = make_selector(qvalue_params=params)
    selector.qvalue_network = critics[0]
    assert select(selector, 5).shape == (5, 1)


def test_actor_params_are_used():
    actor = TensorDictModule(Menu(-2 * CANDIDATES), ["observation"], ["action"])
    params = TensorDict.from_module(actor, as_module=True)
    assert torch.equal(select(make_selector(mode="argmax"), 2), torch.full((2, 1), 1.0))
    assert torch.equal(select(make_selector(mode="argmax", actor_params=params), 2), torch.full((2, 1), 3.0))


def test_the_targets_of_a_loss():
    """It acts with the loss's averaged networks, and follows them."""
    actor = make_actor(clip_actions=False)
    qvalue = ValueOperator(QValueNetwork(OBSERVATION, ACTION, hidden_sizes=(8,)), in_keys=["observation", "action"])
    loss = EDPIQLLoss(actor, qvalue, ValueOperator(ValueNetwork(OBSERVATION, hidden_sizes=(8,))))
    updater = SoftUpdate(loss, tau=0.5)
    selector = EnergyBasedActionSelector(
        actor,
        qvalue,
        actor_params=loss.target_actor_network_params,
        qvalue_params=loss.target_qvalue_network_params,
        num_action_samples=6,
        mode="argmax",
    )
    data = make_data(5)

    def act():
        torch.manual_seed(0)
        return selector(data.clone())["action"]

    def by_hand():
        torch.manual_seed(0)
        with loss.target_actor_network_params.to_module(actor):
            actions = actor(data.expand(6, 5).clone())["action"]
        inputs = TensorDict({"observation": data["observation"].expand(6, 5, -1), "action": actions}, [6, 5])
        values = []
        for i in range(2):
            with loss.target_qvalue_network_params[i].to_module(qvalue):
                values.append(qvalue(inputs.clone())["state_action_value"])
        best = torch.stack(values).amin(0).argmax(0).squeeze(-1)
        return actions[best, torch.arange(5)]

    before = act()
    torch.testing.assert_close(before, by_hand())
    with torch.no_grad():
        for params in (loss.actor_network_params, loss.qvalue_network_params):
            for value in params.values(True, True):
                value.normal_()
    torch.testing.assert_close(act(), before, rtol=0, atol=0)
    updater.step()
    assert not torch.allclose(act(), before)
    torch.testing.assert_close(act(), by_hand())


def test_keys_and_what_is_written():
    actor = make_actor(in_keys=[("agent", "state")], out_keys=[("agent", "act")])
    qvalue = TensorDictModule(
        lambda action, goal: (action * goal).sum(-1, keepdim=True), [("agent", "act"), "goal"], [("agent", "q")]
    )
    selector = EnergyBasedActionSelector(actor, qvalue, action_key=("agent", "act"), value_key=("agent", "q"))
    assert selector.in_keys == [("agent", "state"), "goal"] and selector.out_keys == [("agent", "act")]
    data = TensorDict({"agent": {"state": torch.randn(5, OBSERVATION)}, "goal": torch.ones(5, ACTION)}, [5])
    data["agent", "act"] = torch.full((5, ACTION), 9.0)  # what stands there is neither read nor kept
    result = selector(data)
    assert result is data and set(data["agent"].keys()) == {"state", "act"} and data["agent", "act"].abs().max() <= 1


class Start(nn.Module):
    """A noise network that remembers what its solver started from."""

    action_size = ACTION

    def forward(self, noisy_action, diffusion_step, observation):
        self.started = noisy_action
        return noisy_action


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_candidates_start_from_more_and_more_noise(batch):
    """Candidate i of N: the actor's draw times min + (1 - min) i / (N - 1), and the actor's own factor."""
    actor = make_actor(Start(), solver="ddim", num_calls=1, initial_noise_scale=0.5, clip_actions=False)
    qvalue = ValueOperator(QValueNetwork(OBSERVATION, ACTION, hidden_sizes=(8,)), in_keys=["observation", "action"])

    def started(**options):
        torch.manual_seed(0)
        EnergyBasedActionSelector(actor, qvalue, num_action_samples=4, **options)(make_data(*batch))
        return actor.module.noise_network.started

    drawn, spread = started(), started(min_noise_scale=0.1)
    assert drawn.shape == (4, *batch, ACTION)
    for i, factor in enumerate((0.1, 0.4, 0.7, 1.0)):
        torch.testing.assert_close(spread[i], factor * drawn[i])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert (started(min_noise_scale=0.1) == 0).all()


def test_spread_noise_with_several_observations_and_nested_keys():
    actor = make_actor(
        make_network(observation=2 * OBSERVATION),
        in_keys=[("agent", "state"), "goal"],
        out_keys=[("agent", "act")],
        initial_noise_key=("agent", "noise"),
    )
    qvalue = TensorDictModule(lambda action: action[..., :1], [("agent", "act")], [("agent", "q")])
    options = {"action_key": ("agent", "act"), "value_key": ("agent", "q"), "min_noise_scale": 0.5}
    selector = EnergyBasedActionSelector(actor, qvalue, **options)
    data = TensorDict({"agent": {"state": torch.randn(5, OBSERVATION)}, "goal": torch.ones(5, OBSERVATION)}, [5])
    assert selector(data)["agent", "act"].shape == (5, ACTION) and set(data["agent"].keys()) == {"state", "act"}


def test_spread_noise_needs_an_actor_that_takes_noise():
    with pytest.raises(ValueError, match="min_noise_scale needs an EDPActor, got TensorDictModule: leave it at 1"):
        make_selector(min_noise_scale=0.5)


def test_dispatch():
    assert make_selector(mode="argmax")(observation=torch.zeros(3, OBSERVATION)).tolist() == [[1.0]] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_action_samples": 0}, "num_action_samples must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0: use mode='argmax'"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"mode": "best"}, "mode must be 'sample' or 'argmax', got 'best'"),
        ({"min_noise_scale": 0.0}, r"min_noise_scale must lie in \(0, 1\], got 0.0"),
        ({"min_noise_scale": 1.5}, r"min_noise_scale must lie in \(0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_selector(**options)


@pytest.mark.parametrize("options", [{}, {"min_noise_scale": 0.1}])
@pytest.mark.parametrize("critics", [1, 2])
@pytest.mark.filterwarnings("ignore:Using lock_.. inside a compiled graph:UserWarning")  # tensordict, from vmap
def test_compiled_in_one_graph(critics, options):
    torch.compiler.reset()  # every actor compiles the same code again, of which dynamo keeps eight versions
    actor = make_actor(num_calls=1, solver="ddim")
    networks = [
        ValueOperator(QValueNetwork(OBSERVATION, ACTION, hidden_sizes=(8,)), in_keys=["observation", "action"])
        for _ in range(critics)
    ]
    params = TensorDict.from_modules(*networks, as_module=True) if critics > 1 else None
    selector = EnergyBasedActionSelector(actor, networks[0], qvalue_params=params, num_action_samples=3, **options)
    compiled = torch.compile(selector, fullgraph=True, backend="aot_eager")
    data = make_data(5)
    torch.manual_seed(0)
    action = compiled(data.clone())["action"]
    torch.manual_seed(0)
    torch.testing.assert_close(action, selector(data.clone())["action"])


@pytest.mark.parametrize("name", ["action_key", "value_key"])
def test_keys_that_no_network_writes_are_named(name):
    with pytest.raises(ValueError, match=rf"{name} must be one of the network's out_keys \[.*\], got 'other'"):
        make_selector(**{name: "other"})
