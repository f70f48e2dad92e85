"""Batches of an update that are gathered inside it."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import RandomSampler, TensorDictReplayBuffer, TensorStorage


def is_uniform(buffer: TensorDictReplayBuffer) -> bool:
    """Whether a batch of ``buffer`` is nothing but rows of its full storage, drawn uniformly.

    Examples:
        >>> from torchrl.data import LazyTensorStorage
        >>> is_uniform(TensorDictReplayBuffer(storage=LazyTensorStorage(2), batch_size=2))  # nothing in it yet
        False
    """
    storage = buffer.storage
    fixed = isinstance(storage, TensorStorage) and len(storage) == storage.max_size and storage.ndim == 1
    stock = type(buffer) is TensorDictReplayBuffer and type(buffer.sampler) is RandomSampler
    collates = getattr(buffer._collate_fn, "__name__", "") != "_collate_id"  # TorchRL's own for tensors
    return fixed and stock and not len(buffer._transform) and not collates


def take_rows(data: TensorDictBase, index: Tensor) -> TensorDictBase:
    """``data[index]``, but eagerly by fewer calls, and without what is no tensor, which no loss can differentiate.

    Examples:
        >>> from tensordict import TensorDict
        >>> take_rows(TensorDict({"reward": torch.tensor([1.0, 2.0])}, [2]), torch.tensor([1, 1]))["reward"]
        tensor([2., 2.])
    """
    if index.ndim > 1 or torch.compiler.is_compiling():
        return data[index]
    return data.apply(lambda value: value.index_select(0, index), batch_size=index.shape)
