"""Minari sets, by id or from disk, as validated data sets.

TorchRL 0.14.1's own loader (``MinariExperienceReplay``) returns zeros, hence this one.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchrl_edp.data.checks import DatasetError, as_flags, as_floats, problem
from torchrl_edp.data.dataset import OfflineDataset, build_dataset
from torchrl_edp.data.environment import evaluation_env
from torchrl_edp.data.scores import ReferenceScore, reference_for

if TYPE_CHECKING:
    from minari import MinariDataset

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
REMEDY = "The files are damaged or incomplete: delete the folder and load the set again."
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
            ant's position in achieved_goal only; FrankaKitchen's nested goals are constants); else every entry
            in the space's order.
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
    sizes = _sizes(source, keys)
    episodes: list[dict[str, np.ndarray]] = []
    try:
        metadata = source.storage.metadata
        total = int(metadata["total_steps"])
        for episode in _read(source, progress):
            episodes.append(_convert(episode, keys, sizes))
    except DatasetError:
        raise
    except Exception as error:  # h5py, pyarrow and minari raise many kinds on damaged files
        raise _damaged(f"{source.spec.data_path}, episode {len(episodes)}", error) from error
    steps = sum(len(episode["rewards"]) for episode in episodes)
    if steps != total:
        remedy = "The set is incomplete: delete its folder, load again."
        raise problem(str(source.spec.data_path), f"{total} steps as in metadata.json", f"{steps} steps", remedy)
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
        **_about(source, metadata, len(episodes)),
    )


def local_dataset_ids() -> list[str]:
    """Ids of the sets in Minari's folder on this machine."""
    import minari

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(minari.list_local_datasets())


def _open(name: str | os.PathLike[str], download: bool) -> MinariDataset:
    import minari

    if not isinstance(name, (str, os.PathLike)) or not str(name).strip() or "\0" in str(name):
        remedy = f"On this machine: {local_dataset_ids() or 'none'}."
        raise problem("data set", "an id such as mujoco/hopper/medium-v0, or a folder", repr(name), remedy)
    folder = None
    try:
        folder = _find(name)
        if folder is None:
            return _download(str(name), download)
        _check_metadata(folder / "metadata.json")
        return minari.MinariDataset(folder)
    except DatasetError:
        raise
    except Exception as error:
        raise _damaged(str(name) if folder is None else folder, error) from error


def _find(name: str | os.PathLike[str]) -> Path | None:
    """The folder of metadata.json, or ``None`` where ``name`` is an id that is not on this machine."""
    from minari.storage import get_dataset_path

    folder = Path(name).expanduser()
    is_path = not isinstance(name, str) or folder.is_absolute() or name.startswith(".") or folder.suffix == ".hdf5"
    if not is_path and not (folder / "data" / "metadata.json").exists():
        folder = get_dataset_path(str(name))
        if not (folder / "data").exists():
            return None
    folder = folder.parent if folder.suffix == ".hdf5" else folder
    folder = folder / "data" if (folder / "data").is_dir() else folder
    if not (folder / "metadata.json").exists():
        remedy = "Give the folder that holds data/metadata.json; after an interrupted download, delete it."
        raise problem(str(folder), "a Minari data set", "no metadata.json", remedy)
    return folder


def _check_metadata(path: Path) -> None:
    """The entries that Minari only asserts."""
    about = json.loads(path.read_text())
    if not isinstance(about, dict):
        raise problem(str(path), "a JSON object", type(about).__name__, REMEDY)
    for key in ("total_episodes", "total_steps"):
        value = about.get(key)
        if not isinstance(value, (int, float)) or value < 0 or value % 1 != 0:  # NaN % 1 is not 0 either
            raise problem(f"{key} in {path}", "a whole number, at least 0", repr(value), REMEDY)
    spaces = ["observation_space", "action_space"]
    if about.get("env_spec") is not None:
        spaces = ["env_spec", *(key for key in spaces if key in about)]
    for key in ("dataset_id", "data_format", "minari_version", *spaces):
        if not isinstance(about.get(key), str):
            raise problem(f"{key} in {path}", "a text", repr(about.get(key)), REMEDY)


