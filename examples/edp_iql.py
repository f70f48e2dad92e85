"""EDP-IQL: train a diffusion policy on offline data.

    python examples/edp_iql.py
    python examples/edp_iql.py dataset=local/halfcheetah/medium-v0 seed=1
    python examples/edp_iql.py dataset=mujoco/hopper/medium-v0 optim.gradient_steps=50000

The default trains on the local counterpart of Hopper medium-expert (made on the spot, no network needed). The run's
folder, printed at the end, holds config, metrics, curves, policy and summary.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from torchrl_edp import EDPIQLLoss
from torchrl_edp.configs import EDPIQLConfig, check_overrides
from torchrl_edp.data import load_dataset
from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.training import (
    EDPTargetUpdate,
    EnvironmentPolicy,
    RunFolder,
    TrainState,
    build_actor,
    build_qvalue,
    build_selector,
    build_value,
    choose_compile,
    choose_device,
    prepare_data,
    save_policy,
    train,
)

ConfigStore.instance().store(name="edp_iql", node=EDPIQLConfig)
RUN_DIR = "hydra.run.dir=runs/edp_iql/${dataset}/seed${seed}_${now:%Y-%m-%d_%H-%M-%S}"

# What tensordict says while it is being compiled concerns nobody who runs this.
warnings.filterwarnings("ignore", message="Using lock_|torch._dynamo.config.inline_inbuilt_nn_modules")


@hydra.main(version_base="1.3", config_name="edp_iql")
def main(config: EDPIQLConfig) -> None:
    """Data, networks, loss, training, results: in this order."""
    cfg: EDPIQLConfig = OmegaConf.to_object(config)
    folder = RunFolder(HydraConfig.get().runtime.output_dir, backend=cfg.logger.backend, name="edp_iql")
    OmegaConf.save(config, folder.path / "config.yaml")
    torch.manual_seed(cfg.seed)
    device = choose_device(cfg.optim.device)
    compile = choose_compile(cfg.compile.compile, cfg.optim.gradient_steps)

    # Data: validated transitions, prepared for the policy, in a replay buffer on the training device.
    dataset = load_dataset(cfg.dataset, **({} if cfg.data.num_steps is None else {"num_steps": cfg.data.num_steps}))
    data = prepare_data(
        dataset,
        reward_rule=cfg.data.reward_rule,
        normalize_observations=cfg.data.normalize_observations,
        action_limit=cfg.data.action_limit,
        batch_size=cfg.replay_buffer.batch_size,
        device=device,
        seed=cfg.seed,
    )

    # Networks and loss.
    sizes = dataset.observation_size, dataset.action_size
    actor = build_actor(*sizes, cfg.network, cfg.diffusion)
    qvalues = [build_qvalue(*sizes, cfg.network) for _ in range(cfg.loss.num_qvalue_nets)]
    arguments = dataclasses.asdict(cfg.loss)
    gamma = arguments.pop("gamma")
    loss = EDPIQLLoss(actor, qvalues, build_value(sizes[0], cfg.network), **arguments).to(device)
    loss.make_value_estimator(gamma=gamma)
    targets = EDPTargetUpdate(
        loss,
        tau=cfg.optim.tau,
        actor_tau=cfg.optim.actor_tau,
        actor_every=cfg.optim.actor_every,
        actor_start=cfg.optim.actor_start,
    )
    state = TrainState(
        loss,
        data.buffer,
        targets,
        lr=cfg.optim.lr,
        critic_lr=cfg.optim.critic_lr,
        decay=cfg.optim.decay,
        gradient_steps=cfg.optim.gradient_steps,
        clip_grad=cfg.optim.clip_grad,
        update_order=cfg.optim.update_order,
        compile=compile,
    )

    # The policy that acts: averaged parameters, candidates chosen by the averaged critics.
    selector = build_selector(
        actor,
        loss.qvalue_network,
        cfg.policy,
        actor_params=loss.target_actor_network_params,
        qvalue_params=loss.target_qvalue_network_params,
    )
    policy = EnvironmentPolicy(selector, data.observation_normalizer, data.action_scaler).to(device)
    acting = torch.compile(policy) if compile else policy
    evaluator = PolicyEvaluator(
        cfg.env.name or dataset.env_id,
        num_episodes=cfg.logger.eval_envs,
        max_steps=cfg.env.max_episode_steps or dataset.max_episode_steps,
        reference=dataset.reference,
        observation_keys=dataset.observation_keys,
        env_kwargs=dataset.env_kwargs,
    )

    def save(name: str) -> None:
        settings = {"network": cfg.network, "diffusion": cfg.diffusion, "selection": cfg.policy}
        info = {"dataset": cfg.dataset, "env": str(dataset.env_id), "update": state.updates}
        save_policy(folder.path / name, policy, info=info, **settings)

    scores = train(
        state,
        lambda: evaluator(acting, seed=1_000_000 * cfg.seed + state.updates),  # new episodes every time
        folder,
        gradient_steps=cfg.optim.gradient_steps,
        eval_iter=cfg.logger.eval_iter,
        log_iter=cfg.logger.log_iter,
        progress=cfg.logger.progress,
        on_best=lambda: save("policy_best"),
    )
    save("policy")
    evaluator.close()
    summary = folder.summarize(
        {"dataset": cfg.dataset, "seed": cfg.seed, **dataclasses.asdict(scores), "gradient_steps": state.updates}
    )
    print(f"RAT {summary['rat']:.1f}, OMS {summary['oms']:.1f} in {summary['seconds']:.0f} s: {Path(folder.path)}")


if __name__ == "__main__":
    check_overrides(EDPIQLConfig)
    sys.argv.insert(1, RUN_DIR)
    main()
