"""Feed-forward counterparts of the diffusion losses: TorchRL's TD3+BC, IQL and cloning, and CRR."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tensordict import TensorDict, TensorDictParams
from tensordict.nn import TensorDictModule
from torchrl.objectives import BCLoss, IQLLoss, LossModule, TD3BCLoss

from torchrl_edp.objectives import CRRLoss
from torchrl_edp.training.build import build_feed_forward, build_qvalue, build_value
from torchrl_edp.training.settings import FeedForwardSettings

ACTORS = {"td3_bc": "tanh", "iql": "tanh_gaussian", "crr": "tanh_gaussian", "bc": "tanh_gaussian"}


class AveragedBCLoss(BCLoss):
    """TorchRL's ``BCLoss``, with averaged parameters of the policy in ``target_actor_network_params``.

    The negative log-likelihood of the data's actions under a policy that gives a distribution.

    Args:
        actor_network: the policy.
        kwargs: arguments of ``BCLoss``.

    Examples:
        >>> from torchrl_edp.modules import tanh_gaussian_actor
        >>> loss = AveragedBCLoss(tanh_gaussian_actor(11, 3))
        >>> any(name.startswith("target_actor_network_params") for name, _ in loss.named_buffers())
        True
    """

    target_actor_network_params: TensorDictParams

    def __init__(self, actor_network: TensorDictModule, **kwargs: Any) -> None:
        super().__init__(actor_network, **kwargs)
        self.convert_to_functional(actor_network, "actor_network", create_target_params=True)


def build_feed_forward_loss(cfg: FeedForwardSettings, observation_size: int, action_size: int) -> LossModule:
    """The loss of ``cfg.algorithm`` with its networks.

    Every one of them keeps an average of its policy. Policy and critics have the trunk ``cfg.network``; TD3+BC's policy
    is the tanh of it, the others' a tanh-Gaussian.

    Args:
        cfg: all settings; those of the loss are in ``cfg.loss``.
        observation_size: O.
        action_size: A.
    """
    sizes = observation_size, action_size
    actor = build_feed_forward(*sizes, cfg.network, ACTORS[cfg.algorithm])
    if cfg.algorithm == "bc":
        return AveragedBCLoss(actor)
    arguments = asdict(cfg.loss)
    gamma = arguments.pop("gamma")
    qvalues = [build_qvalue(*sizes, cfg.network) for _ in range(cfg.loss.num_qvalue_nets)]
    loss: LossModule
    if cfg.algorithm == "td3_bc":
        loss = TD3BCLoss(actor, qvalues, bounds=(-1.0, 1.0), **arguments)
    elif cfg.algorithm == "crr":
        loss = CRRLoss(actor, qvalues, **arguments)
    else:
        loss = IQLLoss(actor, qvalues, build_value(observation_size, cfg.network), **arguments)
        # Once more, for an average: TorchRL's own has none.
        loss.convert_to_functional(actor, "actor_network", create_target_params=True)
    loss.make_value_estimator(gamma=gamma)
    if cfg.algorithm == "iql":  # it passes on nothing but "next", where multi_step leaves the number too
        loss.value_estimator.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    return loss


def acting_actor(
    cfg: FeedForwardSettings, loss: LossModule, observation_size: int, action_size: int
) -> TensorDictModule:
    """The policy of ``loss`` on its own; it shares its parameters, or those of its average."""
    actor = build_feed_forward(observation_size, action_size, cfg.network, ACTORS[cfg.algorithm])
    params = loss.target_actor_network_params if cfg.policy.averaged_actor else loss.actor_network_params
    for key, parameter in TensorDict.from_module(actor).items(True, True):
        parameter.data = params.get(key).data  # the same memory: updates change it in place
    return actor.requires_grad_(False)
