"""Small saved policies."""

import torch
from points import SavedPolicy
from tensordict import TensorDict

from torchrl_edp.data import ActionScaler, ObservationNormalizer
from torchrl_edp.training import (
    DiffusionSettings,
    EnvironmentPolicy,
    NetworkSettings,
    SelectionSettings,
    build_actor,
    build_qvalue,
    build_selector,
    save_policy,
)

AROUND = (ObservationNormalizer.identity(11), ActionScaler([-1.0] * 3, [1.0] * 3))


def make_policy(path, dataset="local/hopper/medium-n2000-s0-v0", seed=0):
    """A small untrained policy that acts by one action at a quarter of the noise."""
    torch.manual_seed(seed)
    settings = {
        "network": NetworkSettings(hidden_sizes=[16]),
        "diffusion": DiffusionSettings(num_steps=50, num_calls=5, solver="dpm_solver_pp", initial_noise_scale=0.25),
        "selection": SelectionSettings(num_action_samples=1),
    }
    actor = build_actor(11, 3, settings["network"], settings["diffusion"])
    selector = build_selector(actor, build_qvalue(11, 3, settings["network"]), settings["selection"])
    path.mkdir(parents=True, exist_ok=True)
    save_policy(path / "policy", EnvironmentPolicy(selector, *AROUND), **settings, info={"dataset": dataset})
    return SavedPolicy(path)


def act(policy, seed=0, rows=4, observations=None):
    torch.manual_seed(seed)
    if observations is None:
        observations = torch.linspace(-1, 1, 11).expand(rows, 11)
    return policy(TensorDict({"observation": observations}, observations.shape[:1]))["action"]
