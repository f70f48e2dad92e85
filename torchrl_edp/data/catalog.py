"""One door to every data set, and TorchRL's own door to this one."""

from __future__ import annotations

import os
from typing import Any

from torchrl.data import TensorDictReplayBuffer

from torchrl_edp.data.checks import DatasetError
from torchrl_edp.data.dataset import OfflineDataset
from torchrl_edp.data.loading import load_minari, local_dataset_ids
from torchrl_edp.data.local import make_local_dataset
from torchrl_edp.data.replay import make_replay_buffer


def load_dataset(name: str | os.PathLike[str], **options: Any) -> OfflineDataset:
    """A data set by name: Farama's from disk or by download, a local counterpart from disk or made now.

    Ids that begin with ``local/`` are made on this machine and never downloaded; every other id is Minari's
    and never made. ``dataset_id`` (and ``is_local_counterpart``) of the result tells which one it is.

    Args:
        name: ``"mujoco/hopper/medium-v0"``, ``"local/hopper/medium-expert-v0"``, or a folder.
        options: of :func:`make_local_dataset` or :func:`load_minari`.

    Raises:
        DatasetError: where there is no such set, or it is not valid.

    Examples:
        >>> from torchrl_edp.data import load_dataset
        >>> data = load_dataset("mujoco/hopper/medium-v0")  # doctest: +SKIP
    """
    if not str(name).startswith("local/"):
        if "num_steps" in options:
            raise DatasetError(f"num_steps sizes local counterparts, got it for {name}: leave out data.num_steps.")
        return load_minari(name, **options)
    if not options and str(name).count("-s") and name in local_dataset_ids():
        return load_minari(name, download=False)  # a size or seed of its own, made before
    return make_local_dataset(str(name), **options)


def load_replay_buffer(dataset_id: str, *, batch_size: int = 256, **options: Any) -> TensorDictReplayBuffer:
    """The replay buffer of a data set; what ``torchrl.data.datasets.load_dataset("edp:<id>")`` returns.

    Args:
        dataset_id: as for :func:`load_dataset`.
        batch_size: rows per sample.
        options: ``device`` and ``generator`` of :func:`make_replay_buffer`; the rest goes to
            :func:`load_dataset`.
    """
    storage = {key: options.pop(key) for key in ("device", "generator") if key in options}
    return make_replay_buffer(load_dataset(dataset_id, **options).transitions, batch_size=batch_size, **storage)


def register_datasets() -> None:
    """Register the prefix ``edp`` with TorchRL.

    Its own ``load_dataset("edp:<id>")`` then gives a replay buffer, by :func:`load_replay_buffer`.

    Examples:
        >>> from torchrl_edp.data import register_datasets
        >>> register_datasets()
        >>> from torchrl.data.datasets import load_dataset
        >>> buffer = load_dataset("edp:local/hopper/medium-v0", batch_size=256)  # doctest: +SKIP
    """
    from torchrl.data.datasets import register_dataset

    register_dataset("edp", "torchrl_edp.data.catalog:load_replay_buffer", replace=True)
