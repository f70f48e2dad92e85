"""Averaged parameters: critics' targets and the acting policy, each at its own rate."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_edp.diffusion import check_interval


class EDPTargetUpdate(SoftUpdate):
    """TorchRL's SoftUpdate with a schedule of its own for the policy.

    The reference code averages the critics at every update, and the policy every 5 updates from update 1000 on.

    Args:
        loss_module: a loss with target parameters.
        tau: Polyak rate of the critics (reference code: 0.005).
        actor_tau: Polyak rate of the policy; ``tau`` if None.
        actor_every: updates between two steps of the policy's average (reference code: 5).
        actor_start: updates before the first of them (reference code: 1000); until then the average is a copy.

    Raises:
        ValueError: if a rate lies outside of [0, 1], or ``actor_every`` below 1.

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
        for name, value in (("tau", tau), ("actor_tau", actor_tau)):
            if value is not None:
                check_interval(name, value, "[0, 1]")
        check_interval("actor_every", actor_every, "[1, inf)")
        super().__init__(loss_module, tau=tau)
        self.actor_tau = tau if actor_tau is None else actor_tau
        self.actor_every = actor_every
        self.actor_start = actor_start
        self.counter = 0
        pairs: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
        for key, source in self._sources.items(True, True):
            target = self._targets.get(("target_" + key[0], *key[1:]))
            pairs[key[0] == "actor_network_params"].append((target, source))
        self._actor_pairs, self._critic_pairs = pairs[True], pairs[False]

    def step(self) -> None:
        """Move the averages one update further."""
        self.move(self.next_actor_rate())

    def next_actor_rate(self) -> float:
        """Count an update; the Polyak rate of the policy in it: 1 copies, 0 leaves the average as it is."""
        self.counter += 1
        if self.counter <= self.actor_start:
            return 1.0
        return self.actor_tau if self.counter % self.actor_every == 0 else 0.0

    @torch.no_grad()
    def move(self, actor_rate: float | Tensor, valid: Tensor | None = None) -> None:
        """Move the critics' averages by ``tau`` and the policy's by ``actor_rate``; nothing where ``valid`` is False.

        Args:
            actor_rate: from :meth:`next_actor_rate`; a tensor in compiled updates.
            valid: a boolean tensor ``[]``.
        """
        for pairs, rate in ((self._critic_pairs, 1 - self.eps), (self._actor_pairs, actor_rate)):
            for target, source in pairs:
                if valid is None:
                    target.lerp_(source, rate)
                else:
                    target.copy_(torch.where(valid, target.lerp(source, rate), target))
