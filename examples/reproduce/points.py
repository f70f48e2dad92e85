"""Evaluations of trained policies under other acting settings, each recorded once for all figures that show it."""

from __future__ import annotations

import datetime
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from runs import Ledger
from study import EPISODES
from torchrl.envs.utils import ExplorationType
from tqdm import tqdm

from torchrl_edp.data import load_dataset
from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.modules import EnergyBasedActionSelector
from torchrl_edp.training import EnvironmentPolicy, load_policy

POINTS = "points.csv"  # one file for all figures, which share many of their points
POLICIES = "policies.csv"  # what the points of a run's policy are known by, when its folder is gone
POLICY_COLUMNS = ("key", "policy", "dataset", "num_steps", "own")
COLUMNS = ("key", "policy", "dataset", "acting", "episodes", "score", "deviation", "seconds", "torch", "date", "scores")

FULL_NOISE = {"initial_noise_scale": 1.0}
ONE = {"num_action_samples": 1}
PAPER = FULL_NOISE | {"num_action_samples": 10}  # how the paper's policies act, EDP-TD3's and EDP-CRR's by default
LITTLE_NOISE = ONE | {"initial_noise_scale": 0.25}  # as EDP-IQL's act by default, but in mazes

COMPILED_ROWS = 1_000  # actions at a time from which on compiling pays in a few hundred steps

Acting = dict[str, Any]


@dataclass(frozen=True)
class SavedPolicy:
    """A policy in a run's folder.

    Args:
        path: the run's folder, or the policy in it (``policy_best``), with or without suffix.
    """

    path: Path

    @cached_property
    def file(self) -> Path:
        """The policy's path, without suffix.

        Raises:
            SystemExit: if there is none.
        """
        path = self.path / "policy" if self.path.is_dir() else self.path
        path = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
        if not path.with_name(path.name + ".json").exists():
            raise SystemExit(f"{self.path}: expected the folder of a finished run, or a policy; found no {path}.json.")
        return path

    @cached_property
    def digest(self) -> str:
        """Twelve digits that stand for its weights and its own settings."""
        files = [self.file.with_name(self.file.name + suffix).read_bytes() for suffix in (".safetensors", ".json")]
        return hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in files)).hexdigest()[:12]

    @cached_property
    def own(self) -> Acting:
        """How it acts unless told otherwise, by the names of :data:`Acting`; nothing for a feed-forward policy."""
        card = json.loads(self.file.with_name(self.file.name + ".json").read_text())
        return {**card.get("diffusion", {}), **card.get("selection", {})}

    @cached_property
    def data(self) -> tuple[str, int | None]:
        """Name of the data set it was trained on, and the size if it is one of its own."""
        config = self.file.with_name("config.yaml")
        if config.exists():
            cfg = OmegaConf.load(config)
            return cfg.dataset, cfg.data.num_steps
        return json.loads(self.file.with_name(self.file.name + ".json").read_text())["info"]["dataset"], None

    def record(self, key: str) -> dict[str, Any]:
        """Its row of :data:`POLICY_COLUMNS`, by the key of its run."""
        dataset, num_steps = self.data
        own = json.dumps(self.own, sort_keys=True)
        return {"key": key, "policy": self.digest, "dataset": dataset, "num_steps": num_steps or "", "own": own}

    @classmethod
    def recorded(cls, path: Path, row: Mapping[str, str]) -> SavedPolicy:
        """A policy whose files are gone: its points are known, it cannot act."""
        policy = cls(path)
        data = row["dataset"], int(row["num_steps"]) if row["num_steps"] else None
        vars(policy).update(digest=row["policy"], own=json.loads(row["own"]), data=data)
        return policy


def load_acting(saved: SavedPolicy, acting: Acting) -> EnvironmentPolicy:
    """The policy, with other settings than its own: attributes of its selector or of its sampler.

    Raises:
        ValueError: if there are any and it is no policy of EDP, or has no such setting, or cannot run with it.
    """
    policy = load_policy(saved.file)
    if not acting:
        return policy
    selector = policy.policy
    if not isinstance(selector, EnergyBasedActionSelector):
        raise ValueError(f"{saved.file}: expected a policy of EDP, got {type(selector).__name__}. Name other runs.")
    sampler = selector.actor_network.module
    for name, value in acting.items():
        owner = selector if hasattr(selector, name) else sampler
        if not hasattr(owner, name):
            raise ValueError(f"{saved.file}: a policy of EDP has no setting {name!r}.")
        setattr(owner, name, value)
    sampler.check_options()
    return policy


