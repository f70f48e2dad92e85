"""Train the behaviour policies that make this project's local locomotion data sets.

    python examples/train_behavior.py env=walker2d seed=1 total_steps=4000000 stop_score=90
    python examples/train_behavior.py env=halfcheetah layer_norm=false actor_lr=1e-3 critic_lr=1e-3 alpha_lr=1e-3

Soft actor-critic from TorchRL's own parts: `SACLoss`, `Collector`, `TensorDictReplayBuffer`. Two policies are kept on
the way, judged on 50 episodes of *sampled* actions, as data are made: `medium` (normalised return 31 to 55) and
`expert` (the best). At the end they go to `output_dir` as `<env>-<level>.safetensors` with a JSON card, which
`torchrl_edp.data.load_behavior` reads.

The same command resumes an interrupted run from `<checkpoint_dir>/<env>-<seed>.safetensors` (only episodes that were
under way are lost), and with `max_seconds=0` it writes what an interrupted run has kept.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule, add_custom_mapping
from tensordict.nn.functional_modules import _exclude_td_from_pytree
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import DoubleToFloat, GymWrapper, TransformedEnv
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate
from tqdm import tqdm

from torchrl_edp.data import REFERENCE_SCORES, BehaviorPolicy
from torchrl_edp.data.behavior import BEHAVIOR_DIR, LOG_SCALE_BOUNDS, SCALE_MAPPING
from torchrl_edp.evaluation import evaluate
from torchrl_edp.training import set_matmul_precision

# Environment, and the expert's normalised score at which training ends.
ENVS = {"hopper": ("Hopper-v5", 95.0), "halfcheetah": ("HalfCheetah-v5", 75.0), "walker2d": ("Walker2d-v5", 80.0)}
MEDIUM_AIM, MEDIUM_RADIUS = 43.0, 12.0  # medium: within so much of the aim, the nearer the better
ALGORITHM = "SAC (torchrl.objectives.SACLoss): two critics, tuned temperature; actor averaged"
NOT_HYPER = ("env", "seed", "output_dir", "checkpoint_dir", "checkpoint_seconds", "max_seconds", "compile")
PACKAGES = ("torch", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy")
BATCH_KEYS = ("observation", "action", *(("next", k) for k in ("observation", "reward", "done", "terminated")))
# Shapes never change here, and TensorDict's own bookkeeping would otherwise force a new compilation at every call.
NO_GUARDS = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}


@dataclass
class Config:
    """Every setting, each one a key of the command line (`key=value`)."""

    env: str = "hopper"  # hopper, halfcheetah or walker2d
    seed: int = 0
    total_steps: int = 3_000_000  # environment steps at which training ends at the latest
    stop_score: float | None = None  # ends earlier, once an expert has this score (default: by environment)
    output_dir: str = str(BEHAVIOR_DIR)
    checkpoint_dir: str = "outputs/behaviors"
    checkpoint_seconds: float = 120.0
    max_seconds: float = math.inf  # pause after so long in this process
    compile: bool = True  # takes about a minute at the start
    num_envs: int = 16
    frames_per_batch: int = 128
    random_steps: int = 5_000
    buffer_size: int = 1_000_000
    updates_per_batch: int = 32
    batch_size: int = 128
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 256])
    layer_norm: bool = True  # in the critics
    actor_lr: float = 5e-4
    critic_lr: float = 7e-4
    alpha_lr: float = 3e-4
    target_entropy: float = -2.0  # per action dimension: at the usual -1 the sampled actions' noise costs much score
    gamma: float = 0.99
    tau: float = 0.005
    average_rate: float = 5e-4  # the policies that are kept are moving averages of the actor: far steadier
    eval_every: int = 16_384
    eval_episodes: int = 10
    final_episodes: int = 50
    max_episode_steps: int = 1000


class ReLU(nn.Module):
    """ReLU without the boolean mask that Inductor would write by a slow scalar loop on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x + x.abs())


class QNetwork(nn.Module):
    """A Q function."""

    def __init__(self, num_inputs: int, hidden_sizes: list[int], layer_norm: bool) -> None:
        super().__init__()
        sizes = [num_inputs, *hidden_sizes]
        norm = nn.LayerNorm if layer_norm else nn.Identity
        layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), norm(o), ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.layers(torch.cat([observation, action], -1))


