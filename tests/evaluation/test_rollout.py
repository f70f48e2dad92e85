from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_edp.evaluation import EvaluationResult, PolicyEvaluator, evaluate


class Countdown(gymnasium.Env):
    """An episode of a random length that pays its action's first entry; a step after its end is an error."""

    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, as_dict: bool = False, endless: bool = False) -> None:
        self.as_dict, self.endless = as_dict, endless
        box = Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = Dict({"left": box, "id": Discrete(2), "noise": box}) if as_dict else box

    def _observation(self):
        left = np.array([self.left], np.float64)
        return {"left": left, "id": 0, "noise": left + 100} if self.as_dict else left

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 30))
        return self._observation(), {}

    def step(self, action):
        assert self.endless or self.left > 0, "stepped after its end"
        self.left -= 1
        return self._observation(), float(action[0]), self.left == 0 and not self.endless, False, {}


class DiscreteActions(Countdown):
    action_space = Discrete(3)


gymnasium.register("edp/Countdown-v0", Countdown, max_episode_steps=1000)
gymnasium.register("edp/NoLimit-v0", Countdown)
gymnasium.register("edp/Discrete-v0", DiscreteActions, max_episode_steps=10)


def policy_of(function, module=None) -> TensorDictModule:
    policy = TensorDictModule(function, ["observation"], ["action"])
    policy.extra = module  # a sub-module that the policy's function uses
    return policy


ones = policy_of(lambda obs: torch.ones(obs.shape[0], 2))
noisy = policy_of(lambda obs: torch.rand(obs.shape[0], 2))


def test_each_environment_runs_one_episode_and_the_batch_stays_fixed():
    seen = []

    def spy(obs):
        seen.append(obs.clone())
        return torch.ones(obs.shape[0], 2)

    result = evaluate(policy_of(spy), "edp/Countdown-v0", seed=0, num_episodes=5)
    assert {(obs.shape, obs.dtype) for obs in seen} == {((5, 1), torch.float32)}
    starts = seen[0][:, 0].long()
    assert len(starts.unique()) > 1  # else the lengths below could not tell episodes apart
    assert torch.equal(result.lengths, starts)
    assert torch.equal(result.returns, starts.double())
    assert len(seen) == starts.max()
    for step, obs in enumerate(seen):  # a finished episode shows its last observation
        assert torch.equal(obs[:, 0], (starts - step).clamp(min=0).float())


def test_same_seed_same_result_and_environments_are_reused():
    with PolicyEvaluator("edp/Countdown-v0", num_episodes=4) as evaluator:
        first, other, again = (evaluator(noisy, seed) for seed in (7, 8, 7))
    assert torch.equal(first.returns, again.returns) and torch.equal(first.lengths, again.lengths)
    assert not torch.equal(first.returns, other.returns)
    fresh = evaluate(noisy, "edp/Countdown-v0", seed=7, num_episodes=4)
    assert torch.equal(first.returns, fresh.returns)


def test_neighbouring_seeds_share_no_episode():
    with PolicyEvaluator("Hopper-v5", num_episodes=4, max_steps=1) as evaluator:
        returns = torch.cat([evaluator(policy_of(lambda obs: torch.zeros(4, 3)), s).returns for s in range(4)])
    assert len(returns.unique()) == 16


def test_mujoco_repeats_by_the_bit():
    policy = policy_of(lambda obs: torch.rand(obs.shape[0], 3) * 2 - 1)
    results = [evaluate(policy, "Hopper-v5", seed=3, num_episodes=3, max_steps=40) for _ in range(2)]
    assert torch.equal(results[0].returns, results[1].returns)
    assert results[0].lengths.max() <= 40 and results[0].std > 0


