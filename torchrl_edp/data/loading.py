"""Minari sets, by id or from disk, as validated data sets.

TorchRL 0.14.1's own loader (``MinariExperienceReplay``) returns zeros, hence this one.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchrl_edp.data.checks import DatasetError, as_flags, as_floats, problem
from torchrl_edp.data.dataset import OfflineDataset, build_dataset
from torchrl_edp.data.scores import ReferenceScore, reference_for

if TYPE_CHECKING:
    from minari import MinariDataset

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
LARGE = 200_000  # transitions from which on a progress bar appears


def load_minari(
    dataset_id_or_path: str | os.PathLike[str],
    *,
    download: bool = True,
    observation_keys: tuple[str, ...] | None = None,
    clip_actions: bool = False,
    progress: bool = True,
) -> OfflineDataset:
    """A Minari data set, by id (downloaded once) or from a folder on disk, as validated float32 transitions.

    Minari stores T + 1 observations per episode, so every transition has its true next observation and
    nothing is dropped. An episode ends where its record ends (truncated, unless a flag says otherwise) and at
    every flag before.

    Args:
        dataset_id_or_path: e.g. ``"mujoco/hopper/medium-v0"``, or the folder that holds
            ``data/metadata.json``.
        download: fetch the set from Minari's server where it is not on disk.
        observation_keys: entries of a dict observation to concatenate, in this order. Default for goal
            environments: observation, achieved_goal, desired_goal, as far as they are flat (AntMaze keeps the
                ant's position in
            achieved_goal only; FrankaKitchen's nested goals are constants); else every entry in the space's
            order.
        clip_actions: clip actions to the action space where they leave it, instead of refusing.
        progress: show a bar for large sets.

    Raises:
        DatasetError: for unknown ids, missing or damaged files, unsupported spaces and invalid contents.

    Examples:
        >>> from torchrl_edp.data import load_minari
        >>> data = load_minari("mujoco/hopper/medium-v0")  # doctest: +SKIP
    """
    source = _open(dataset_id_or_path, download)
    keys = _observation_keys(source.observation_space, observation_keys)
    _require_box("actions", source.action_space)
    try:
        metadata = source.storage.metadata
        episodes = [_convert(episode, keys) for episode in _read(source, progress)]
    except DatasetError:
        raise
    except Exception as error:  # h5py, pyarrow and minari raise many kinds on damaged files
        raise _damaged(source.spec.data_path, error) from error
    steps = sum(len(episode["rewards"]) for episode in episodes)
    if steps != int(metadata["total_steps"]):
        expected, got = f"{metadata['total_steps']} steps as in metadata.json", f"{steps} steps"
        raise problem(
            str(source.spec.data_path), expected, got, "The set is incomplete: delete its folder, load again."
        )
    if not episodes:
        raise problem(source.spec.dataset_id, "at least one episode", "none", "Delete its folder and load it again.")
    fields: dict[str, Any] = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    space = source.action_space
    return build_dataset(
        **fields,
        action_low=space.low,
        action_high=space.high,
        clip_actions=clip_actions,
        observation_keys=keys,
        **_about(source.spec.dataset_id, source.spec.env_spec, metadata),
    )


def local_dataset_ids() -> list[str]:
    """Ids of the sets in Minari's folder on this machine."""
    import minari

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(minari.list_local_datasets())


def _open(name: str | os.PathLike[str], download: bool) -> MinariDataset:
    import minari
    from minari.storage import get_dataset_path

    folder = Path(name).expanduser()
    is_path = not isinstance(name, str) or folder.is_absolute() or name.startswith(".") or folder.suffix == ".hdf5"
    if not is_path and not (folder / "data" / "metadata.json").exists():
        folder = get_dataset_path(str(name))
        if not (folder / "data").exists():
            return _download(str(name), download)
    folder = folder.parent if folder.suffix == ".hdf5" else folder
    folder = folder / "data" if (folder / "data").is_dir() else folder
    if not (folder / "metadata.json").exists():
        remedy = "Give the folder that holds data/metadata.json; after an interrupted download, delete it."
        raise problem(str(folder), "a Minari data set", "no metadata.json", remedy)
    try:
        return minari.MinariDataset(folder)
    except Exception as error:
        raise _damaged(folder, error) from error


def _download(name: str, download: bool) -> MinariDataset:
    import minari

    local = f"On this machine: {local_dataset_ids() or 'none'}."
    if name.startswith("local/"):
        raise problem("data set", "an existing local counterpart", repr(name), f"make_local_dataset makes it. {local}")
    if not re.fullmatch(r"[-\w/]+-v\d+", name):
        raise problem("data set", "an id such as mujoco/hopper/medium-v0, or a folder", repr(name), local)
    try:
        return minari.load_dataset(name, download=download)
    except Exception as error:  # no such id, no network, no huggingface_hub, malformed id: all end here
        reason = f"{type(error).__name__}: {error}"
        remedy = f"Check the id (`minari list remote`) and the network. {local}"
        raise problem(f"data set {name!r}", "an id of a Minari data set", reason, remedy) from error


def _damaged(folder: str | os.PathLike[str], error: Exception) -> DatasetError:
    remedy = "The files are damaged or incomplete: delete the folder and load the set again."
    return problem(str(folder), "a readable Minari data set", f"{type(error).__name__}: {error}", remedy)


def _read(source: MinariDataset, progress: bool) -> Iterator[dict[str, Any]]:
    from tqdm import tqdm

    large = progress and source.total_steps >= LARGE
    episodes = source.storage.get_episodes(source.episode_indices)
    # disable=None: no bar where the output is not a terminal.
    yield from tqdm(episodes, total=source.total_episodes, desc="episodes", disable=None if large else True)


def _convert(episode: dict[str, Any], keys: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    """Transitions of one episode; errors name the episode."""
    name = f"episode {episode['id']}"
    record = episode["observations"]
    parts = {"observations": record} if keys is None else {f"observations/{key}": record[key] for key in keys}
    observations = np.concatenate([as_floats(f"{name}, {part}", value, 2) for part, value in parts.items()], axis=1)
    rewards = as_floats(f"{name}, rewards", episode["rewards"], 1)
    terminated = as_flags(f"{name}, terminations", episode["terminations"])
    truncated = as_flags(f"{name}, truncations", episode["truncations"])
    fields = {
        "observations": observations[:-1],
        "actions": as_floats(f"{name}, actions", episode["actions"], 2),
        "rewards": rewards,
        "next_observations": observations[1:],
        "terminations": terminated,
        "truncations": truncated,
    }
    steps = len(rewards)
    if steps == 0:
        raise problem(name, "at least one step", "none", "Remove the episode from the set.")
    for field, array in fields.items():
        if len(array) != steps:
            expected, got = f"{steps} steps as in rewards", f"{len(array)}"
            raise problem(
                f"{name}, {field}",
                expected,
                got,
                "Minari stores T + 1 observations and T of everything else.",
            )
    truncated[-1] |= not terminated[-1]
    return fields


def _require_box(field: str, space: Any) -> None:
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        raise problem(field, "a Box space", str(space), "Diffusion policies need continuous vectors.")
    if len(space.shape) != 1:
        raise problem(field, "a Box space of one axis", f"shape {list(space.shape)}", "Flatten it, or use from_arrays.")


def _observation_keys(space: Any, keys: tuple[str, ...] | None) -> tuple[str, ...] | None:
    from gymnasium.spaces import Box, Dict

    if not isinstance(space, Dict):
        if keys is not None:
            raise problem("observation_keys", "None, as observations are no dict", str(keys), "Leave it out.")
        _require_box("observations", space)
        return None
    if keys is None:
        keys = tuple(space.spaces)
        if "observation" in keys:
            keys = tuple(k for k in GOAL_KEYS if isinstance(space.spaces.get(k), Box)) or keys
    keys = tuple(keys)
    unknown = [key for key in keys if key not in space.spaces]
    if unknown or not keys:
        raise problem("observation_keys", f"some of {list(space.spaces)}", str(list(keys)), "Choose from these.")
    for key in keys:
        _require_box(f"observations/{key}", space.spaces[key])
    return keys


def _about(dataset_id: str, env_spec: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    env_id = None if env_spec is None else env_spec.id
    limit = None if env_spec is None else env_spec.max_episode_steps
    reference = reference_for(dataset_id) or (reference_for(env_id) if env_id else None)
    if reference is None and {"ref_min_score", "ref_max_score"} <= metadata.keys():
        reference = ReferenceScore(metadata["ref_min_score"], metadata["ref_max_score"], limit)
    return {
        "dataset_id": dataset_id,
        "env_id": env_id,
        "env_kwargs": {} if env_spec is None else dict(env_spec.kwargs),
        "reference": reference,
        "max_episode_steps": reference.max_episode_steps if reference else limit,
        "parts": dict(metadata.get("local_counterpart", {}).get("episodes", {})),
    }
