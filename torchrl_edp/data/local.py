"""Data sets made on this machine by the package's behaviour policies, for work without a network.

They are counterparts of the public sets in kind, not in content: other policies, other environment versions.
Hence their ids begin with ``local/``, and their scores are never comparable with D4RL's.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrl_edp.data.behavior import BehaviorPolicy, list_behaviors, load_behavior
from torchrl_edp.data.checks import problem
from torchrl_edp.data.dataset import OfflineDataset
from torchrl_edp.data.loading import load_minari
from torchrl_edp.data.scores import reference_for
from torchrl_edp.data.transforms import ActionScaler

NUM_STEPS = 100_000
NUM_ENVS = 32
LEVELS = {"medium": ("medium",), "expert": ("expert",), "medium-expert": ("medium", "expert")}


def list_local_counterparts(behavior_dir: Path | None = None) -> list[str]:
    """Ids that :func:`make_local_dataset` can make, given the behaviour policies that exist."""
    found = list_behaviors(behavior_dir)
    return [f"local/{t}/{n}-v0" for t, have in found.items() for n, need in LEVELS.items() if {*need} <= {*have}]


def make_local_dataset(
    dataset_id: str,
    *,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    progress: bool = True,
    force: bool = False,
    behavior_dir: Path | None = None,
) -> OfflineDataset:
    """A local counterpart of a public data set, made once and then loaded from Minari's folder.

    Sampled actions, whole episodes with their true last observations, reproducible from the seed. Sizes and
    seeds other than the defaults get ids of their own (``local/hopper/medium-n5000-s1-v0``), so that they
    never overwrite each other. The set appears under its id only once it is complete; an interrupted make
    leaves nothing.

    Args:
        dataset_id: e.g. ``"local/hopper/medium-expert-v0"``; :func:`list_local_counterparts` names all.
        num_steps: least number of transitions of each behaviour policy (the last episodes are finished);
            twice that for ``medium-expert``, the medium ones first.
        seed: seed of environments and policy; the halves of ``medium-expert`` equal ``medium`` and
            ``expert``.
        progress: show a bar with speed and time left.
        force: make it again even if it exists.
        behavior_dir: other behaviour policies than the package's.

    Raises:
        DatasetError: for unknown ids, where a behaviour policy is missing or does not fit, where its roll-outs
            are not valid data, or where they cannot be written.

    Examples:
        >>> from torchrl_edp.data import make_local_dataset
        >>> data = make_local_dataset("local/hopper/medium-v0", num_steps=1000)  # doctest: +SKIP
    """
    from minari.storage import get_dataset_path

    task, level = _parse(dataset_id, behavior_dir)
    for name, value, least in (("num_steps", num_steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise problem(name, f"a whole number, at least {least}", repr(value), f"Give {name} as an int.")
    policies = {part: load_behavior(task, part, behavior_dir) for part in LEVELS[level]}
    recipe = {
        "num_steps": int(num_steps),
        "seed": int(seed),
        "policies": {part: policy.fingerprint() for part, policy in policies.items()},
    }
    if (num_steps, seed) != (NUM_STEPS, 0):
        dataset_id = f"local/{task}/{level}-n{num_steps}-s{seed}-v0"
    try:
        target = get_dataset_path(dataset_id)
        if force or not _is_current(target, recipe):
            return _make(dataset_id, target, policies, recipe, progress)
    except OSError as error:
        remedy = "Make room there, or have MINARI_DATASETS_PATH name a folder that you may write to."
        raise problem(dataset_id, "a place to write the set to", f"{error!r}", remedy) from error
    return load_minari(dataset_id, download=False)


def _parse(dataset_id: str, behavior_dir: Path | None) -> tuple[str, str]:
    match = re.fullmatch(r"local/(\w+)/([\w-]+?)-v0", str(dataset_id))
    if not match or match[2] not in LEVELS or dataset_id not in list_local_counterparts(behavior_dir):
        existing = list_local_counterparts(behavior_dir)
        remedy = "Choose one of these, or train the missing behaviour policy with examples/train_behavior.py."
        raise problem("local data set", f"one of {existing}", repr(dataset_id), remedy)
    return match[1], match[2]


def _is_current(target: Path, recipe: dict[str, Any]) -> bool:
    from minari.dataset.minari_storage import MinariStorage

    if not target.exists():
        return False
    try:
        stored = MinariStorage.read_raw_metadata(target / "data").get("local_counterpart", {})
        if recipe.items() <= stored.items():
            return True
    except (ValueError, AttributeError):  # no metadata, or not what this library writes
        pass
    warnings.warn(
        f"{target} is damaged or was made by other behaviour policies than today's: making it again.", stacklevel=4
    )
    return False


def _make(
    dataset_id: str, target: Path, policies: dict[str, BehaviorPolicy], recipe: dict[str, Any], progress: bool
) -> OfflineDataset:
    """Roll out, write beside the target, load (which checks everything), and only then rename."""
    from tqdm import tqdm

    total = recipe["num_steps"] * len(policies)
    with tqdm(total=total, desc=f"making {dataset_id}", unit="step", disable=None if progress else True) as bar:
        parts = {
            part: collect_episodes(policy, recipe["num_steps"], [recipe["seed"], [*LEVELS].index(part)], bar)
            for part, policy in policies.items()
        }
    recipe = {**recipe, "episodes": {part: len(episodes) for part, episodes in parts.items()}}
    policy = next(iter(policies.values()))
    episodes = [episode for part in parts.values() for episode in part]
    with _staging(target) as root:
        _write(dataset_id, episodes, policy.card["env_id"], recipe)
        data = load_minari(root / dataset_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(root / "replaced")
        (root / dataset_id).rename(target)
    return data


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A hidden folder beside Minari's sets, which Minari takes for its root meanwhile; removed at the end."""
    from minari.storage import get_dataset_path

    before, root = os.environ.get("MINARI_DATASETS_PATH"), get_dataset_path()
    with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before