def _download(name: str, download: bool) -> MinariDataset:
    import minari
    from minari.storage import get_dataset_path

    local = f"On this machine: {local_dataset_ids() or 'none'}."
    if name.startswith("local/"):
        raise problem("data set", "an existing local counterpart", repr(name), f"make_local_dataset makes it. {local}")
    if not re.fullmatch(r"[-\w/]+-v\d+", name):
        raise problem("data set", "an id such as mujoco/hopper/medium-v0, or a folder", repr(name), local)
    folder = get_dataset_path(name)
    there_before = folder.exists()
    try:
        return minari.load_dataset(name, download=download)
    except BaseException as error:  # no such id, no network, no huggingface_hub, malformed id: all end here
        if not there_before:
            shutil.rmtree(folder, ignore_errors=True)  # half a set would pass for one that is on disk
        if not isinstance(error, Exception):
            raise
        reason = f"{type(error).__name__}: {error}"
        remedy = f"Check the id (`minari list remote`) and the network. {local}"
        raise problem(f"data set {name!r}", "an id of a Minari data set", reason, remedy) from error


def _damaged(folder: str | os.PathLike[str], error: Exception) -> DatasetError:
    remedy = REMEDY
    if isinstance(error, PermissionError):
        remedy = "You may not read it: ask its owner for the right (chmod -R u+rX), or set MINARI_DATASETS_PATH."
    if isinstance(error, ImportError):  # spaces that are not in the metadata come from the environment
        remedy = "Install its environment's package (mazes, Adroit, FrankaKitchen: pip install gymnasium-robotics)."
    return problem(str(folder), "a readable Minari data set", f"{type(error).__name__}: {error}", remedy)


def _read(source: MinariDataset, progress: bool) -> Iterator[dict[str, Any]]:
    from tqdm import tqdm

    large = progress and source.total_steps >= LARGE
    episodes = source.storage.get_episodes(source.episode_indices)
    # disable=None: no bar where the output is not a terminal.
    yield from tqdm(episodes, total=source.total_episodes, desc="episodes", disable=None if large else True)


def _sizes(source: MinariDataset, keys: tuple[str, ...] | None) -> dict[str, int]:
    """Entries of an observation and an action, as the spaces state them."""
    space: Any = source.observation_space
    boxes = [space] if keys is None else [space[key] for key in keys]
    return {"observations": sum(box.shape[0] for box in boxes), "actions": source.action_space.shape[0]}


def _convert(episode: dict[str, Any], keys: tuple[str, ...] | None, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Transitions of one episode; errors name the episode."""
    name = f"episode {episode['id']}"
    record = episode["observations"]
    if missing := [key for key in keys or () if key not in record]:
        remedy = "Choose other observation_keys, or remove the episode from the set."
        raise problem(f"{name}, observations", f"the entries {list(keys or ())}", f"none of {missing}", remedy)
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
    for field, size in sizes.items():
        if fields[field].shape[1] != size:
            expected, got = f"{size} entries per row as in the space of metadata.json", str(fields[field].shape[1])
            raise problem(
                f"{name}, {field}", expected, got, "Correct the space in metadata.json, or load the set again."
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
    if unknown or not keys or len({*keys}) < len(keys):
        raise problem(
            "observation_keys", f"some of {list(space.spaces)}, each once", str(list(keys)), "Choose from these."
        )
    for key in keys:
        _require_box(f"observations/{key}", space.spaces[key])
    return keys


def _about(source: MinariDataset, metadata: dict[str, Any], episodes: int) -> dict[str, Any]:
    dataset_id = source.spec.dataset_id
    # Minari 0.5.4 has no public name for the evaluation environment's spec.
    env_id, env_kwargs, limit = evaluation_env(source.spec.env_spec, getattr(source, "_eval_env_spec", None))
    reference = reference_for(dataset_id) or (reference_for(env_id) if env_id else None)
    if reference is None and {"ref_min_score", "ref_max_score"} <= metadata.keys():
        low, high = metadata["ref_min_score"], metadata["ref_max_score"]
        if not all(isinstance(score, (int, float)) for score in (low, high)) or not -math.inf < low < high < math.inf:
            expected, got = "finite numbers, the first below the second", f"{low!r} and {high!r}"
            raise problem("ref_min_score and ref_max_score", expected, got, "Correct or remove them in metadata.json.")
        reference = ReferenceScore(low, high, limit)
    try:
        parts = {str(part): int(count) for part, count in metadata["local_counterpart"]["episodes"].items()}
        if sum(parts.values()) != episodes:
            raise ValueError(f"{parts}")
    except KeyError:
        parts = {}
    except (AttributeError, TypeError, ValueError) as error:
        remedy = "Delete the folder, then make_local_dataset makes it again."
        raise problem(
            "local_counterpart in metadata.json", f"parts of {episodes} episodes", str(error), remedy
        ) from error
    return {
        "dataset_id": dataset_id,
        "env_id": env_id,
        "env_kwargs": env_kwargs,
        "reference": reference,
        "max_episode_steps": reference.max_episode_steps if reference else limit,
        "parts": parts,
    }
