"""Critics whose target is the value of actions sampled from the target policy: what TD3 and CRR share."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from torchrl_edp.diffusion import check_interval
from torchrl_edp.modules.parameters import parameters_in
from torchrl_edp.objectives.common import EDPLoss


class SampledTargetLoss(EDPLoss):
    """Base of losses with the TD target r + gamma min_j Q'_j(s', a'), a' from the target policy by its solver.

    Attributes:
        num_backup_actions: actions drawn at the next state.
        backup_top_k: which of their values is used, per critic: the k-th largest.
    """

    num_backup_actions: int
    backup_top_k: int

    def _set_backup(self, num_backup_actions: int, backup_top_k: int) -> None:
        check_interval("num_backup_actions", num_backup_actions, "[1, inf)")
        if not 1 <= backup_top_k <= num_backup_actions:
            raise ValueError(
                f"backup_top_k must lie in 1..num_backup_actions = {num_backup_actions}, got {backup_top_k}."
            )
        self.num_backup_actions = num_backup_actions
        self.backup_top_k = backup_top_k

    @property
    def _state_keys(self) -> list[NestedKey]:
        action = unravel_key(self.tensor_keys.action)
        return [*self._observation_keys, *[key for key in self.qvalue_network.in_keys if unravel_key(key) != action]]

    def _noise_keys(self) -> list[NestedKey]:
        return [*super()._noise_keys(), unravel_key(("next", self.actor_network.initial_noise_key))]

    def _next_value(self, next_tensordict: TensorDictBase) -> Tensor:
        """The critics' value [*B] of actions that the target policy takes at the next state."""
        action = self._policy_actions(next_tensordict, self.target_actor_network_params, self.num_backup_actions)
        qvalues = self._qvalues_of_several(next_tensordict, self.target_qvalue_network_params, action)
        if self.backup_top_k == 1:  # compiled, a part of the kernel around it
            return self._aggregate(qvalues.amax(1))
        return self._aggregate(qvalues.topk(self.backup_top_k, dim=1).values[:, -1])

    def _policy_actions(self, tensordict: TensorDictBase, params: TensorDictParams, count: int) -> Tensor:
        """``count`` actions [count, *B, A] of the policy with these parameters, by the actor's solver.

        They start from the initial noise in the data, [*B, A] or [*B, count, A], if there is any.
        """
        observation = self._observation(tensordict)
        noise = tensordict.get(self.actor_network.initial_noise_key, None)
        if noise is None:
            shape = (count, *observation.shape[:-1], self._sampler.action_size)
            noise = torch.randn(shape, dtype=observation.dtype, device=observation.device)
        elif noise.ndim == observation.ndim:
            noise = noise.expand(count, *noise.shape)
        elif noise.shape[-2] != count:
            raise ValueError(
                f"Expected initial noise for {count} actions per state, [*B, {count}, A], or for one, [*B, A], got "
                f"{list(noise.shape)}."
            )
        else:
            noise = noise.movedim(-2, 0)
        observation = observation.expand(count, *observation.shape)
        with parameters_in(self.actor_network, params):
            return self._sampler.sample(observation, noise, bounds=self._bounds)
