"""Roll-outs of behaviour policies, as whole episodes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from torchrl_edp.data.behavior import BehaviorPolicy
from torchrl_edp.data.checks import problem
from torchrl_edp.data.transforms import ActionScaler

NUM_ENVS = 32


@dataclass
class Episode:
    """One roll-out: T + 1 observations (arrays or dicts), T actions and rewards; ``terminated`` tells how it ended."""

    observations: list[Any]
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False

    def add(self, observation: Any, action: np.ndarray, reward: float) -> None:
        """One more step: the action, and what came of it."""
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(float(reward))


def collect_episodes(policy: BehaviorPolicy, num_steps: int, seed: list[int], bar: Any = None) -> list[Episode]:
    """Whole episodes with at least ``num_steps`` transitions in all, from environments side by side.

    Without bias towards short or long episodes: whether another episode starts depends on the past alone,
    every episode that starts is finished and kept, so that each kept one is a fresh draw (Wald). Keeping
    those that *end* first would favour short ones; cutting at ``num_steps`` would leave an episode half.

    The same on every machine: processors and numbers of threads round float32 products in ways of their own, and the
    simulation makes another episode of the last bit. So the policy computes in float64, whose differences are gone once
    its actions are rounded to float32.
    """
    policy = deepcopy(policy).double()
    count = min(NUM_ENVS, num_steps)
    envs = _make_envs(policy, count)
    *env_seeds, policy_seed = np.random.SeedSequence(seed).generate_state(count + 1).tolist()
    resets: list[dict[str, Any]] = [{"seed": s} for s in env_seeds]  # seeded once; later episodes go on from there
    generator = torch.Generator().manual_seed(policy_seed)
    space: Any = envs[0].action_space
    scaler = ActionScaler(space.low, space.high)
    episodes: list[Episode] = []
    running: dict[int, Episode] = {}
    guess = getattr(envs[0].spec, "max_episode_steps", None) or 1000  # expected length, until one has ended
    steps = done = 0
    while True:
        for slot in [slot for slot in range(count) if slot not in running]:
            # Steps in sight: those of ended episodes, and for running ones at least the expected length.
            if steps + sum(max(guess, len(e.rewards)) for e in running.values()) >= num_steps:
                break
            observation, _ = envs[slot].reset(**resets[slot])
            resets[slot], running[slot] = {}, Episode([np.asarray(observation, np.float32)])
            episodes.append(running[slot])
        if not running:
            break
        latest = torch.from_numpy(np.stack([e.observations[-1] for e in running.values()])).double()
        actions = scaler.inverse(policy(latest, generator)).float().numpy().clip(space.low, space.high)
        for (slot, episode), action in zip(list(running.items()), actions, strict=True):
            observation, reward, episode.terminated, truncated, _ = envs[slot].step(action)
            episode.add(np.asarray(observation, np.float32), action, reward)
            if episode.terminated or truncated:
                del running[slot]
                steps, done = steps + len(episode.rewards), done + 1
                guess = steps / done
        if bar is not None:
            bar.update(len(actions))
    for env in envs:
        env.close()
    return episodes


def _make_envs(policy: BehaviorPolicy, count: int) -> list[Any]:
    """The policy's environments; it must fit their spaces."""
    import gymnasium

    try:
        envs = [gymnasium.make(policy.card["env_id"], disable_env_checker=True) for _ in range(count)]
    except (gymnasium.error.Error, ImportError) as error:
        got, remedy = f"{policy.card['env_id']!r} ({error!r})", "Install or register it; the policy's card names it."
        raise problem("env_id", "an environment that Gymnasium can make", got, remedy) from error
    linear = [layer for layer in policy.layers if isinstance(layer, torch.nn.Linear)]
    expected = f"spaces of shape ({linear[0].in_features},) and ({linear[-1].out_features // 2},)"
    got = f"{envs[0].observation_space.shape} and {envs[0].action_space.shape}"
    if expected != f"spaces of shape {got}":
        raise problem(f"environment {policy.card['env_id']}", expected, got, "Train a policy for this environment.")
    return envs
