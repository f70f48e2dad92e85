"""Roll a policy out in E environments at once, one episode each.

Shapes: `E` episodes, `O` observation, `A` action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type


@dataclass(frozen=True)
class EvaluationResult:
    """Returns and lengths of a set of episodes, and their statistics.

    Args:
        returns: undiscounted return of each episode, float64 [E].
        lengths: steps of each episode, int64 [E].
        reference: the returns that score 0 and 100 (a random and an expert policy), if any; entries
            after these two, as in `torchrl_edp.data.ReferenceScore`, are left alone.

    Example:
        >>> result = EvaluationResult(torch.tensor([1.0, 3.0]), torch.tensor([5, 9]), reference=(0.0, 4.0))
        >>> result.mean, result.std, result.normalized, result.normalized_std
        (2.0, 1.0, 50.0, 25.0)
    """

    returns: Tensor
    lengths: Tensor
    reference: Sequence[float] | None = None

    @property
    def mean(self) -> float:
        """Mean return."""
        return self.returns.mean().item()

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes (of the population, as numpy's)."""
        return self.returns.std(correction=0).item()

    @property
    def normalized(self) -> float | None:
        """Mean D4RL-normalised score in percent, None without a reference."""
        if self.reference is None:
            return None
        low, high, *_ = self.reference
        return 100 * (self.mean - low) / (high - low)

    @property
    def normalized_std(self) -> float | None:
        """Standard deviation of the normalised score over episodes, None without a reference."""
        if self.reference is None:
            return None
        low, high, *_ = self.reference
        return 100 * self.std / (high - low)


class PolicyEvaluator:
    """E copies of an environment, kept for many evaluations of a policy.

    `observation_size` (concatenated), `action_shape` and `action_bounds` (low and high) are those of the environment.

    Every copy runs exactly one episode per call, so that short episodes count no more than long ones.
    The policy always sees the full batch [E, O] (a compiled policy is compiled once); what it says for
    finished episodes is ignored. The copies are stepped by a plain loop in this process: for 10 MuJoCo
    environments that took 0.95 ms per step of Hopper, gymnasium's SyncVectorEnv 1.0 and AsyncVectorEnv
    1.5 to 2.1.

    Args:
        env_id: gymnasium's id of the environment, or its EnvSpec. `"module:id"` imports a module that
            registers it, as in `"gymnasium_robotics:PointMaze_UMaze-v3"`.
        num_episodes: number of copies, E.
        max_steps: step limit of an episode, in place of the environment's own.
        reference: returns that score 0 and 100, for the normalised score.
        observation_keys: for dict observations, the entries to concatenate, in this order.
        env_kwargs: keyword arguments of the environment.

    Raises:
        ValueError: if episodes would have no end, if observations are a dict and `observation_keys`
            does not name its entries, if a space is not a Box, or if the environment is not installed.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> push = TensorDictModule(lambda obs: obs[..., :1].sign(), ["observation"], ["action"])
        >>> evaluator = PolicyEvaluator("InvertedPendulum-v5", num_episodes=3, max_steps=50)
        >>> result = evaluator(push, seed=0)
        >>> result.returns.shape, bool((result.lengths <= 50).all())
        (torch.Size([3]), True)
        >>> evaluator.close()
    """

    def __init__(
        self,
        env_id: Any,
        *,
        num_episodes: int = 10,
        max_steps: int | None = None,
        reference: Sequence[float] | None = None,
        observation_keys: Sequence[str] | None = None,
        env_kwargs: dict[str, Any] | None = None,
    ) -> None:
        import gymnasium

        if num_episodes < 1:
            raise ValueError(f"num_episodes must be at least 1, got {num_episodes}")
        if reference is not None and reference[0] == reference[1]:
            raise ValueError(f"reference: expected two different returns, got {reference}")
        self.reference = reference
        options = {"max_episode_steps": max_steps, "disable_env_checker": True, **(env_kwargs or {})}
        try:
            self.envs = [gymnasium.make(env_id, **options) for _ in range(num_episodes)]
        except (gymnasium.error.Error, ImportError, TypeError) as error:  # TypeError: of its arguments
            raise ValueError(
                f"environment: expected one that Gymnasium can make here, got {env_id!r} ({error}). Install the "
                "package that has it (mazes, Adroit, FrankaKitchen: pip install gymnasium-robotics), name the module "
                "that registers it (a run's env.name=module:Name-v0), or correct the id."
            ) from error
        env = self.envs[0]
        if env.spec is None or env.spec.max_episode_steps is None:
            raise ValueError(
                f"{env_id} has no step limit of its own: pass max_steps (to a run: env.max_episode_steps=...)."
            )
        if not isinstance(env.action_space, gymnasium.spaces.Box):
            raise ValueError(
                f"action space of {env_id}: expected a Box, got {env.action_space}. Policies here give continuous "
                "actions: name another environment (of a run: env.name)."
            )
        self._low, self._high = env.action_space.low, env.action_space.high
        self._flatten = _flattener(env.observation_space, observation_keys)
        self.action_shape = env.action_space.shape
        self.action_bounds = np.stack([self._low, self._high]).astype(np.float32)
        self.observation_size = self._flatten(env.observation_space.sample()).size

    def __call__(
        self,
        policy: TensorDictModule,
        seed: int,
        *,
        device: torch.device | str | None = None,
        exploration_type: ExplorationType = ExplorationType.RANDOM,
    ) -> EvaluationResult:
        """Run one episode per environment; the same seed gives the same result.

        The caller's random state, gradients and train/eval modes are left as they were. The policy
        runs in eval mode under `no_grad` (not inference mode: tensors that a policy caches must stay
        usable in training).

        Args:
            policy: reads `observation` float32 [E, O], writes `action` [E, A] in the environment's units
                (clipped to the bounds here, as is usual).
            seed: of the environments and of the policy's random draws.
            device: where the policy runs; by default where its first parameter is.
            exploration_type: RANDOM samples the policy, DETERMINISTIC, MEAN and MODE do as it defines.

        Raises:
            ValueError: if an action has the wrong shape or is not finite.
        """
        device = _device_of(policy) if device is None else torch.device(device)
        with (
            forked_rng(seed, device),
            _eval_mode(policy),
            torch.no_grad(),
            set_exploration_type(exploration_type),
        ):
            return self._run(policy, device)

    def _run(self, policy: TensorDictModule, device: torch.device) -> EvaluationResult:
        num_envs = len(self.envs)
        seeds = torch.randint(2**31 - 1, (num_envs,)).tolist()
        starts = [env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=True)]
        observations = torch.tensor(np.stack([self._flatten(start) for start in starts]), dtype=torch.float32)
        rows = observations.numpy()  # the same memory
        returns, lengths = [0.0] * num_envs, [0] * num_envs
        running = list(range(num_envs))
        while running:
            data = TensorDict({"observation": observations.to(device, copy=True)}, [num_envs], device=device)
            actions = self._actions(policy(data)["action"])
            for i in tuple(running):
                observation, reward, terminated, truncated, _ = self.envs[i].step(actions[i])
                rows[i] = self._flatten(observation)
                returns[i] += float(reward)
                lengths[i] += 1
                if terminated or truncated:
                    running.remove(i)
        total = torch.tensor(returns, dtype=torch.float64)
        return EvaluationResult(total, torch.tensor(lengths), self.reference)

    def _actions(self, action: Tensor) -> np.ndarray:
        actions = action.to("cpu", torch.float32).numpy()
        expected = (len(self.envs), *self._low.shape)
        if actions.shape != expected:
            raise ValueError(f"action: expected shape {expected}, got {actions.shape}")
        if not np.isfinite(actions).all():
            first = np.argwhere(~np.isfinite(actions))[0].tolist()
            raise ValueError(f"action: expected finite values, got {actions[tuple(first)]} at {first}")
        return np.clip(actions, self._low, self._high)

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def __enter__(self) -> PolicyEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def evaluate(
    policy: TensorDictModule,
    env_id: Any,
    *,
    seed: int,
    num_episodes: int = 10,
    max_steps: int | None = None,
    device: torch.device | str | None = None,
    reference: Sequence[float] | None = None,
    observation_keys: Sequence[str] | None = None,
    exploration_type: ExplorationType = ExplorationType.RANDOM,
    env_kwargs: dict[str, Any] | None = None,
) -> EvaluationResult:
    """Evaluate a policy once: `PolicyEvaluator` built, called and closed; its arguments are explained there.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> stand = TensorDictModule(lambda obs: torch.zeros(obs.shape[0], 3), ["observation"], ["action"])
        >>> evaluate(stand, "Hopper-v5", seed=0, num_episodes=2, reference=(-20.27, 3234.3)).normalized > 0
        True
    """
    with PolicyEvaluator(
        env_id,
        num_episodes=num_episodes,
        max_steps=max_steps,
        reference=reference,
        observation_keys=observation_keys,
        env_kwargs=env_kwargs,
    ) as evaluator:
        return evaluator(policy, seed, device=device, exploration_type=exploration_type)


