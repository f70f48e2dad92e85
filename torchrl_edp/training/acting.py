"""The policy of a run as it is evaluated, diagnosed and saved while its loss is being trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType
from torchrl.objectives import LossModule

from torchrl_edp.data import OfflineDataset
from torchrl_edp.evaluation import EvaluationResult, PolicyEvaluator
from torchrl_edp.modules import EnergyBasedActionSelector
from torchrl_edp.objectives import MultiSeedLoss
from torchrl_edp.training.build import build_selector
from torchrl_edp.training.diagnose import Diagnosis
from torchrl_edp.training.feed_forward import ACTORS, acting_actor
from torchrl_edp.training.policy import EnvironmentPolicy, save_feed_forward_policy, save_policy
from torchrl_edp.training.settings import ExperimentSettings, FeedForwardSettings, RunSettings
from torchrl_edp.training.setup import PreparedData


@dataclass(frozen=True)
class _Acting:
    """The policy on normalised data.

    Args:
        policy: it shares its parameters with the loss.
        actor_params: those of its actor, in the loss.
        save: a function of path, policy for the environment and ``info``.
        exploration_type: whether it draws its actions.
        compile: whether compiling it pays.
    """

    policy: TensorDictModuleBase
    actor_params: TensorDictParams
    save: Callable[..., None]
    exploration_type: ExplorationType
    compile: bool


class ActingPolicy:
    """Evaluates, diagnoses and saves the policy that a loss is training.

    That of several seeds is built, and compiled, once: it acts on a copy of the first seed's loss that takes the
    parameters of each in turn.

    Args:
        cfg: all settings.
        dataset: validated transitions.
        loss: of one seed, or a :class:`~torchrl_edp.objectives.MultiSeedLoss`.
        data: what ``dataset`` was prepared to, on the loss's device.
        compile: compile the policy for evaluation, where it pays.
    """

    def __init__(
        self, cfg: RunSettings, dataset: OfflineDataset, loss: LossModule, data: PreparedData, *, compile: bool
    ) -> None:
        self._cfg = cfg
        self._about = {"dataset": cfg.dataset, "env": cfg.env.name or dataset.env_id}
        self._losses = loss.losses if isinstance(loss, MultiSeedLoss) else ()
        self.loss = copy.deepcopy(self._losses[0]) if self._losses else loss
        self._acting = acting = _acting(cfg, self.loss, dataset)
        self._policy = EnvironmentPolicy(
            acting.policy, data.observation_normalizer, data.action_scaler, dataset.observation_keys
        )
        self._policy.to(data.buffer[:1].device)
        self._evaluated = torch.compile(self._policy) if compile and acting.compile else self._policy
        params, exploration_type = acting.actor_params, acting.exploration_type
        self._diagnosis = Diagnosis(self.loss, data.buffer, actor_params=params, exploration_type=exploration_type)

    def evaluate(self, evaluator: PolicyEvaluator, index: int, update: int) -> EvaluationResult:
        """Returns of the seed with this index, in episodes that are new at every update."""
        self._look_at(index)
        seed = 1_000_000 * self._cfg.seeds[index] + update
        return evaluator(self._evaluated, seed, exploration_type=self._acting.exploration_type)

    def diagnose(self, index: int, update: int) -> dict[str, float]:
        """A row of numbers, see :class:`Diagnosis`."""
        self._look_at(index)
        return self._diagnosis(update, f"seed {self._cfg.seeds[index]}" if self._losses else "")

    def save(self, path: Path, index: int, update: int) -> None:
        """Write the policy for the environment: ``path``.safetensors and ``path``.json."""
        self._look_at(index)
        self._acting.save(path, self._policy, info={**self._about, "update": update})

    @torch.no_grad()
    def _look_at(self, index: int) -> None:
        """Take over the parameters of the seed with this index."""
        if self._losses:
            sources = _tensors(self._losses[index])
            for name, tensor in _tensors(self.loss).items():
                tensor.copy_(sources[name])


def _tensors(loss: LossModule) -> dict[str, Tensor]:
    return {**dict(loss.named_parameters()), **dict(loss.named_buffers())}


def _acting(cfg: RunSettings, loss: LossModule, dataset: OfflineDataset) -> _Acting:
    if isinstance(cfg, FeedForwardSettings):
        save = partial(save_feed_forward_policy, network=cfg.network, kind=ACTORS[cfg.algorithm])
        # One call of a small network an action: compiling it would not pay.
        actor = acting_actor(cfg, loss, dataset.observation_size, dataset.action_size)
        return _Acting(
            actor, _actor_params(loss, cfg.policy.averaged_actor), save, ExplorationType.DETERMINISTIC, False
        )
    assert isinstance(cfg, ExperimentSettings)
    settings: dict[str, Any] = {"network": cfg.network, "diffusion": cfg.diffusion, "selection": cfg.policy.selection}
    params = _actor_params(loss, cfg.policy.averaged_actor)
    return _Acting(_selector(cfg, loss), params, partial(save_policy, **settings), ExplorationType.RANDOM, compile=True)


def _actor_params(loss: LossModule, averaged: bool) -> TensorDictParams:
    return loss.target_actor_network_params if averaged else loss.actor_network_params


def _selector(cfg: ExperimentSettings, loss: LossModule) -> EnergyBasedActionSelector:
    averaged = {"actor": cfg.policy.averaged_actor, "qvalue": cfg.policy.averaged_critics}
    params = {
        f"{name}_params": getattr(loss, f"{'target_' if average else ''}{name}_network_params")
        for name, average in averaged.items()
    }
    return build_selector(loss.actor_network, loss.qvalue_network, cfg.policy.selection, **params)
