"""Typed configuration of ``examples/edp_iql.py``; the defaults are the preset ``default``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torchrl_edp.training import DiffusionSettings, NetworkSettings, SelectionSettings


@dataclass
class EnvConfig:
    """Where the policy is evaluated; None takes it from the data set."""

    name: str | None = None
    max_episode_steps: int | None = None


@dataclass
class DataConfig:
    """How the data set is prepared."""

    num_steps: int | None = None  # size of a local counterpart, per behaviour; None for the library's default
    reward_rule: str = "return_range"
    normalize_observations: bool = True
    action_limit: float = 0.999  # actions are clipped to +- this, after scaling to [-1, 1] (reference code)


@dataclass
class ReplayBufferConfig:
    """The replay buffer."""

    batch_size: int = 256


@dataclass
class IQLLossSettings:
    """Arguments of :class:`torchrl_edp.EDPIQLLoss`, and the discount."""

    gamma: float = 0.99
    num_qvalue_nets: int = 2
    loss_function: str = "l2"
    temperature: float = 3.0
    expectile: float = 0.7
    weight_cap: float | None = 100.0
    weight_normalization: str | None = "mean"
    likelihood: str = "noise"
    deviation: Any = 1.0
    guidance_weight: float = 10.0
    guidance_weighting: str = "uniform"
    guidance_steps: list[int] | None = None
    clip_approximation: bool = True
    action_reduction: str = "mean"


@dataclass
class OptimConfig:
    """Optimiser, averages and length of the run."""

    lr: float = 1e-3
    critic_lr: float | None = 3e-4
    decay: str = "cosine"
    clip_grad: float | None = 5.0
    gradient_steps: int = 40_000
    update_order: str = "joint"
    tau: float = 0.005
    actor_tau: float | None = 0.001
    actor_every: int = 1
    actor_start: int = 500
    device: str | None = None  # None: a GPU if there is one


@dataclass
class LoggerConfig:
    """Evaluation and logging."""

    backend: str = "csv"
    eval_iter: int = 1_000
    eval_envs: int = 10
    log_iter: int = 500
    progress: bool = True


@dataclass
class CompileConfig:
    """Compilation; None compiles runs of at least 5,000 updates, where it pays."""

    compile: bool | None = None


@dataclass
class EDPIQLConfig:
    """Everything ``examples/edp_iql.py`` can be told."""

    dataset: str = "local/hopper/medium-expert-v0"
    seed: int = 0
    env: EnvConfig = field(default_factory=EnvConfig)
    data: DataConfig = field(default_factory=DataConfig)
    replay_buffer: ReplayBufferConfig = field(default_factory=ReplayBufferConfig)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    diffusion: DiffusionSettings = field(
        default_factory=lambda: DiffusionSettings(
            num_steps=100,
            prediction="velocity",
            solver="dpm_solver_pp",
            num_calls=5,
            solver_kwargs={"spacing": "log_snr"},
            initial_noise_scale=0.25,
        )
    )
    policy: SelectionSettings = field(default_factory=lambda: SelectionSettings(num_action_samples=1))
    loss: IQLLossSettings = field(default_factory=IQLLossSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    compile: CompileConfig = field(default_factory=CompileConfig)