def _flattener(space: Any, keys: Sequence[str] | None) -> Callable[[Any], np.ndarray]:
    """How to turn one observation of `space` into one flat array."""
    from gymnasium.spaces import Box, Dict

    if isinstance(space, Box):
        if keys is not None:
            raise ValueError(f"observation_keys: expected None, since observations are no dict, got {keys}.")
        return np.ravel
    if not isinstance(space, Dict):
        raise ValueError(f"observation space: expected a Box or a Dict of them, got {space}.")
    names = () if keys is None else tuple(keys)
    if not names or any(not isinstance(space.spaces.get(name), Box) for name in names):
        raise ValueError(
            f"observation_keys: expected Box entries among {list(space.spaces)}, got {keys}. Name those that the "
            "policy reads, in its data's order (own data: from_arrays(observation_keys=...))."
        )
    return lambda observation: np.concatenate([np.ravel(observation[name]) for name in names])


def _device_of(policy: Any) -> torch.device:
    parameter = next(policy.parameters(), None) if isinstance(policy, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def forked_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of `device`, and of no other device; restore them afterwards.

    Example:
        >>> with forked_rng(0, torch.device("cpu")):
        ...     first = torch.rand(1)
        >>> with forked_rng(0, torch.device("cpu")):
        ...     assert torch.equal(torch.rand(1), first)
    """
    cuda = device.type == "cuda"
    index = torch.cuda.current_device() if cuda and device.index is None else device.index
    with torch.random.fork_rng(devices=[index] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextmanager
def _eval_mode(policy: Any) -> Iterator[None]:
    modules = list(policy.modules()) if isinstance(policy, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
