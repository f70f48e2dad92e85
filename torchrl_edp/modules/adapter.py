"""TorchRL's own DiffusionActor as an EDPActor."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import DiffusionActor

from torchrl_edp.diffusion import NoiseSchedule
from torchrl_edp.modules.actor import EDPActor


class ScoreNetworkAdapter(nn.Module):
    """A network of one input [noisy action, observation, step], called with three.

    Args:
        score_network: maps [*B, A + O + 1] to the predicted noise [*B, A].

    Examples:
        >>> network = ScoreNetworkAdapter(nn.Linear(3 + 11 + 1, 3))
        >>> network(torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, 11)).shape
        torch.Size([4, 3])
    """

    def __init__(self, score_network: nn.Module) -> None:
        super().__init__()
        self.score_network = score_network

    def forward(self, noisy_action: Tensor, diffusion_step: Tensor, observation: Tensor) -> Tensor:
        """The predicted noise [*B, A]."""
        step = diffusion_step.unsqueeze(-1).to(noisy_action.dtype)
        return self.score_network(torch.cat([noisy_action, observation, step], -1))


def as_edp_actor(actor: TensorDictModule) -> EDPActor:
    """An :class:`EDPActor` with the network and the schedule of ``actor``, which it shares: training one trains both.

    The result samples as ``torchrl.modules.DiffusionActor`` does: DDPM with variance b over all its steps, actions not
    clipped. An ``EDPActor`` is returned as it is. The losses call this themselves.

    Args:
        actor: an :class:`EDPActor` or a ``torchrl.modules.DiffusionActor``.

    Raises:
        TypeError: if it is neither.
        ValueError: if a layer of it is lazy and has not been called yet.

    Examples:
        >>> actor = DiffusionActor(action_dim=3, obs_dim=11)
        >>> as_edp_actor(actor).module.solver
        'ddpm'
    """
    if isinstance(actor, EDPActor):
        return actor
    if not isinstance(actor, DiffusionActor):
        raise TypeError(f"Expected an EDPActor or a torchrl.modules.DiffusionActor, got {type(actor).__name__}.")
    if any(nn.parameter.is_lazy(p) for p in actor.parameters()):
        raise ValueError("The DiffusionActor has lazy layers: call it once, or give it obs_dim, before making a loss.")
    return EDPActor(
        ScoreNetworkAdapter(actor.module.score_network),
        action_size=actor.module.action_dim,
        schedule=NoiseSchedule.from_betas(actor.module.betas),
        solver="ddpm",
        num_calls=None,
        solver_kwargs={"variance": "beta"},
        clip_actions=False,
        in_keys=actor.in_keys,
        out_keys=actor.out_keys,
        spec=actor.spec,
        safe=actor.safe,
    )
