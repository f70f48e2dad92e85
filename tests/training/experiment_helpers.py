"""Settings, data and losses of whole runs that take a second."""

from dataclasses import asdict

import torch

from torchrl_edp import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.configs import EXPERIMENTS
from torchrl_edp.data import from_arrays
from torchrl_edp.training import NetworkSettings, build_networks, build_value
from torchrl_edp.training.settings import DiffusionSettings, LoggerSettings, OptimSettings

LOSSES = {"edp_iql": EDPIQLLoss, "edp_td3": EDPTD3Loss, "edp_crr": EDPCRRLoss}
ROWS = 40


def make_data(sizes=(3, 1), bound=2.0, **about):
    """Random transitions, of the pendulum's sizes and bounds, in episodes of ten."""
    ends = torch.arange(ROWS) % 10 == 9
    actions = bound * (torch.rand(ROWS, sizes[1]) * 2 - 1)
    arrays = torch.randn(ROWS, sizes[0]), actions, torch.randn(ROWS), ends, ends & False
    about = {"dataset_id": "tiny", "env_id": "Pendulum-v1", "max_episode_steps": 3, **about}
    return from_arrays(*arrays, action_low=-bound, action_high=bound, **about)


def make_settings(name, **options):
    optim = OptimSettings(gradient_steps=4, actor_start=0, device="cpu", lr=0.01)
    cfg = EXPERIMENTS[name](
        dataset="tiny",
        network=NetworkSettings(hidden_sizes=[8]),
        logger=LoggerSettings(backend="", eval_iter=2, log_iter=2, eval_envs=2, progress=False),
        **{"optim": optim, "diffusion": DiffusionSettings(num_steps=50, num_calls=2), **options},
    )
    cfg.replay_buffer.batch_size = 8
    return cfg


def make_loss(cfg, name, dataset):
    networks = list(build_networks(cfg, dataset))
    if name == "edp_iql":
        networks.append(build_value(dataset.observation_size, cfg.network))
    arguments = asdict(cfg.loss)
    return LOSSES[name](*networks, **{k: v for k, v in arguments.items() if k != "gamma"}).make_value_estimator()
