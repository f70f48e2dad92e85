"""What to say when numbers stop being finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from torchrl_edp.training.adam import NetworkOptimizer


def not_finite(
    update: int,
    metrics: Mapping[str, Tensor],
    optimizers: Mapping[str, NetworkOptimizer],
    buffer: TensorDictReplayBuffer,
    *,
    sequential: bool = False,
) -> FloatingPointError:
    """The error of an update that was left out: which one, which terms, and the likely cause.

    Args:
        update: its number, from 1.
        metrics: its losses and gradient norms, of several seeds [S].
        optimizers: of the networks, by name; their parameters are searched for the cause.
        buffer: searched too.
        sequential: whether one term stepped after the other.
    """
    terms = ", ".join(f"{name} = {value.tolist()}" for name, value in metrics.items() if not value.isfinite().all())
    return FloatingPointError(
        f"Update {update}: expected finite losses and gradients, got {terms or 'others'}. The step was not taken: "
        f"{_kept(metrics, sequential)} {_cause(optimizers, buffer)}"
    )


def _kept(metrics: Mapping[str, Tensor], sequential: bool) -> str:
    """What is as it was; earlier terms of a sequential update have stepped by then."""
    stepped = []
    for name, value in metrics.items():
        if name.startswith(("loss_", "grad_norm_")) and not value.isfinite().all():
            break
        if name.startswith("grad_norm_"):
            stepped.append(name.removeprefix("grad_norm_"))
    if not sequential or not stepped:
        return "parameters, moments and targets are as they were."
    return f"only the earlier step of {' and '.join(stepped)} was; all else is as it was."


def _cause(optimizers: Mapping[str, NetworkOptimizer], buffer: TensorDictReplayBuffer) -> str:
    for name, optimizer in optimizers.items():
        if not all(parameter.isfinite().all() for parameter in optimizer.parameters):
            return f"Likely cause: parameters of the {name} network are not finite; resume from a checkpoint."
    data = buffer[:]
    assert isinstance(data, TensorDictBase)
    for key, value in data.items(True, True):
        if value.is_floating_point() and not (finite := value.isfinite().flatten(1).all(1)).all():
            field = key if isinstance(key, str) else ".".join(key)
            row = int(torch.nonzero(~finite)[0])
            return f"Likely cause: the data's {field} is not finite at row {row}; repair the data set."
    return (
        "Likely cause: training diverges; lower optim.lr and optim.critic_lr, clip gradients (optim.clip_grad), "
        "or scale the reward (data.reward_rule)."
    )
