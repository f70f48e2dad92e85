"""Training: the state, the update, the loop, what a run leaves behind."""

from torchrl_edp.training.build import (
    DiffusionSettings,
    NetworkSettings,
    SelectionSettings,
    TrunkSettings,
    build_actor,
    build_feed_forward,
    build_qvalue,
    build_selector,
    build_value,
)
from torchrl_edp.training.experiment import build_networks, load_experiment_data, run_experiment
from torchrl_edp.training.feed_forward import build_feed_forward_loss
from torchrl_edp.training.loop import TrainingStopped, train
from torchrl_edp.training.policy import EnvironmentPolicy, load_policy, save_feed_forward_policy, save_policy
from torchrl_edp.training.record import Scores, TrainingRecord
from torchrl_edp.training.run import RunFolder
from torchrl_edp.training.settings import ExperimentSettings, FeedForwardSettings, RunSettings
from torchrl_edp.training.setup import (
    PreparedData,
    choose_compile,
    choose_device,
    prepare_data,
    set_matmul_precision,
)
from torchrl_edp.training.state import TrainState
from torchrl_edp.training.targets import EDPTargetUpdate

__all__ = [
    "DiffusionSettings",
    "EDPTargetUpdate",
    "EnvironmentPolicy",
    "ExperimentSettings",
    "FeedForwardSettings",
    "NetworkSettings",
    "PreparedData",
    "RunFolder",
    "RunSettings",
    "Scores",
    "SelectionSettings",
    "TrainState",
    "TrainingRecord",
    "TrainingStopped",
    "TrunkSettings",
    "build_actor",
    "build_feed_forward",
    "build_feed_forward_loss",
    "build_networks",
    "build_qvalue",
    "build_selector",
    "build_value",
    "choose_compile",
    "choose_device",
    "load_experiment_data",
    "load_policy",
    "prepare_data",
    "run_experiment",
    "save_feed_forward_policy",
    "save_policy",
    "set_matmul_precision",
    "train",
]
