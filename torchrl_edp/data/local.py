"""Data sets made on this machine by the package's behaviour policies, for work without a network.

They are counterparts of the public sets in kind, not in content: other policies, other environment versions. Mazes
are walked through by a script (:mod:`torchrl_edp.data.maze`), as for D4RL.
Hence their ids begin with ``local/``, and their scores are never comparable with D4RL's.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_edp.data.behavior import BehaviorPolicy, list_behaviors, load_behavior
from torchrl_edp.data.checks import problem
from torchrl_edp.data.collect import Episode, collect_episodes
from torchrl_edp.data.dataset import OfflineDataset
from torchrl_edp.data.loading import load_minari
from torchrl_edp.data.maze import MAZES, WaypointController
from torchrl_edp.data.scores import reference_for

NUM_STEPS = 100_000
LEVELS = {"medium": ("medium",), "expert": ("expert",), "medium-expert": ("medium", "expert")}
PARTS = ("medium", "expert", "waypoints")  # a part's place seeds it
Behavior = BehaviorPolicy | WaypointController


def list_local_counterparts(behavior_dir: Path | None = None) -> list[str]:
    """Ids that :func:`make_local_dataset` can make, given the behaviour policies that exist.

    Mazes need no policy, only the extra ``robotics``; with a ``behavior_dir`` of your own they are left out.
    """
    found = list_behaviors(behavior_dir)
    ids = [f"local/{t}/{n}-v0" for t, have in found.items() for n, need in LEVELS.items() if {*need} <= {*have}]
    return ids if behavior_dir else [*ids, *(f"local/pointmaze/{maze}-v0" for maze in MAZES)]


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

    Sampled actions, whole episodes with their true last observations; the same seed gives the same bytes on every
    machine (of one processor family: beyond, sine and cosine may differ in the last bit). Sizes and seeds other than
    the defaults get ids of their own (``local/hopper/medium-n5000-s1-v0``), so that they never overwrite each other.
    The set appears under its id only once it is complete; an interrupted make leaves nothing.

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
            are not valid data, where they cannot be written, or for mazes without gymnasium-robotics.

    Examples:
        >>> from torchrl_edp.data import make_local_dataset
        >>> data = make_local_dataset("local/hopper/medium-v0", num_steps=1000)  # doctest: +SKIP
    """
    from minari.storage import get_dataset_path

    task, level = _parse(dataset_id, behavior_dir)
    for name, value, least in (("num_steps", num_steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise problem(name, f"a whole number, at least {least}", repr(value), f"Give {name} as an int.")
    policies: dict[str, Behavior]
    if task == "pointmaze" and behavior_dir is None:
        policies = {"waypoints": WaypointController(level)}
    else:
        policies = {part: load_behavior(task, part, behavior_dir) for part in LEVELS[level]}
    recipe = {
        "num_steps": int(num_steps),
        "seed": int(seed),
        "arithmetic": "float64",
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
    if not match or dataset_id not in list_local_counterparts(behavior_dir):
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
        f"{target} is damaged, or was made in another way or by other behaviour policies than today's: making it anew.",
        stacklevel=4,
    )
    return False


def _make(
    dataset_id: str, target: Path, policies: dict[str, Behavior], recipe: dict[str, Any], progress: bool
) -> OfflineDataset:
    """Roll out, write beside the target, load (which checks everything), and only then rename."""
    from tqdm import tqdm

    total = recipe["num_steps"] * len(policies)
    with tqdm(total=total, desc=f"making {dataset_id}", unit="step", disable=None if progress else True) as bar:
        parts = {
            part: _collect(policy, recipe["num_steps"], [recipe["seed"], PARTS.index(part)], bar)
            for part, policy in policies.items()
        }
    recipe = {**recipe, "episodes": {part: len(episodes) for part, episodes in parts.items()}}
    policy = next(iter(policies.values()))
    episodes = [episode for part in parts.values() for episode in part]
    with _staging(target) as root:
        _write(dataset_id, episodes, policy, recipe)
        data = load_minari(root / dataset_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(root / "replaced")
        (root / dataset_id).rename(target)
    return data


def _collect(policy: Behavior, num_steps: int, seed: list[int], bar: Any) -> list[Episode]:
    if isinstance(policy, WaypointController):
        return policy.collect(num_steps, seed, bar)
    return collect_episodes(policy, num_steps, seed, bar)


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


def _write(dataset_id: str, episodes: list[Episode], policy: Behavior, recipe: dict[str, Any]) -> None:
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for index, episode in enumerate(episodes):
        last = np.arange(1, len(episode.rewards) + 1) == len(episode.rewards)
        buffers.append(
            EpisodeBuffer(
                id=index,
                observations=_stack(episode.observations),
                actions=np.stack(episode.actions),
                rewards=np.array(episode.rewards),
                terminations=last & episode.terminated,
                truncations=last & (not episode.terminated),
            )
        )
    if isinstance(policy, WaypointController):
        algorithm, spec = "scripted waypoints", policy.make_env().spec
    else:
        algorithm, spec = "SAC, sampled actions", gymnasium.spec(policy.card["env_id"])
    reference = reference_for(dataset_id) or reference_for(spec.id)
    scores = {"ref_min_score": reference.min, "ref_max_score": reference.max} if reference else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari asks for an author's address and a permalink
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=spec,
            algorithm_name=algorithm,
            description="Made on this machine by torchrl_edp's behaviour policies. A local counterpart, "
            "not D4RL's nor Farama's data: compare its scores with local runs only.",
            **scores,
        )
    dataset.storage.update_metadata({"local_counterpart": recipe})


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
