"""Everything a training run can be told, as plain dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from torchrl_edp.data import REWARD_RULES
from torchrl_edp.training.build import DiffusionSettings, NetworkSettings, SelectionSettings, TrunkSettings, choice
from torchrl_edp.training.setup import MATMUL_PRECISIONS
from torchrl_edp.training.state import Decay, UpdateOrder

ALGORITHMS = ("td3_bc", "iql", "crr", "bc")


@dataclass
class EnvSettings:
    """Where the policy is evaluated; None takes it from the data set."""

    name: str | None = None
    max_episode_steps: int | None = None


@dataclass
class DataSettings:
    """How the data set is prepared."""

    num_steps: int | None = None  # size of a local counterpart, per behaviour; None for the library's default
    reward_rule: str = choice("return_range", REWARD_RULES)
    return_steps: int = 1  # rewards of the data that are added up before the critics take over
    normalize_observations: bool = True
    action_limit: float = 0.999  # actions are clipped to +- this, after scaling to [-1, 1] (reference code)


@dataclass
class ReplayBufferSettings:
    """The replay buffer."""

    batch_size: int = 256


@dataclass
class PolicySettings(SelectionSettings):
    """The policy that acts: whose parameters, and how one of its candidates is chosen."""

    num_action_samples: int = 1
    averaged_actor: bool = True  # False: the parameters being trained act
    averaged_critics: bool = True  # False: the critics being trained choose (reference code)

    @property
    def selection(self) -> SelectionSettings:
        """What a saved policy has to remember."""
        names = SelectionSettings.__dataclass_fields__
        return SelectionSettings(**{name: value for name, value in asdict(self).items() if name in names})


@dataclass
class SharedOptimSettings:
    """Optimiser, critics' average and length of the run."""

    lr: float = 3e-4
    critic_lr: float | None = None
    decay: str = choice("none", get_args(Decay))
    clip_grad: float | None = 5.0
    gradient_steps: int = 40_000
    tau: float = 0.005
    device: str | None = None  # None: a GPU if there is one
    # Of matrix products: TF32 on GPUs by the last two, bfloat16 on CPUs with AMX by the last one.
    matmul_precision: str = choice("highest", MATMUL_PRECISIONS)


@dataclass
class OptimSettings(SharedOptimSettings):
    """Those of a diffusion policy."""

    lr: float = 1e-3
    critic_lr: float | None = 3e-4
    decay: str = choice("cosine", get_args(Decay))
    update_order: str = choice("joint", get_args(UpdateOrder))
    actor_tau: float | None = 0.001
    actor_every: int = 1
    actor_start: int = 500


@dataclass
class LoggerSettings:
    """Evaluation and logging."""

    backend: str = "csv"
    eval_iter: int = 1_000
    eval_envs: int = 10
    log_iter: int = 500
    progress: bool = True


@dataclass
class CheckpointSettings:
    """What a run keeps to go on from."""

    iter: int = 1_000  # updates between two checkpoints
    keep: int = 2  # the last ones; the one with the best evaluation stays too, of several seeds the last best one


@dataclass
class CompileSettings:
    """How updates are computed."""

    # None: compile runs of at least 5,000 updates, and what samples in them if its solver makes at most 30 calls.
    compile: bool | None = None
    # Matrix products on a CPU by oneDNN in place of MKL, in float32: on some of AMD's processors twice as fast.
    onednn: bool = False


@dataclass
class RunSettings:
    """What the runs of all policies have in common."""

    dataset: str = "local/hopper/medium-expert-v0"
    preset: str = "default"  # default, paper, reference or reference-dpm
    seed: int = 0
    resume: str | None = None  # a run's folder, or "auto": the newest run of this data set and seed, if there is one
    resume_changed: bool = False  # go on although settings or data are others
    env: EnvSettings = field(default_factory=EnvSettings)
    data: DataSettings = field(default_factory=DataSettings)
    replay_buffer: ReplayBufferSettings = field(default_factory=ReplayBufferSettings)
    network: TrunkSettings = field(default_factory=TrunkSettings)
    loss: Any = None  # the loss's arguments, and gamma
    optim: SharedOptimSettings = field(default_factory=SharedOptimSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    compile: CompileSettings = field(default_factory=CompileSettings)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are trained together."""
        return (self.seed,)


@dataclass
class ExperimentSettings(RunSettings):
    """What the runs of all EDP losses have in common."""

    num_seeds: int = 1  # seeds that are trained together, in one computation: seed, seed + 1, ...
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
    policy: PolicySettings = field(default_factory=PolicySettings)
    optim: OptimSettings = field(default_factory=OptimSettings)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are trained together."""
        return tuple(range(self.seed, self.seed + self.num_seeds))


@dataclass
class FeedForwardOptimSettings(SharedOptimSettings):
    """Those of a feed-forward policy."""

    policy_every: int = 1  # updates between two steps of the policy and of its average


@dataclass
class FeedForwardPolicySettings:
    """The policy that acts, deterministically: by its action or the tanh of its mean."""

    averaged_actor: bool = False  # True: its average acts


@dataclass
class FeedForwardSettings(RunSettings):
    """What the runs of all feed-forward policies have in common."""

    algorithm: str = choice("td3_bc", ALGORITHMS)
    policy: FeedForwardPolicySettings = field(default_factory=FeedForwardPolicySettings)
    optim: FeedForwardOptimSettings = field(default_factory=FeedForwardOptimSettings)
