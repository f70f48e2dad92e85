"""From transitions to a TorchRL replay buffer on the training device."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer

from torchrl_edp.data.checks import problem

REQUIRED_KEYS = (
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
        DatasetError: where keys are missing, there are fewer than ``batch_size`` rows, or devices differ.

    Examples:
        >>> import torch
        >>> from torchrl_edp.data import from_arrays, make_replay_buffer
        >>> data = from_arrays(torch.rand(9, 3), torch.rand(9, 2), torch.rand(9), [0] * 8 + [1], [0] * 9)
        >>> generator = torch.Generator().manual_seed(0)
        >>> buffer = make_replay_buffer(data.transitions, batch_size=4, generator=generator)
        >>> buffer.sample()["next", "observation"].shape
        torch.Size([4, 3])
    """
    missing = [key for key in REQUIRED_KEYS if key not in transitions.keys(True)]
    if missing:
        raise problem(
            "transitions",
            f"the keys {list(REQUIRED_KEYS)}",
            f"none of {missing}",
            "Use from_arrays or load_dataset.",
        )
    size = transitions.shape[0] if transitions.ndim == 1 else None
    if not size:
        raise problem(
            "transitions", "batch size [N], N > 0", str(list(transitions.shape)), "Flatten, one row per step."
        )
    if not 0 < batch_size <= size:
        raise problem(
            "batch_size",
            f"1 to {size}, the number of transitions",
            str(batch_size),
            "Choose a smaller batch.",
        )
    device = torch.device(device or transitions.device or transitions["action"].device)
    if generator is not None and generator.device.type != device.type:
        remedy = f"Make it with torch.Generator(device={str(device)!r})."
        raise problem("generator", f"one on {device}", f"one on {generator.device}", remedy)
    storage = LazyTensorStorage(size, device=device)
    buffer = TensorDictReplayBuffer(
        storage=storage, sampler=RandomSampler(), batch_size=batch_size, generator=generator
    )
    buffer.extend(transitions.to(device))
    return buffer
