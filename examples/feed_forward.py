"""Feed-forward policies under the loop, data, networks and evaluation of the diffusion policies.

    python examples/feed_forward.py algorithm=td3_bc                                              # beside edp_td3.py
    python examples/feed_forward.py algorithm=iql dataset=local/halfcheetah/medium-expert-v0 seed=1     # edp_iql.py
    python examples/feed_forward.py algorithm=crr preset=paper dataset=mujoco/hopper/medium-v0          # edp_crr.py
    python examples/feed_forward.py algorithm=bc                              # edp_iql.py loss.guidance_weight=0

TD3+BC and IQL are TorchRL's losses, behaviour cloning is the likelihood of TorchRL's ``BCLoss``, CRR is ours. TD3+BC's
policy is the tanh of a network, the others' a tanh-Gaussian; all act deterministically. Hyper-parameters are those of
the algorithms' papers, whatever the preset; a preset sets data, networks, evaluation and length as for the diffusion
policy. The run's folder, printed at the end, holds config, metrics, curves, policy and summary.
"""

from __future__ import annotations

import sys
from typing import cast

from omegaconf import DictConfig

from torchrl_edp.configs import chosen_algorithm, launch, start
from torchrl_edp.training import FeedForwardSettings, build_feed_forward_loss, load_experiment_data, run_experiment


def main(config: DictConfig) -> None:
    """Data, loss with its networks, training: in this order."""
    cfg, folder = start(config)
    dataset = load_experiment_data(cfg)
    loss = build_feed_forward_loss(cast(FeedForwardSettings, cfg), dataset.observation_size, dataset.action_size)
    run_experiment(cfg, dataset, loss, folder)


if __name__ == "__main__":
    launch(chosen_algorithm(sys.argv[1:]), main)