@dataclass(frozen=True)
class Point:
    """One evaluation: a policy, how it acts, the number of episodes; these are the same ones for all points.

    Args:
        policy: the policy.
        acting: settings that differ from the policy's own.
        episodes: None for :data:`EPISODES` of its environment, 20 elsewhere.
        load: makes the policy that acts.
    """

    policy: SavedPolicy
    acting: Acting
    episodes: int | None = None
    load: Callable[[SavedPolicy, Acting], EnvironmentPolicy] = load_acting

    @cached_property
    def num_episodes(self) -> int:
        """How many episodes."""
        own = [count for name, count in EPISODES.items() if name in self.policy.data[0]]
        return self.episodes or max(own, default=20)

    @cached_property
    def key(self) -> str:
        """Twelve digits that stand for everything that decides its score, however that is said."""
        own = self.policy.own
        acting = {name: value for name, value in self.acting.items() if own.get(name) != value}
        decisive = json.dumps([self.policy.digest, acting, self.num_episodes], sort_keys=True)
        return hashlib.sha256(decisive.encode()).hexdigest()[:12]

    def row(self, evaluator: PolicyEvaluator) -> dict[str, Any]:
        """Evaluate it; its row of results."""
        started = time.monotonic()
        policy = self.load(self.policy, self.acting)
        if self.acting.get("num_action_samples", 1) * self.num_episodes >= COMPILED_ROWS:
            policy = torch.compile(policy, options={"fallback_random": True})  # the same draws as others
        # A feed-forward policy acts by its mean, as in training; what it chooses from is drawn.
        drawn = isinstance(policy.policy, EnergyBasedActionSelector)
        how = ExplorationType.RANDOM if drawn else ExplorationType.DETERMINISTIC
        result = evaluator(policy, seed=0, exploration_type=how)
        low, high = result.reference or (0.0, 100.0)
        scores = (100 * (result.returns - low) / (high - low)).tolist()
        return {
            "key": self.key,
            "policy": self.policy.digest,
            "dataset": self.policy.data[0],
            "acting": json.dumps(self.acting, sort_keys=True),
            "episodes": self.num_episodes,
            "score": f"{statistics.mean(scores):.2f}",
            "deviation": f"{statistics.pstdev(scores):.2f}",
            "seconds": f"{time.monotonic() - started:.1f}",
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
            "scores": " ".join(f"{score:.2f}" for score in scores),
        }


@cache
def environment(dataset: str, num_steps: int | None) -> dict[str, Any]:
    """Where policies of a data set act: arguments of :class:`PolicyEvaluator`."""
    data = load_dataset(dataset, **({} if num_steps is None else {"num_steps": num_steps}))
    about = {"env_id": data.env_id, "max_steps": data.max_episode_steps, "observation_keys": data.observation_keys}
    return about | {"reference": data.reference and data.reference[:2], "env_kwargs": data.env_kwargs}


def evaluate(points: Sequence[Point], ledger: Ledger, *, onednn: bool = False) -> None:
    """Evaluate those of ``points`` that ``ledger`` does not know, each recorded at once.

    Args:
        points: the evaluations.
        ledger: of evaluations.
        onednn: matrix products by oneDNN, as ``compile.onednn`` of the runs.

    Raises:
        SystemExit: after Ctrl-C.
    """
    if onednn:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    missing = {point.key: point for point in points if point.key not in ledger}.values()
    try:
        # disable=None: no bar where the output is not a terminal.
        with tqdm(total=len(missing), unit="point", disable=None if missing else True) as bar:
            for (data, episodes), group in groupby(missing, lambda point: (point.policy.data, point.num_episodes)):
                bar.set_description(data[0])
                with PolicyEvaluator(**environment(*data), num_episodes=episodes) as evaluator:
                    for point in group:
                        bar.set_postfix_str(" ".join(f"{name}={value}" for name, value in point.acting.items()))
                        ledger.add(point.row(evaluator))
                        bar.update()
    except KeyboardInterrupt:
        raise SystemExit("Stopped, nothing is lost: the same command goes on.") from None
