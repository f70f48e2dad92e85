"""EDP-IQL: train a diffusion policy on offline data, weighted by implicit Q-learning's advantages.

    python examples/edp_iql.py
    python examples/edp_iql.py dataset=local/halfcheetah/medium-expert-v0 seed=1
    python examples/edp_iql.py dataset=mujoco/hopper/medium-v0 optim.gradient_steps=50000
    python examples/edp_iql.py preset=paper
    python examples/edp_iql.py num_seeds=5                                           # several seeds in one computation
    python examples/edp_iql.py loss.guidance_weight=0                                # plain diffusion cloning
    python examples/edp_iql.py loss.guidance_weight=0 policy.num_action_samples=32   # IDQL: cloning, critics choose

The default trains on the local counterpart of Hopper medium-expert (made on the spot, no network needed). The run's
folder, printed at the end, holds config, metrics, curves, policy and summary.
"""

from __future__ import annotations

from dataclasses import asdict

from omegaconf import DictConfig

from torchrl_edp import EDPIQLLoss
from torchrl_edp.configs import launch, start
from torchrl_edp.objectives import MultiSeedLoss
from torchrl_edp.training import build_networks, build_value, load_experiment_data, run_experiment


def main(config: DictConfig) -> None:
    """Data, networks, loss, training: in this order."""
    cfg, folder = start(config)
    dataset = load_experiment_data(cfg)

    def make_loss() -> EDPIQLLoss:
        actor, qvalues = build_networks(cfg, dataset)
        arguments = asdict(cfg.loss)
        gamma = arguments.pop("gamma")
        loss = EDPIQLLoss(actor, qvalues, build_value(dataset.observation_size, cfg.network), **arguments)
        return loss.make_value_estimator(gamma=gamma)

    loss = make_loss() if cfg.num_seeds == 1 else MultiSeedLoss(make_loss, cfg.seeds)
    run_experiment(cfg, dataset, loss, folder)


if __name__ == "__main__":
    launch("edp_iql", main)