def test_random_states_are_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    evaluate(noisy, "edp/Countdown-v0", seed=5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_random_state_and_modes_come_back_after_an_error():
    policy = policy_of(lambda obs: torch.randn(10, 3), nn.Dropout())
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"action: expected shape \(10, 2\), got \(10, 3\)"):
        evaluate(policy, "edp/Countdown-v0", seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert policy.extra.training and torch.is_grad_enabled()


def test_policy_runs_in_eval_mode_without_gradients_and_sampling():
    seen = {}
    dropout, frozen = nn.Dropout(), nn.Dropout().eval()

    def spy(obs):
        seen.update(mode=dropout.training, grad=torch.is_grad_enabled(), exploration=exploration_type())
        assert not torch.is_inference_mode_enabled()
        return torch.zeros(obs.shape[0], 2)

    policy = policy_of(spy, nn.Sequential(dropout, frozen))
    evaluate(policy, "edp/Countdown-v0", seed=0)
    assert seen == {"mode": False, "grad": False, "exploration": ExplorationType.RANDOM}
    assert policy.training and dropout.training and not frozen.training
    evaluate(policy, "edp/Countdown-v0", seed=0, exploration_type=ExplorationType.DETERMINISTIC)
    assert seen["exploration"] is ExplorationType.DETERMINISTIC


def test_compiled_policy_is_traced_once():
    traces = []

    def backend(graph, _):
        traces.append(graph)
        return graph.forward

    network = nn.Linear(1, 2)
    policy = TensorDictModule(torch.compile(network, backend=backend), ["observation"], ["action"])
    with PolicyEvaluator("edp/Countdown-v0", num_episodes=3) as evaluator:
        results = [evaluator(policy, seed) for seed in range(3)]
        plain = evaluator(TensorDictModule(network, ["observation"], ["action"]), 0)
    assert len(traces) == 1
    assert torch.equal(results[0].returns, plain.returns)


def test_dict_observations_are_concatenated_in_the_order_given():
    seen = []

    def spy(obs):
        seen.append(obs.clone())
        return torch.ones(obs.shape[0], 2)

    options = {"env_kwargs": {"as_dict": True}, "num_episodes": 2, "seed": 0}
    evaluate(policy_of(spy), "edp/Countdown-v0", observation_keys=["noise", "left"], **options)
    assert torch.equal(seen[0][:, 0], seen[0][:, 1] + 100)
    for keys in (None, [], ["left", "right"], ["id"]):
        with pytest.raises(ValueError, match=r"observation_keys: expected Box entries among .*'left'.*from_arrays"):
            evaluate(ones, "edp/Countdown-v0", observation_keys=keys, **options)


def test_sizes_are_those_of_the_concatenated_entries():
    sizes = {}
    for keys in (["left"], ["noise", "left"]):
        with PolicyEvaluator("edp/Countdown-v0", observation_keys=keys, env_kwargs={"as_dict": True}) as evaluator:
            sizes[len(keys)] = evaluator.observation_size, evaluator.action_shape
    assert sizes == {1: (1, (2,)), 2: (2, (2,))}


def test_step_limit_replaces_the_environments_own():
    options = {"seed": 0, "num_episodes": 3, "env_kwargs": {"endless": True}}
    assert evaluate(ones, "edp/Countdown-v0", max_steps=4, **options).lengths.tolist() == [4, 4, 4]
    assert evaluate(ones, "edp/Countdown-v0", **options).lengths.tolist() == [1000] * 3
    with pytest.raises(ValueError, match="NoLimit-v0 has no step limit of its own: pass max_steps .*env.max_"):
        evaluate(ones, "edp/NoLimit-v0", **options)


def test_environment_may_be_given_by_its_spec():
    spec = gymnasium.spec("edp/Countdown-v0")
    expected = evaluate(ones, "edp/Countdown-v0", seed=2)
    assert torch.equal(evaluate(ones, spec, seed=2).returns, expected.returns)


def test_actions_are_clipped_and_checked():
    plain = evaluate(ones, "edp/Countdown-v0", seed=0)
    clipped = evaluate(policy_of(lambda obs: torch.full((10, 2), 9.0)), "edp/Countdown-v0", seed=0)
    assert torch.equal(plain.returns, clipped.returns)
    bad = policy_of(lambda obs: torch.tensor([[0.0, 0.0], [0.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"action: expected finite values, got nan at \[1, 1\]"):
        evaluate(bad, "edp/Countdown-v0", seed=0, num_episodes=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_episodes": 0}, "num_episodes must be at least 1, got 0"),
        ({"reference": (2.0, 2.0)}, "reference: expected two different returns"),
        ({"env_id": "edp/Discrete-v0"}, "action space of edp/Discrete-v0: expected a Box, .* env.name"),
        ({"env_id": "edp/Nothing-v0"}, "got 'edp/Nothing-v0' .* env.name=module:Name-v0.* correct the id"),
        ({"env_kwargs": {"maze_map": 1}}, "got 'edp/Countdown-v0' .*unexpected keyword .*maze_map"),
        ({"env_id": "no_such_module:Maze-v0"}, "got 'no_such_module:Maze-v0' .* pip install gymnasium-robotics"),
        ({"observation_keys": ["left"]}, "observation_keys: expected None"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PolicyEvaluator(**{"env_id": "edp/Countdown-v0", **options})


def test_statistics_by_hand():
    result = EvaluationResult(torch.tensor([10.0, 20.0, 60.0]), torch.tensor([1, 2, 3]), (-10.0, 90.0, 1000))
    assert result.mean == pytest.approx(30.0)
    assert result.std == pytest.approx((1400 / 3) ** 0.5)  # population, as numpy
    assert result.normalized == pytest.approx(40.0)
    assert result.normalized_std == pytest.approx((1400 / 3) ** 0.5)
    bare = EvaluationResult(result.returns, result.lengths)
    assert bare.normalized is None and bare.normalized_std is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_random_states_are_left_alone():
    network = nn.Linear(1, 2, device="cuda")
    policy = policy_of(lambda obs: network(obs) * 0 + torch.rand(10, 2, device="cuda"), network)
    before = torch.get_rng_state(), torch.cuda.get_rng_state_all()
    results = [evaluate(policy, "edp/Countdown-v0", seed=5) for _ in range(2)]
    assert torch.equal(results[0].returns, results[1].returns)
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(map(torch.equal, before[1], torch.cuda.get_rng_state_all()))