def make_env(cfg: Config) -> TransformedEnv:
    """Vectorised environment. Auto-reset is off, so that `next` always holds an episode's true last observation."""
    vector = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make(ENVS[cfg.env][0], max_episode_steps=cfg.max_episode_steps)] * cfg.num_envs,
        autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED,
    )
    return TransformedEnv(GymWrapper(vector), DoubleToFloat())


def make_actor(layers: nn.Sequential, action_spec: Bounded) -> ProbabilisticActor:
    """The tanh-normal policy, with the scale rule that `BehaviorPolicy` has."""
    add_custom_mapping("clipped_exp", lambda raw_scale: raw_scale.clamp(*LOG_SCALE_BOUNDS).exp())
    head = nn.Sequential(layers, NormalParamExtractor(scale_mapping="clipped_exp", scale_lb=0.0))
    return ProbabilisticActor(
        TensorDictModule(head, in_keys=["observation"], out_keys=["loc", "scale"]),
        spec=action_spec,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0, "safe_tanh": True},
        default_interaction_type=InteractionType.RANDOM,
    )


class Learner:
    """Everything that a checkpoint holds: networks, optimiser, replay buffer, counters and kept policies."""

    def __init__(self, cfg: Config, num_obs: int, num_actions: int) -> None:
        self.cfg, self.num_obs, self.num_actions = cfg, num_obs, num_actions
        sizes = [num_obs, *cfg.hidden_sizes]
        hidden = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), ReLU())]
        layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], 2 * num_actions))
        self.average = self.behavior(layers.state_dict())
        spec = Bounded(-1.0, 1.0, shape=(num_actions,))
        self.actor = make_actor(layers, spec)
        networks = [QNetwork(num_obs + num_actions, cfg.hidden_sizes, cfg.layer_norm) for _ in range(2)]
        critics = [ValueOperator(network, in_keys=["observation", "action"]) for network in networks]
        options = {"num_qvalue_nets": 2, "loss_function": "l2", "action_spec": spec, "deactivate_vmap": True}
        self.loss = SACLoss(self.actor, critics, target_entropy=cfg.target_entropy * num_actions, **options)
        self.loss.make_value_estimator(gamma=cfg.gamma)
        _ = self.loss.target_entropy  # becomes a buffer at its first reading, which must not be inside the graph
        self.targets = SoftUpdate(self.loss, tau=cfg.tau)
        groups = [{"params": [*self.loss.actor_network_params.values(True, True)], "lr": cfg.actor_lr}]
        groups += [{"params": [*self.loss.qvalue_network_params.values(True, True)], "lr": cfg.critic_lr}]
        groups += [{"params": [self.loss.log_alpha], "lr": cfg.alpha_lr}]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(cfg.buffer_size), batch_size=cfg.batch_size)
        self.total_loss = torch.compile(self._sum, fullgraph=True, options=NO_GUARDS) if cfg.compile else self._sum
        self._averages = list(self.average.parameters())
        self._actor_weights = [p.data for p in layers.parameters()]
        self.counters = {"env_steps": 0, "gradient_updates": 0, "wall_seconds": 0.0}
        self.kept: dict[str, dict[str, float]] = {}  # level -> score and counters
        self.kept_weights: dict[str, dict[str, Tensor]] = {}  # level -> the policy's tensors

    def behavior(self, weights: dict[str, Tensor]) -> BehaviorPolicy:
        """A stand-alone policy of these weights."""
        policy = BehaviorPolicy(self.num_obs, self.num_actions, tuple(self.cfg.hidden_sizes))
        policy.layers.load_state_dict(weights)
        return policy.requires_grad_(False)

    def _sum(self, batch: TensorDictBase) -> Tensor:
        losses = self.loss(batch)
        return losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]

    def update(self) -> None:
        """One gradient update of actor, critics and temperature; then the target critics and the actor's average."""
        with _exclude_td_from_pytree():  # the loss does so too; inside the graph that would be a side effect
            loss = self.total_loss(self.buffer.sample().select(*BATCH_KEYS))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.targets.step()
        torch._foreach_lerp_(self._averages, self._actor_weights, self.cfg.average_rate)
        self.counters["gradient_updates"] += 1

    def keep(self, level: str, score: dict[str, float]) -> None:
        """Remember the current policy as the best of its level so far."""
        self.kept[level] = {**score, **self.counters}
        self.kept_weights[level] = {name: p.clone() for name, p in self.average.layers.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write the whole state to one file, by one atomic rename."""
        groups = {"loss": {k: v for k, v in self.loss.state_dict().items() if isinstance(v, Tensor)}}
        groups |= {f"adam.{i}": state for i, state in self.optimizer.state_dict()["state"].items()}
        groups |= {f"kept.{level}": weights for level, weights in self.kept_weights.items()}
        groups["average"] = self.average.layers.state_dict()
        groups["buffer"] = dict(self.buffer[:].flatten_keys(".").items())
        tensors = {f"{group}.{k}": v.detach().clone() for group, values in groups.items() for k, v in values.items()}
        tensors["rng"] = torch.get_rng_state()
        meta = {"counters": self.counters, "kept": self.kept, "write_position": self.buffer.writer._cursor}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path.with_suffix(".partial"), {"meta": json.dumps(meta)})
        os.replace(path.with_suffix(".partial"), path)

    def load(self, path: Path) -> None:
        """Continue from `save`."""
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["meta"])
        tensors = load_file(path)

        def group(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        self.counters.update(meta["counters"])
        self.kept = meta["kept"]
        self.kept_weights = {level: group(f"kept.{level}") for level in self.kept}
        weights = {k: v for k, v in group("loss").items() if "target_entropy" not in k}  # may be another one now
        self.loss.load_state_dict({**self.loss.state_dict(), **weights})
        self.average.layers.load_state_dict(group("average"))
        optimizer = self.optimizer.state_dict()
        for key, value in group("adam").items():
            index, name = key.split(".")
            optimizer["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(optimizer)
        data = group("buffer")
        self.buffer.extend(TensorDict(data, len(data["action"])).unflatten_keys("."))
        self.buffer.writer._cursor = meta["write_position"]
        torch.set_rng_state(tensors["rng"])


def score_policy(
    policy: BehaviorPolicy, cfg: Config, episodes: int, seed: int, deterministic: bool = False
) -> dict[str, float]:
    """Returns and lengths of whole episodes, with sampled actions unless `deterministic`."""
    module = TensorDictModule(partial(policy, deterministic=deterministic), ["observation"], ["action"])
    limits = {"num_episodes": episodes, "max_steps": cfg.max_episode_steps}
    result = evaluate(module, ENVS[cfg.env][0], seed=seed, device="cpu", reference=REFERENCE_SCORES[cfg.env], **limits)
    scores = {"mean_return": result.mean, "std_return": result.std, "normalized_score": result.normalized}
    return scores | {"mean_length": result.lengths.double().mean().item()}


def consider(learner: Learner) -> str:
    """Evaluate the current policy, keep it where it is the best of a level so far, and say so in one line."""
    cfg, counters = learner.cfg, learner.counters
    best = {"expert": -math.inf} | {level: kept["normalized_score"] for level, kept in learner.kept.items()}
    radius = min(MEDIUM_RADIUS, abs(best.get("medium", math.inf) - MEDIUM_AIM))
    score = score_policy(learner.average, cfg, cfg.eval_episodes, seed=10_000 + counters["env_steps"])
    if score["normalized_score"] > best["expert"] or abs(score["normalized_score"] - MEDIUM_AIM) < radius:
        score = score_policy(learner.average, cfg, cfg.final_episodes, seed=20_000 + counters["env_steps"])
        if abs(score["normalized_score"] - MEDIUM_AIM) < radius:
            learner.keep("medium", score)
        if score["normalized_score"] > best["expert"]:
            learner.keep("expert", score)
    kept = {level: round(kept["normalized_score"], 1) for level, kept in learner.kept.items()}
    parts = {name: round(value, 1) for name, value in {**counters, **score}.items()}
    return f"{parts} alpha {learner.loss.log_alpha.exp().item():.4f} kept {kept}"


def write_policy(learner: Learner, level: str) -> dict[str, Any]:
    """Write one kept policy and its card; the card's scores come from fresh episodes, not those that selected it."""
    cfg, weights = learner.cfg, learner.kept_weights[level]
    policy = learner.behavior(weights)
    sampled = score_policy(policy, cfg, cfg.final_episodes, seed=1_000_000)
    deterministic = score_policy(policy, cfg, cfg.final_episodes, seed=2_000_000, deterministic=True)
    card = {
        "env_id": ENVS[cfg.env][0],
        "level": level,
        "hidden_sizes": list(cfg.hidden_sizes),
        "activation": "relu",
        "scale_mapping": SCALE_MAPPING,
        "algorithm": ALGORITHM,
        "hyper_parameters": {k: v for k, v in asdict(cfg).items() if k not in NOT_HYPER},
        **{k: round(learner.kept[level][k], 1) for k in learner.counters},
        "seed": cfg.seed,
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "evaluation": {"episodes": cfg.final_episodes, "max_episode_steps": cfg.max_episode_steps, "seed": 1_000_000},
        **sampled,
        "normalized_score_deterministic": deterministic["normalized_score"],
    }
    path = Path(cfg.output_dir) / f"{cfg.env}-{level}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    path.chmod(0o644)
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def train(cfg: Config) -> Learner:
    """Collect, update, evaluate, checkpoint; end at `total_steps`, `stop_score` or `max_seconds`."""
    torch.manual_seed(cfg.seed)
    env = make_env(cfg)
    env.set_seed(cfg.seed)
    learner = Learner(cfg, env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1])
    checkpoint = Path(cfg.checkpoint_dir) / f"{cfg.env}-{cfg.seed}.safetensors"
    if checkpoint.exists():
        learner.load(checkpoint)
    counters = learner.counters
    settings = {"frames_per_batch": cfg.frames_per_batch, "total_frames": -1, "auto_register_policy_transforms": True}
    settings["init_random_frames"] = 0 if counters["env_steps"] else cfg.random_steps
    collector = Collector(env, learner.actor, **settings)
    stop_score = ENVS[cfg.env][1] if cfg.stop_score is None else cfg.stop_score
    progress = tqdm(total=cfg.total_steps, initial=counters["env_steps"], unit="step", mininterval=10.0)
    before, started = counters["wall_seconds"], time.perf_counter()
    saved, score = started, -math.inf
    for data in collector:
        learner.buffer.extend(data.reshape(-1).select(*BATCH_KEYS))
        counters["env_steps"] += data.numel()
        if counters["env_steps"] > cfg.random_steps:
            for _ in range(cfg.updates_per_batch):
                learner.update()
        counters["wall_seconds"] = before + time.perf_counter() - started
        progress.update(data.numel())
        if counters["env_steps"] % cfg.eval_every < data.numel():
            progress.write(consider(learner))
            score = learner.kept["expert"]["normalized_score"] if len(learner.kept) == 2 else score
        over = score >= stop_score or counters["env_steps"] >= cfg.total_steps
        over |= time.perf_counter() - started > cfg.max_seconds
        if over or time.perf_counter() - saved > cfg.checkpoint_seconds:
            learner.save(checkpoint)
            saved = time.perf_counter()
        if over:
            break
    progress.close()
    collector.shutdown()
    return learner


ConfigStore.instance().store(name="train_behavior", node=Config)


@hydra.main(version_base="1.3", config_path=None, config_name="train_behavior")
def main(cfg: Any) -> None:
    """Train, then write the policies that were kept."""
    config: Config = OmegaConf.to_object(cfg)
    torch.set_num_threads(1)
    set_matmul_precision(onednn=True)
    learner = train(config)
    for level in learner.kept:
        card = write_policy(learner, level)
        print(f"{card['env_id']} {level}: {card['normalized_score']:.1f}, mean length {card['mean_length']:.0f}")


if __name__ == "__main__":
    print(__doc__ if {"-h", "--help"} & set(sys.argv) else "", end="")
    main()
