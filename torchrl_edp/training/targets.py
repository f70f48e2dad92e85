"""Averaged parameters: critics' targets and the acting policy, each at its own rate."""

from __future__ import annotations

import torch
from torchrl.objectives import LossModule, SoftUpdate


class EDPTargetUpdate(SoftUpdate):
    """TorchRL's SoftUpdate with a schedule of its own for the policy.

    The reference code averages the critics at every update, and the policy every 5 updates from update 1000 on.

    Args:
        loss_module: a loss with target parameters.
        tau: Polyak rate of the critics (reference code: 0.005).
        actor_tau: Polyak rate of the policy; ``tau`` if None.
        actor_every: updates between two steps of the policy's average (reference code: 5).
        actor_start: updates before the first of them (reference code: 1000); until then the average is a copy.

    Examples:
        >>> from torchrl_edp import EDPIQLLoss
        >>> from torchrl_edp.training import DiffusionSettings, NetworkSettings, build_actor, build_qvalue, build_value
        >>> network = NetworkSettings(hidden_sizes=[8])
        >>> actor = build_actor(3, 2, network, DiffusionSettings())
        >>> loss = EDPIQLLoss(actor, build_qvalue(3, 2, network), build_value(3, network))
        >>> targets = EDPTargetUpdate(loss, tau=0.005, actor_every=5, actor_start=1000)
        >>> targets.step()
    """

    def __init__(
        self,
        loss_module: LossModule,
        *,
        tau: float = 0.005,
        actor_tau: float | None = None,
        actor_every: int = 1,
        actor_start: int = 0,
    ) -> None:
        super().__init__(loss_module, tau=tau)
        self.actor_tau = tau if actor_tau is None else actor_tau
        self.actor_every = actor_every
        self.actor_start = actor_start
        self.counter = 0
        pairs: dict[bool, tuple[list[torch.Tensor], list[torch.Tensor]]] = {True: ([], []), False: ([], [])}
        for key, source in self._sources.items(True, True):
            is_actor = key[0] == "actor_network_params"
            targets, sources = pairs[is_actor]
            targets.append(self._targets.get(("target_" + key[0], *key[1:])).data)
            sources.append(source.data)
        self._actor_pairs, self._critic_pairs = pairs[True], pairs[False]

    def step(self) -> None:
        """Move the averages one update further."""
        self.counter += 1
        torch._foreach_lerp_(*self._critic_pairs, 1 - self.eps)
        if not self._actor_pairs[0]:
            return
        if self.counter <= self.actor_start:
            torch._foreach_copy_(*self._actor_pairs)
        elif self.counter % self.actor_every == 0:
            torch._foreach_lerp_(*self._actor_pairs, self.actor_tau)
