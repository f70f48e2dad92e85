"""EDP-TD3: train a diffusion policy on offline data, led by the critics' gradient (TD3+BC with a diffusion policy).

    python examples/edp_td3.py
    python examples/edp_td3.py dataset=local/halfcheetah/medium-expert-v0 seed=1
    python examples/edp_td3.py preset=reference dataset=mujoco/hopper/medium-v0
    python examples/edp_td3.py loss.guidance_start=noise   # no action approximation

The run's folder, printed at the end, holds config, metrics, curves, policy and summary.
"""

from __future__ import annotations

from dataclasses import asdict

from omegaconf import DictConfig

from torchrl_edp import EDPTD3Loss
from torchrl_edp.configs import launch, start
from torchrl_edp.objectives import MultiSeedLoss
from torchrl_edp.training import build_networks, load_experiment_data, run_experiment


def main(config: DictConfig) -> None:
    """Data, networks, loss, training: in this order."""
    cfg, folder = start(config)
    dataset = load_experiment_data(cfg)

    def make_loss() -> EDPTD3Loss:
        actor, qvalues = build_networks(cfg, dataset)
        arguments = asdict(cfg.loss)
        gamma = arguments.pop("gamma")
        return EDPTD3Loss(actor, qvalues, **arguments).make_value_estimator(gamma=gamma)

    loss = make_loss() if cfg.num_seeds == 1 else MultiSeedLoss(make_loss, cfg.seeds)
    run_experiment(cfg, dataset, loss, folder)


if __name__ == "__main__":
    launch("edp_td3", main)
