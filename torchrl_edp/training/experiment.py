"""A whole run: from settings, data and loss to a trained policy in a folder."""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from torchrl_edp.data import DatasetError, OfflineDataset, load_dataset
from torchrl_edp.data.checks import problem
from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.modules import EDPActor
from torchrl_edp.objectives import MultiSeedLoss
from torchrl_edp.objectives.sampled_target import SampledTargetLoss
from torchrl_edp.training.acting import ActingPolicy
from torchrl_edp.training.build import build_actor, build_qvalue
from torchrl_edp.training.loop import TrainingStopped, train
from torchrl_edp.training.record import TrainingRecord, summarize_seeds
from torchrl_edp.training.resume import RunCheckpoints, resume_command
from torchrl_edp.training.run import RunFolder
from torchrl_edp.training.settings import ExperimentSettings, FeedForwardSettings, RunSettings
from torchrl_edp.training.setup import (
    MOST_CALLS,
    PreparedData,
    choose_compile,
    choose_device,
    prepare_data,
    set_matmul_precision,
)
from torchrl_edp.training.state import TrainState
from torchrl_edp.training.targets import EDPTargetUpdate


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
        loss: a loss whose networks fit the data and are those of ``cfg``; a
            :class:`~torchrl_edp.objectives.MultiSeedLoss` of ``cfg.seeds`` where they are several.
        folder: where results go, and checkpoints; with ``cfg.resume`` the run goes on from the newest one in it.
            Several seeds get a folder each in it, with policy, curves and summary; its own curves are their means.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ValueError: if ``loss`` is of other seeds than ``cfg``.
        DatasetError: if evaluations are wanted, and the data name no environment or it cannot be used or does not fit.
        CheckpointError: if the folder holds another run; see :meth:`RunCheckpoints.restore`.
        SystemExit: after SIGINT or SIGTERM, with a message that says how to go on.
    """
    device = choose_device(cfg.optim.device)
    compile = choose_compile(cfg.compile.compile, cfg.optim.gradient_steps)
    compile_sampler = compile and (cfg.compile.compile is True or _sampler_calls(cfg) <= MOST_CALLS)
    set_matmul_precision(cfg.optim.matmul_precision, onednn=cfg.compile.onednn and device.type == "cpu")
    loss = loss.to(device)
    data = _prepare(cfg, dataset, device)
    samples = isinstance(loss.losses[0] if isinstance(loss, MultiSeedLoss) else loss, SampledTargetLoss)
    state = _train_state(cfg, loss, data, compile_sampler if samples else compile)
    seeds = loss.seeds if isinstance(loss, MultiSeedLoss) else (cfg.seed,)
    if seeds != cfg.seeds:
        raise ValueError(f"Expected a loss of the seeds {list(cfg.seeds)}, got one of {list(seeds)}.")
    acting = ActingPolicy(cfg, dataset, loss, data, compile=compile_sampler)
    record = TrainingRecord(state.num_seeds)
    checkpoints = RunCheckpoints(folder, state, record, cfg, dataset)
    seed_rows = checkpoints.restore()
    if state.num_seeds > 1:
        folder.split(cfg.seeds, seed_rows)
    folders = folder.seeds or [folder]
    folder.write_config()

    def save(name: str, index: int) -> None:
        acting.save(folders[index].path / name, index, state.updates)

    with _evaluator(cfg, dataset) as evaluator:
        try:
            train(
                state,
                lambda index: acting.evaluate(evaluator, index, state.updates),
                folder,
                gradient_steps=cfg.optim.gradient_steps,
                eval_iter=cfg.logger.eval_iter,
                log_iter=cfg.logger.log_iter,
                progress=cfg.logger.progress,
                on_best=lambda index: save("policy_best", index),
                diagnose=acting.diagnose,
                record=record,
                save=checkpoints.save,
                save_iter=cfg.checkpoint.iter,
            )
        except TrainingStopped as stop:
            print(f"Stopped by {stop}, nothing is lost. Go on with:\n    {resume_command(folder)}", file=sys.stderr)
            raise SystemExit(128 + stop.signal) from None
    for index in range(state.num_seeds):
        save("policy", index)
    return _summarize(cfg, type(acting.loss).__name__, folder, record, state.updates)


def _sampler_calls(cfg: RunSettings) -> int:
    """Network calls for one action of the policy."""
    if not isinstance(cfg, ExperimentSettings):
        return 1
    return cfg.diffusion.num_calls or cfg.diffusion.num_steps


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
    del optim["device"], optim["matmul_precision"]
    return TrainState(loss, data.buffer, EDPTargetUpdate(loss, **averages), compile=compile, **optim)


def _summarize(cfg: RunSettings, loss: str, folder: RunFolder, record: TrainingRecord, updates: int) -> dict[str, Any]:
    """Write the summary of every seed and, of several, that of all."""
    about: dict[str, Any] = {"loss": loss, "dataset": cfg.dataset, "preset": cfg.preset}
    about |= {"num_seeds": len(cfg.seeds)} if folder.seeds else {}  # times are those of all
    steps, scores = {"gradient_steps": updates}, record.scores()
    for own, seed, values in zip(folder.seeds or [folder], cfg.seeds, scores, strict=True):
        summary = own.summarize({**about, "seed": seed, **asdict(values), **steps})
    if folder.seeds:
        summary = folder.summarize({**about, **summarize_seeds(cfg.seeds, scores), **steps})
    found = ", ".join(f"{name} {value:.1f}" for name, value in record.shown().items()) or "Not evaluated"
    means = f" (means of {len(scores)} seeds)" if folder.seeds else ""
    print(f"{found}{means} in {summary['seconds']:.0f} s: {folder.path}")
    return summary


def _evaluator(cfg: RunSettings, dataset: OfflineDataset) -> AbstractContextManager[Any]:
    """The evaluator of the run; nothing where nothing is to be evaluated."""
    if not cfg.logger.eval_iter:
        return nullcontext()
    env = cfg.env.name or dataset.env_id
    if env is None:
        remedy = "Give env.name=..., from_arrays(env_id=...), or logger.eval_iter=0 to train without scores."
        raise problem("environment", "one for evaluation", "data that name none", remedy)
    try:
        evaluator = PolicyEvaluator(
            env,
            num_episodes=cfg.logger.eval_envs,
            max_steps=cfg.env.max_episode_steps or dataset.max_episode_steps,
            reference=dataset.reference and dataset.reference[:2],
            observation_keys=dataset.observation_keys,
            env_kwargs=dataset.env_kwargs,
        )
    except ValueError as error:  # to be told without a traceback
        raise DatasetError(str(error)) from error
    wanted = dataset.observation_size, (dataset.action_size,)
    found = evaluator.observation_size, evaluator.action_shape
    if found != wanted:
        evaluator.close()
        expected, got = (f"{size} observation entries and actions of shape {shape}" for size, shape in (wanted, found))
        remedy = "Name the environment of the data: env.name=..., or from_arrays(env_id=...)."
        raise problem(f"environment {env}", f"the data's {expected}", got, remedy)
    own, theirs = torch.stack([dataset.action_low, dataset.action_high]), torch.from_numpy(evaluator.action_bounds)
    if theirs.isfinite().all() and not torch.equal(own, theirs):
        bounds = f"Actions of the data lie in {own.tolist()}, those of {env} in {theirs.tolist()}."
        remedy = "The policy keeps to the data's; if they are wrong: from_arrays(action_low=..., action_high=...)."
        warnings.warn(f"{bounds} {remedy}", stacklevel=3)
    return evaluator
