"""The state of a training run and its one operation, the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from torchrl_edp.objectives.common import EDPLoss
from torchrl_edp.training.targets import EDPTargetUpdate

UpdateOrder = Literal["joint", "sequential"]
Decay = Literal["none", "cosine"]


class TrainState:
    """Everything an update depends on: parameters, targets, optimizer, data, counters.

    Args:
        loss: an EDP loss.
        buffer: a replay buffer with the data.
        targets: the target updater of ``loss``.
        lr: Adam's learning rate (paper: 3e-4).
        critic_lr: of the critics; ``lr`` if None.
        decay: ``"cosine"`` lets the policy's learning rate fall to 0 at ``gradient_steps``.
        gradient_steps: length of the decay.
        clip_grad: largest gradient norm of each network on its own (paper: 5); None for no clipping.
        update_order: ``"joint"``: all losses from the same parameters; ``"sequential"``: one after the other, in the
            order of ``loss.sequential_terms`` (Alg. 1; IQL: V, then the policy weighted by the new V, then Q).
        compile: compile the losses and their gradients.

    Examples:
        >>> import torch
        >>> from torchrl_edp import EDPIQLLoss
        >>> from torchrl_edp.data import from_arrays, make_replay_buffer
        >>> from torchrl_edp.training import DiffusionSettings, NetworkSettings, build_actor, build_qvalue, build_value
        >>> data = from_arrays(torch.rand(9, 3), torch.rand(9, 2), torch.rand(9), [0] * 8 + [1], [0] * 9)
        >>> network = NetworkSettings(hidden_sizes=[8])
        >>> actor = build_actor(3, 2, network, DiffusionSettings())
        >>> loss = EDPIQLLoss(actor, build_qvalue(3, 2, network), build_value(3, network))
        >>> loss = loss.make_value_estimator(gamma=0.99)
        >>> buffer = make_replay_buffer(data.transitions, batch_size=4)
        >>> state = TrainState(loss, buffer, EDPTargetUpdate(loss))
        >>> losses = state.update()
        >>> losses["loss_actor"].shape, state.updates
        (torch.Size([]), 1)
    """

    def __init__(
        self,
        loss: EDPLoss,
        buffer: TensorDictReplayBuffer,
        targets: EDPTargetUpdate,
        *,
        lr: float = 3e-4,
        critic_lr: float | None = None,
        decay: Decay = "none",
        gradient_steps: int = 100_000,
        clip_grad: float | None = 5.0,
        update_order: UpdateOrder = "joint",
        compile: bool = False,
    ) -> None:
        if update_order not in ("joint", "sequential"):
            raise ValueError(f"update_order must be 'joint' or 'sequential', got {update_order!r}.")
        if decay not in ("none", "cosine"):
            raise ValueError(f"decay must be 'none' or 'cosine', got {decay!r}.")
        self.loss = loss
        self.buffer = buffer
        self.targets = targets
        self.decay = decay
        self.gradient_steps = gradient_steps
        self.clip_grad = clip_grad
        self.compiled = compile
        self.updates = 0
        self.networks = _parameters_by_network(loss)
        rates = {name: lr if name == "actor" or critic_lr is None else critic_lr for name in self.networks}
        groups = [{"params": group, "lr": rates[name], "name": name} for name, group in self.networks.items()]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self._initial_lrs = [group["lr"] for group in self.optimizer.param_groups]
        names = ("loss",) if update_order == "joint" else loss.sequential_terms
        self._terms = [_term(loss, name) for name in names]
        if compile:
            self._compile()

    def _compile(self) -> None:
        """Compile the terms; what they set up at their first call must be there before, or they compile twice."""
        with torch.random.fork_rng(), torch.no_grad():
            for term in self._terms:
                term(self.buffer[: self.buffer.batch_size])
        # Nothing that a guard would look at changes during training, and checking guards costs a tenth of an update.
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        self._terms = [torch.compile(term, fullgraph=True, options=options) for term in self._terms]

    def update(self) -> dict[str, Tensor]:
        """One gradient step of every network and of the targets; returns detached losses and metrics."""
        batch = self.buffer.sample()
        self._set_learning_rate()
        metrics: dict[str, Tensor] = {}
        for term in self._terms:
            total, values = term(batch)
            total.backward()
            metrics |= values
            metrics |= self._step()
        self.targets.step()
        self.updates += 1
        return metrics

    def _step(self) -> dict[str, Tensor]:
        """Clip each network that has gradients, then Adam; networks without gradients stay as they are."""
        norms = {}
        for name, parameters in self.networks.items():
            if parameters[0].grad is not None:
                limit = math.inf if self.clip_grad is None else self.clip_grad
                norms[f"grad_norm_{name}"] = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norms

    def _set_learning_rate(self) -> None:
        if self.decay == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * min(self.updates / self.gradient_steps, 1.0)))
            for group, lr in zip(self.optimizer.param_groups, self._initial_lrs, strict=True):
                if group["name"] == "actor":
                    group["lr"] = lr * share


def _parameters_by_network(loss: EDPLoss) -> dict[str, list[torch.nn.Parameter]]:
    """Trained parameters by network; what belongs to no network (a learned deviation) goes with the actor."""
    groups: dict[str, list[torch.nn.Parameter]] = {"actor": []}
    for name, parameter in loss.named_parameters():
        network = name.split("_network_params")[0] if "_network_params" in name else "actor"
        if parameter.requires_grad:
            groups.setdefault(network, []).append(parameter)
    return groups


def _term(loss: EDPLoss, name: str) -> Callable[[TensorDictBase], tuple[Tensor, dict[str, Tensor]]]:
    """A function of the batch that gives the loss to differentiate and detached values to log."""

    def joint(batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        output = loss(batch)
        total = sum(value for key, value in output.items() if key.startswith("loss_"))
        return total, {key: value.detach() for key, value in output.items()}

    def single(batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, metrics = getattr(loss, name)(batch)
        logged: dict[str, Any] = {key: value.mean() for key, value in metrics.items()}
        return total, logged | {f"loss_{name.removesuffix('_loss')}": total.detach()}

    return joint if name == "loss" else single
