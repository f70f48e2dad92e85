"""Offline data: Minari sets, plain arrays and local counterparts, validated, into a TorchRL replay buffer."""

from __future__ import annotations

from torchrl_edp.data.behavior import BehaviorPolicy, load_behavior
from torchrl_edp.data.catalog import load_dataset, register_datasets
from torchrl_edp.data.checks import DatasetError
from torchrl_edp.data.dataset import OfflineDataset, from_arrays
from torchrl_edp.data.loading import load_minari
from torchrl_edp.data.local import list_local_counterparts, make_local_dataset
from torchrl_edp.data.replay import make_replay_buffer
from torchrl_edp.data.returns import multi_step
from torchrl_edp.data.rewards import REWARD_RULES, apply_reward_rule
from torchrl_edp.data.scores import REFERENCE_SCORES, ReferenceScore, normalized_score, reference_for
from torchrl_edp.data.transforms import ActionScaler, ObservationNormalizer

__all__ = [
    "REFERENCE_SCORES",
    "REWARD_RULES",
    "ActionScaler",
    "BehaviorPolicy",
    "DatasetError",
    "ObservationNormalizer",
    "OfflineDataset",
    "ReferenceScore",
    "apply_reward_rule",
    "from_arrays",
    "list_local_counterparts",
    "load_behavior",
    "load_dataset",
    "load_minari",
    "make_local_dataset",
    "make_replay_buffer",
    "multi_step",
    "normalized_score",
    "reference_for",
    "register_datasets",
]