@dataclass
class Episode:
    """One roll-out: T + 1 observations, T actions and rewards; ``terminated`` tells how it ended."""

    observations: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False


def collect_episodes(policy: BehaviorPolicy, num_steps: int, seed: list[int], bar: Any = None) -> list[Episode]:
    """Whole episodes with at least ``num_steps`` transitions in all, from environments side by side.

    Without bias towards short or long episodes: whether another episode starts depends on the past alone,
    every episode that starts is finished and kept, so that each kept one is a fresh draw (Wald). Keeping
    those that *end* first would favour short ones; cutting at ``num_steps`` would leave an episode half.
    """
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
        latest = torch.from_numpy(np.stack([e.observations[-1] for e in running.values()]))
        actions = scaler.inverse(policy(latest, generator)).numpy().clip(space.low, space.high)
        for (slot, episode), action in zip(list(running.items()), actions, strict=True):
            observation, reward, episode.terminated, truncated, _ = envs[slot].step(action)
            episode.observations.append(np.asarray(observation, np.float32))
            episode.actions.append(action)
            episode.rewards.append(float(reward))
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


def _write(dataset_id: str, episodes: list[Episode], env_id: str, recipe: dict[str, Any]) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for index, episode in enumerate(episodes):
        last = np.arange(1, len(episode.rewards) + 1) == len(episode.rewards)
        buffers.append(
            EpisodeBuffer(
                id=index,
                observations=np.stack(episode.observations),
                actions=np.stack(episode.actions),
                rewards=np.array(episode.rewards),
                terminations=last & episode.terminated,
                truncations=last & (not episode.terminated),
            )
        )
    reference = reference_for(dataset_id) or reference_for(env_id)
    scores = {"ref_min_score": reference.min, "ref_max_score": reference.max} if reference else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari asks for an author's address and a permalink
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=env_id,
            algorithm_name="SAC, sampled actions",
            description="Made on this machine by torchrl_edp's behaviour policies. A local counterpart, "
            "not D4RL's nor Farama's data: compare its scores with local runs only.",
            **scores,
        )
    dataset.storage.update_metadata({"local_counterpart": recipe})
