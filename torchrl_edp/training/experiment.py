"""A whole run: from settings, data and loss to a trained policy in a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torchrl.envs.utils import ExplorationType
from torchrl.objectives import LossModule

from torchrl_edp.data import OfflineDataset, load_dataset
from torchrl_edp.evaluation import EvaluationResult, PolicyEvaluator
from torchrl_edp.modules import EDPActor, EnergyBasedActionSelector
from torchrl_edp.training.build import build_actor, build_qvalue, build_selector
from torchrl_edp.training.diagnose import Diagnosis
from torchrl_edp.training.feed_forward import ACTORS, acting_actor
from torchrl_edp.training.loop import TrainingStopped, train
from torchrl_edp.training.policy import EnvironmentPolicy, save_feed_forward_policy, save_policy
from torchrl_edp.training.record import TrainingRecord
from torchrl_edp.training.resume import RunCheckpoints, resume_command
from torchrl_edp.training.run import RunFolder
from torchrl_edp.training.settings import ExperimentSettings, FeedForwardSettings, RunSettings
from torchrl_edp.training.setup import PreparedData, choose_compile, choose_device, prepare_data
from torchrl_edp.training.state import TrainState
from torchrl_edp.training.targets import EDPTargetUpdate


@dataclass(frozen=True)
class _Acting:
    """The policy that is evaluated and saved.

    Args:
        policy: on normalised data; it shares its parameters with the loss.
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


def load_experiment_data(cfg: RunSettings) -> OfflineDataset:
    """The data set that ``cfg`` names."""
    options = {} if cfg.data.num_steps is None else {"num_steps": cfg.data.num_steps}
    return load_dataset(cfg.dataset, **options)


def build_networks(cfg: ExperimentSettings, dataset: OfflineDataset) -> tuple[EDPActor, list[TensorDictModule]]:
    """The diffusion policy and the critics of ``cfg``, for the sizes of ``dataset``."""
    sizes = dataset.observation_size, dataset.action_size
    actor = build_actor(*sizes, cfg.network, cfg.diffusion)
    return actor, [build_qvalue(*sizes, cfg.network) for _ in range(cfg.loss.num_qvalue_nets)]


def run_experiment(cfg: RunSettings, dataset: OfflineDataset, loss: LossModule, folder: RunFolder) -> dict[str, Any]:
    """Train ``loss`` on ``dataset``, evaluate on the way, and leave policy, curves and summary in ``folder``.

    Args:
        cfg: all settings: :class:`ExperimentSettings` of an EDP loss, :class:`FeedForwardSettings` of the others.
        dataset: validated transitions.
        loss: a loss whose networks fit the data and are those of ``cfg``.
        folder: where results go, and checkpoints; with ``cfg.resume`` the run goes on from the newest one in it.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        CheckpointError: if the folder holds another run; see :meth:`RunCheckpoints.restore`.
        SystemExit: after SIGINT or SIGTERM, with a message that says how to go on.
    """
    device = choose_device(cfg.optim.device)
    compile = choose_compile(cfg.compile.compile, cfg.optim.gradient_steps)
    if cfg.compile.onednn:
        # The switch to oneDNN; on processors without AMX products stay float32.
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    loss = loss.to(device)
    data = _prepare(cfg, dataset, device)
    state = _train_state(cfg, loss, data, compile)
    acting = _acting(cfg, loss, dataset)
    policy = EnvironmentPolicy(acting.policy, data.observation_normalizer, data.action_scaler).to(device)
    evaluated = torch.compile(policy) if compile and acting.compile else policy
    diagnosis = Diagnosis(loss, data.buffer, actor_params=acting.actor_params, exploration_type=acting.exploration_type)
    record = TrainingRecord()
    checkpoints = RunCheckpoints(folder, state, record, cfg, dataset)
    checkpoints.restore()
    folder.write_config()

    def save(name: str) -> None:
        info = {"dataset": cfg.dataset, "env": str(dataset.env_id), "update": state.updates}
        acting.save(folder.path / name, policy, info=info)

    with _evaluator(cfg, dataset) as evaluator:

        def evaluate() -> EvaluationResult:
            seed = 1_000_000 * cfg.seed + state.updates  # new episodes every time
            return evaluator(evaluated, seed, exploration_type=acting.exploration_type)

        try:
            scores = train(
                state,
                evaluate,
                folder,
                gradient_steps=cfg.optim.gradient_steps,
                eval_iter=cfg.logger.eval_iter,
                log_iter=cfg.logger.log_iter,
                progress=cfg.logger.progress,
                on_best=lambda: save("policy_best"),
                diagnose=diagnosis,
                record=record,
                save=checkpoints.save,
                save_iter=cfg.checkpoint.iter,
            )
        except TrainingStopped as stop:
            print(f"Stopped by {stop}, nothing is lost. Go on with:\n    {resume_command(folder)}", file=sys.stderr)
            raise SystemExit(128 + stop.signal) from None
    save("policy")
    about = {"loss": type(loss).__name__, "dataset": cfg.dataset, "preset": cfg.preset, "seed": cfg.seed}
    summary = folder.summarize({**about, **asdict(scores), "gradient_steps": state.updates})
    found = ", ".join(f"{name} {value:.1f}" for name, value in record.shown().items()) or "Not evaluated"
    print(f"{found} in {summary['seconds']:.0f} s: {folder.path}")
    return summary


def _prepare(cfg: RunSettings, dataset: OfflineDataset, device: torch.device) -> PreparedData:
    return prepare_data(
        dataset,
        reward_rule=cfg.data.reward_rule,
        return_steps=cfg.data.return_steps,
        gamma=getattr(cfg.loss, "gamma", 1.0),  # cloning has none, and reads no rewards
        normalize_observations=cfg.data.normalize_observations,
        action_limit=cfg.data.action_limit,
        batch_size=cfg.replay_buffer.batch_size,
        device=device,
        seed=cfg.seed,
    )


def _train_state(cfg: RunSettings, loss: LossModule, data: PreparedData, compile: bool) -> TrainState:
    optim = asdict(cfg.optim)
    averages = {name: optim.pop(name) for name in ("tau", "actor_tau", "actor_every", "actor_start") if name in optim}
    if isinstance(cfg, FeedForwardSettings):
        averages["actor_every"] = cfg.optim.policy_every
    del optim["device"]
    return TrainState(loss, data.buffer, EDPTargetUpdate(loss, **averages), compile=compile, **optim)


def _evaluator(cfg: RunSettings, dataset: OfflineDataset) -> PolicyEvaluator:
    return PolicyEvaluator(
        cfg.env.name or dataset.env_id,
        num_episodes=cfg.logger.eval_envs,
        max_steps=cfg.env.max_episode_steps or dataset.max_episode_steps,
        reference=dataset.reference and dataset.reference[:2],
        observation_keys=dataset.observation_keys,
        env_kwargs=dataset.env_kwargs,
    )


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
