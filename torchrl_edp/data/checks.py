"""Checks at the door: every function names the field, what was expected, what came, where, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase


class DatasetError(ValueError):
    """The data cannot be used as they are; the message says which field, where, and what to do about it."""


def problem(field: str, expected: str, got: str, remedy: str, index: int | None = None) -> DatasetError:
    """A ``DatasetError`` in the one form that all of them have."""
    where = "" if index is None else f", first at row {index}"
    return DatasetError(f"{field}: expected {expected}, got {got}{where}. {remedy}")


def require_keys(transitions: TensorDictBase, keys: Sequence[NestedKey]) -> None:
    """``transitions`` is a TensorDict and has every key."""
    if not isinstance(transitions, TensorDictBase):
        got = type(transitions).__name__
        remedy = "Give `.transitions` of a data set, or build one with from_arrays."
        raise problem("transitions", "a TensorDict", got, remedy)
    missing = [key for key in keys if key not in transitions.keys(True)]
    if missing:
        remedy = "Use from_arrays or load_dataset."
        raise problem("transitions", f"the keys {list(keys)}", f"none of {missing}", remedy)


def require_single_steps(transitions: TensorDictBase, remedy: str) -> None:
    """No row of ``transitions`` looks several steps ahead."""
    if {"steps_to_next_obs", ("next", "steps_to_next_obs")} & set(transitions.keys(True)):
        raise problem("transitions", "one step a row", "steps_to_next_obs", remedy)


def _to_floats(field: str, value: Any, kinds: str = "fiu") -> np.ndarray:
    """``value`` as a float32 array of any rank; ``kinds`` are NumPy's letters of the types to accept."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        array = np.asarray(value)
    except ValueError as error:
        got = f"rows of different shapes ({error})"
        raise problem(field, "a rectangular array", got, "Pad or split them.") from error
    except (TypeError, RuntimeError) as error:  # sparse and meta tensors, lists of tensors with gradients
        got = f"{type(value).__name__} ({error})"
        raise problem(field, "a dense array or tensor", got, "Convert it to a NumPy array.") from error
    if array.dtype.kind not in kinds:
        got = f"dtype {array.dtype}" if array.ndim else f"one {type(value).__name__}"
        raise problem(field, "numbers", got, "Give an array of float32.")
    if np.ma.is_masked(value):
        raise problem(field, "numbers", "masked entries", "Remove their episodes, or fill them.")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def as_floats(field: str, value: Any, rank: int, kinds: str = "fiu") -> np.ndarray:
    """``value`` as a finite float32 array of the given rank (rank 1 may come as a column ``[N, 1]``)."""
    array = _to_floats(field, value, kinds)
    if rank == 1 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != rank:
        shape, remedy = ("[N]", "Give one number per row.") if rank == 1 else ("[N, size]", "Flatten each row.")
        if array.ndim < rank:
            remedy = "Use reshape(-1, 1) for one-dimensional quantities."
        raise problem(field, f"shape {shape}", f"shape {list(array.shape)}", remedy)
    finite = np.isfinite(array)
    if not finite.all():
        index = int(np.argmin(finite.reshape(len(array), -1).all(1)))
        bad = array[index] if rank == 1 else array[index][~finite[index]][0]
        remedy = "Remove the episode, or repair the value (float32 overflows beyond 3.4e38)."
        raise problem(field, "finite numbers", str(bad), remedy, index)
    return array


def as_flags(field: str, value: Any) -> np.ndarray:
    """``value`` as a boolean array ``[N]``; numbers are accepted where they are all 0 or 1."""
    array = as_floats(field, value, 1, kinds="fiub")
    bad = (array != 0) & (array != 1)
    if bad.any():
        index = int(np.argmax(bad))
        raise problem(
            field,
            "flags (False or True, 0 or 1)",
            str(array[index]),
            "Compare with a threshold first.",
            index,
        )
    return array.astype(bool)


def check_lengths(expected: int, **fields: np.ndarray) -> None:
    """Every field has ``expected`` rows."""
    for field, array in fields.items():
        if len(array) != expected:
            remedy = "Every field needs one row per step."
            raise problem(field, f"{expected} rows as in observations", f"{len(array)} rows", remedy)


def as_bounds(low: Any, high: Any, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Action bounds as finite float32 arrays ``[A]`` with low < high; scalars hold for every dimension.

    ``size``: A; default: the length of ``low``.
    """
    bounds = []
    for field, value in (("action_low", low), ("action_high", high)):
        array = _to_floats(field, value)
        size = size or max(1, array.size)
        if array.shape not in ((), (1,), (size,)):
            raise problem(
                field,
                f"a number or shape [{size}]",
                f"shape {list(array.shape)}",
                "One bound per action entry.",
            )
        bounds.append(np.broadcast_to(array, (size,)).copy())
    for index, (a, b) in enumerate(zip(*bounds, strict=True)):
        if not (np.isfinite(a) and np.isfinite(b) and a < b):
            remedy = "Policies here act in a finite box: pass from_arrays(..., action_low=, action_high=)."
            raise problem(f"action bounds of entry {index}", "finite low < high", f"low {a}, high {b}", remedy)
    return bounds[0], bounds[1]


def check_actions(actions: np.ndarray, low: np.ndarray, high: np.ndarray, clip: bool) -> np.ndarray:
    """Actions inside their bounds. Up to 1e-4 of the range beyond is rounding; more needs ``clip``."""
    slack = 1e-4 * (high.astype(np.float64) - low)  # float64: the range may exceed float32's
    outside = ((actions < low - slack) | (actions > high + slack)).any(1)
    if outside.any() and not clip:
        i = int(np.argmax(outside))
        bounds = f"values in [{low.tolist()}, {high.tolist()}]"
        remedy = "Give the right action_low and action_high, or pass clip_actions=True."
        raise problem(
            "actions", bounds, str(actions[i].tolist()), f"{remedy} {int(outside.sum())} rows are outside.", i
        )
    return np.clip(actions, low, high)


def check_content(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
    """There is at least one transition, and the arrays are not the zeros of a loader that failed silently."""
    if len(actions) == 0:
        raise problem("data", "at least one transition", "none", "Check the source, or the filter before this call.")
    for field, array in (("observations", observations), ("actions", actions)):
        if array.shape[1] == 0:
            raise problem(field, "at least one entry per row", f"shape {list(array.shape)}", "Check the source.")
    if not actions.any():
        raise problem("actions", "some that differ from 0", "all zeros", "The source was not read; load it again.")
    if not observations.any() and not rewards.any():
        remedy = "The source was not read; load it again."
        raise problem("observations and rewards", "some that differ from 0", "all zeros", remedy)
