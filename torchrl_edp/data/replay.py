"""From transitions to a TorchRL replay buffer on the training device."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer

from torchrl_edp.data.checks import problem, require_keys

REQUIRED_KEYS: tuple[NestedKey, ...] = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "done"),
    ("next", "terminated"),
)


def make_replay_buffer(
    transitions: TensorDictBase,
    *,
    batch_size: int,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> TensorDictReplayBuffer:
    """All transitions, written once, in a replay buffer whose storage lives on the training device.

    Sampling is uniform with replacement. The draws come from ``generator`` (TorchRL's samplers keep no state
    of their own), so saving the generator's state is all that an exact resume needs.

    Args:
        transitions: TensorDict ``[N]``.
        batch_size: at most N.
        device: where storage and batches live; default: where ``transitions`` are.
        generator: on the same device; default: torch's global one.

    Raises:
        DatasetError: where keys are missing, fields have another shape or type than :class:`OfflineDataset`
            states, are not finite or disagree, there are fewer than ``batch_size`` rows, or devices differ.

    Examples:
        >>> import torch
        >>> from torchrl_edp.data import from_arrays, make_replay_buffer
        >>> data = from_arrays(torch.rand(9, 3), torch.rand(9, 2), torch.rand(9), [0] * 8 + [1], [0] * 9)
        >>> generator = torch.Generator().manual_seed(0)
        >>> buffer = make_replay_buffer(data.transitions, batch_size=4, generator=generator)
        >>> buffer.sample()["next", "observation"].shape
        torch.Size([4, 3])
    """
    _check_transitions(transitions)
    size = len(transitions)
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or not 0 < batch_size <= size:
        expected = f"1 to {size}, the number of transitions"
        raise problem("batch_size", expected, repr(batch_size), "Choose a whole number in this range.")
    try:
        device = torch.device(device or transitions.device or transitions["action"].device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        remedy = "Choose 'cpu', or repair the driver or the build of torch."
        raise problem("device", "one that torch can use here", f"{device!s} ({error})", remedy) from error
    if generator is not None and getattr(generator, "device", torch.device("meta")).type != device.type:
        remedy = f"Make it with torch.Generator(device={str(device)!r})."
        got = f"one on {generator.device}" if isinstance(generator, torch.Generator) else repr(generator)
        raise problem("generator", f"one on {device}", got, remedy)
    storage = LazyTensorStorage(size, device=device)
    buffer = TensorDictReplayBuffer(
        storage=storage, sampler=RandomSampler(), batch_size=batch_size, generator=generator
    )
    buffer.extend(transitions.to(device))
    return buffer


def _check_transitions(transitions: TensorDictBase) -> None:
    """Every field is there, has its shape and type, is finite, and the flags agree."""
    require_keys(transitions, REQUIRED_KEYS)
    if transitions.ndim != 1 or not len(transitions):
        got = str(list(transitions.shape))
        raise problem("transitions", "batch size [N], N > 0", got, "Flatten, one row per step.")
    truncated = [("next", "truncated")] if ("next", "truncated") in transitions.keys(True) else []
    for key in (*REQUIRED_KEYS, *truncated):
        size = None if key in ("observation", "action") else 1
        if key == ("next", "observation"):
            size = transitions["observation"].shape[-1]
        _check_field(key, transitions[key], len(transitions), size)
    after = transitions["next"]
    ended = after["terminated"] | after["truncated"] if truncated else after["terminated"] | after["done"]
    if (wrong := (after["done"] != ended).flatten()).any():
        remedy = "Set done where a row is terminated or truncated, and nowhere else."
        got = "flags that disagree"
        raise problem("('next', 'done')", "terminated | truncated", got, remedy, int(wrong.int().argmax()))


def _check_field(key: NestedKey, value: Any, rows: int, size: int | None) -> None:
    """``value`` is a finite tensor ``[rows, size]`` of the key's type; ``size`` ``None``: any but 0."""
    flag = key[-1] in ("done", "terminated", "truncated")
    if not isinstance(value, Tensor) or not (value.dtype == torch.bool if flag else value.is_floating_point()):
        expected = "a tensor of bool" if flag else "a tensor of floats"
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise problem(repr(key), expected, got, "Convert it, or use from_arrays.")
    if value.ndim != 2 or not value.shape[1] or size not in (None, value.shape[1]):
        remedy = "One row per step, one axis of entries; flags and rewards are columns: unsqueeze(-1)."
        raise problem(repr(key), f"shape [{rows}, {size or 'size > 0'}]", str(list(value.shape)), remedy)
    if not (finite := value.isfinite()).all():
        index = int(finite.all(1).int().argmin())
        got = str(value[index][~finite[index]][0].item())
        raise problem(repr(key), "finite numbers", got, "Repair the source, or how it was normalised.", index)
