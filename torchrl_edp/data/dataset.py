"""The validated data set, and the way into it from plain arrays."""

from __future__ import annotations

import hashlib
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_edp.data.checks import (
    as_bounds,
    as_flags,
    as_floats,
    check_actions,
    check_content,
    check_lengths,
    problem,
)
from torchrl_edp.data.scores import ReferenceScore


@dataclass(frozen=True, eq=False)
class OfflineDataset:
    """A validated offline data set: transitions in TorchRL's layout and what is known about their source.

    Made by :func:`load_dataset`, :func:`load_minari`, :func:`from_arrays` and :func:`make_local_dataset`,
    which check everything; rows are in time order, episode after episode.

    Args:
        transitions: TensorDict ``[N]`` on the CPU: ``observation [N, O]``, ``action [N, A]`` in the
            environment's own bounds, and in ``next`` ``observation``, ``reward [N, 1]`` (float32), ``done =
            terminated | truncated`` ``[N, 1]`` (bool). Only ``terminated`` ends the future; ``truncated``
            marks where the record stops.
        action_low: lower bounds ``[A]``.
        action_high: upper bounds ``[A]``.
        episode_returns: undiscounted return of each episode ``[E]`` in raw reward, whatever rule is applied
            later.
        episode_lengths: transitions of each episode ``[E]``.
        dataset_id: Minari's id; ids that begin with ``local/`` are this library's counterparts, not Farama's
            sets.
        env_id: Gymnasium id of the environment for evaluation, ``env_kwargs`` its arguments.
        observation_keys: entries of a dict observation, in the order of their concatenation.
        reference: returns that score 0 and 100.
        max_episode_steps: step limit for evaluation (D4RL's where it has one, else the environment's).
        parts: episodes per behaviour policy, in order, where the set was made of several.
    """

    transitions: TensorDictBase
    action_low: Tensor
    action_high: Tensor
    episode_returns: Tensor
    episode_lengths: Tensor
    dataset_id: str | None = None
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    observation_keys: tuple[str, ...] | None = None
    reference: ReferenceScore | None = None
    max_episode_steps: int | None = None
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def num_transitions(self) -> int:
        """Number of transitions, N."""
        return self.transitions.shape[0]

    @property
    def observation_size(self) -> int:
        """Entries of one (concatenated) observation, O."""
        return self.transitions["observation"].shape[-1]

    @property
    def action_size(self) -> int:
        """Entries of one action, A."""
        return self.transitions["action"].shape[-1]

    @property
    def is_local_counterpart(self) -> bool:
        """Whether this library made the data itself, so that its scores are no D4RL or Farama scores."""
        return (self.dataset_id or "").startswith("local/")

    def part_returns(self, part: str) -> Tensor:
        """Returns ``[E']`` of the episodes that one behaviour policy made, e.g. ``"expert"``."""
        if part not in self.parts:
            raise problem("part", f"one of {list(self.parts)}", repr(part), "Only local counterparts know their parts.")
        names, sizes = zip(*self.parts.items(), strict=True)
        return self.episode_returns.split(list(sizes))[names.index(part)]

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, types and contents; a checkpoint uses it to know its data again."""
        tensors = dict(self.transitions.flatten_keys(".").items())
        tensors |= {"action_low": self.action_low, "action_high": self.action_high}
        digest = hashlib.sha256()
        for name in sorted(tensors):
            array = np.ascontiguousarray(tensors[name].cpu().numpy())
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()


# What may be said beside the arrays: the only fields with defaults.
_ABOUT = [
    entry.name for entry in fields(OfflineDataset) if (entry.default, entry.default_factory) != (MISSING, MISSING)
]


def build_dataset(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    next_observations: np.ndarray,
    terminations: np.ndarray,
    truncations: np.ndarray,
    *,
    action_low: Any,
    action_high: Any,
    clip_actions: bool,
    **about: Any,
) -> OfflineDataset:
    """Last steps of every way in: content, bounds, TensorDict, episode sums. All episodes have end flags."""
    check_content(observations, actions, rewards)
    low, high = as_bounds(action_low, action_high, actions.shape[1])
    actions = check_actions(actions, low, high, clip_actions)
    done = terminations | truncations
    ends = np.flatnonzero(done)
    starts = np.concatenate([[0], ends[:-1] + 1])
    returns = np.add.reduceat(rewards.astype(np.float64), starts)
    largest = int(np.abs(returns).argmax())
    if abs(returns[largest]) > np.finfo(np.float32).max:
        expected, got = "returns below float32's 3.4e38", f"{returns[largest]:.3g} in an episode"
        raise problem("rewards", expected, got, "Scale the rewards.", int(starts[largest]))
    column = {"reward": rewards, "done": done, "terminated": terminations, "truncated": truncations}
    following = {"observation": torch.from_numpy(next_observations)}
    following |= {key: torch.from_numpy(value)[:, None] for key, value in column.items()}
    root = {"observation": torch.from_numpy(observations), "action": torch.from_numpy(actions)}
    transitions = TensorDict({**root, "next": TensorDict(following, [len(actions)])}, [len(actions)])
    return OfflineDataset(
        transitions=transitions,
        action_low=torch.from_numpy(low),
        action_high=torch.from_numpy(high),
        episode_returns=torch.from_numpy(returns).float(),
        episode_lengths=torch.from_numpy(ends - starts + 1),
        **about,
    )


def from_arrays(
    observations: Any,
    actions: Any,
    rewards: Any,
    terminations: Any = None,
    truncations: Any = None,
    next_observations: Any = None,
    *,
    action_low: Any = -1.0,
    action_high: Any = 1.0,
    clip_actions: bool = False,
    allow_continuing: bool = False,
    **about: Any,
) -> OfflineDataset:
    """A data set from plain arrays (NumPy or torch) in time order, as D4RL lays them out.

    Without ``next_observations`` the next observation is the following row of the same episode. The last row
    of a truncated episode then has none and is dropped (the row before it becomes the truncated one); the
    last row of a terminated episode stays, with its own observation as a stand-in that no target reads. With
    ``next_observations`` nothing is dropped, and rows must follow each other inside an episode. Data that
    break off unflagged count as truncated there; a row with both flags (Gymnasium allows it) as terminated.

    Args:
        observations: ``[N, O]``.
        actions: ``[N, A]``, within the bounds.
        rewards: ``[N]`` or ``[N, 1]``.
        terminations: flags ``[N]`` or ``[N, 1]``, always needed: the episode ended, the future is worth nothing.
        truncations: flags likewise: the record stops, the future goes on. ``None`` (only with
            ``next_observations``): wherever the next observation is not the following row, as in the output
            of D4RL's ``qlearning_dataset``.
        next_observations: ``[N, O]`` or ``None``.
        action_low: a number or ``[A]``.
        action_high: a number or ``[A]``.
        clip_actions: clip actions to the bounds where they leave them, instead of refusing.
        allow_continuing: accept truncated rows whose next observation is the next episode's first (for the last
            row: the first of all), which otherwise counts as a leak; right where a stream was cut without a reset.
        about: ``dataset_id``, ``env_id``, ``reference``, ``max_episode_steps``, ... of
            :class:`OfflineDataset`.

    Raises:
        DatasetError: where anything is missing, malformed, not finite, out of bounds, or inconsistent.

    Examples:
        >>> import torch
        >>> from torchrl_edp.data import from_arrays
        >>> ends = {"terminations": [0, 0, 1, 0, 0], "truncations": [0, 0, 0, 0, 1]}
        >>> data = from_arrays(torch.rand(5, 3), torch.rand(5, 2), torch.rand(5), **ends)
        >>> data.num_transitions, data.episode_lengths.tolist()
        (4, [3, 1])
    """
    if unknown := [name for name in about if name not in _ABOUT]:
        remedy = "D4RL's terminals, timeouts and env_name are terminations, truncations and env_id here."
        raise problem("names of arguments", f"some of {_ABOUT} beside the arrays", f"{unknown}", remedy)
    given = {"observations": observations, "actions": actions}
    if next_observations is not None:
        given["next_observations"] = next_observations
    elif truncations is None:
        remedy = "Pass truncations (all False where there are none), or next_observations to infer them from."
        raise problem("truncations", "flags", "None", remedy)
    arrays = {name: as_floats(name, value, 2) for name, value in given.items()}
    arrays["rewards"] = as_floats("rewards", rewards, 1)
    arrays["terminations"] = as_flags("terminations", terminations)
    if truncations is not None:
        arrays["truncations"] = as_flags("truncations", truncations)
    check_lengths(len(arrays["observations"]), **arrays)
    check_content(arrays["observations"], arrays["actions"], arrays["rewards"])
    link = _use_following_rows if next_observations is None else _check_next_observations
    arrays = link(arrays, allow_continuing)
    return build_dataset(**arrays, action_low=action_low, action_high=action_high, clip_actions=clip_actions, **about)


def _require_end_flags(arrays: dict[str, np.ndarray]) -> None:
    if not (arrays["terminations"] | arrays["truncations"]).any():
        remedy = "Mark the last row of each episode (for one single episode: truncations[-1] = True)."
        raise problem("terminations and truncations", "at least one end of an episode", "none", remedy)


def _use_following_rows(arrays: dict[str, np.ndarray], _allow_continuing: bool) -> dict[str, np.ndarray]:
    """Next observations from the following rows; rows that have none are dropped."""
    _require_end_flags(arrays)
    observations, terminated = arrays["observations"], arrays["terminations"]
    ends = terminated | arrays["truncations"]
    ends[-1] = True
    dropped = ends & ~terminated
    following = np.roll(observations, -1, axis=0)
    following[terminated] = observations[terminated]
    truncated = arrays["truncations"] | np.append(dropped[1:] & ~ends[:-1], False)
    if dropped.all():
        remedy = "Pass next_observations: these episodes have one row each, so no next observation is known."
        raise problem("data", "at least one transition", "none", remedy)
    arrays = {**arrays, "next_observations": following, "truncations": truncated}
    return {name: array[~dropped] for name, array in arrays.items()}


def _check_next_observations(arrays: dict[str, np.ndarray], allow_continuing: bool) -> dict[str, np.ndarray]:
    """Next observations follow inside episodes, and do not reach into the next one."""
    observations, following, terminated = (arrays[k] for k in ("observations", "next_observations", "terminations"))
    if observations.shape != following.shape:
        expected, got = f"shape {list(observations.shape)} as observations", f"shape {list(following.shape)}"
        raise problem("next_observations", expected, got, "Use the same entries in both.")
    # The last row, too, must not reach into an episode: next_observations made by np.roll do.
    same = np.isclose(following, np.roll(observations, -1, axis=0), rtol=1e-5, atol=1e-6).all(1)
    if "truncations" not in arrays:
        truncated = ~same & ~terminated
        truncated[-1] = not terminated[-1]
        return {**arrays, "truncations": truncated}
    _require_end_flags(arrays)
    truncated = arrays["truncations"].copy()
    truncated[-1] |= not terminated[-1]
    broken = ~same & ~(terminated | truncated)
    if broken.any():
        i = int(np.argmax(broken))
        remedy = (
            "Rows must be in time order with the last row of every episode flagged; "
            "pass truncations=None to have episodes end wherever the rows do not follow."
        )
        raise problem("next_observations", f"the observation of row {i + 1}, same episode", "another", remedy, i)
    leak = same & truncated & ~terminated
    if leak.any() and not allow_continuing:
        i = int(np.argmax(leak))
        expected = "the truncated episode's own last observation"
        remedy = (
            "Use the final observation of before the reset; leave next_observations out to drop these rows; "
            "or pass allow_continuing=True if nothing was reset."
        )
        raise problem("next_observations", expected, "the first observation of an episode", remedy, i)
    return {**arrays, "truncations": truncated}
