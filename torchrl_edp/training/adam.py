"""Adam with clipping for one network, as a function of tensors: it runs eagerly and inside a compiled update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # torch.optim's

_State = tuple[list[Tensor], ...]  # parameters, exp_avgs, exp_avg_sqs, steps


class NetworkOptimizer:
    """Clips the gradients of one network by their common norm, then takes a step of ``torch.optim``'s Adam.

    All its state is in tensors that are changed in place, the learning rate too, so that a compiled update needs to be
    compiled once, and the whole state can be saved.

    Args:
        parameters: of the network.
        lr: learning rate; ``optimizer.lr.fill_(...)`` changes it.
        clip_grad: largest norm of the network's gradient; None for no clipping.
        seed_dims: 1 if the parameters are those of several seeds, stacked: each seed's gradient is clipped by its norm.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = NetworkOptimizer(list(layer.parameters()), lr=0.1, clip_grad=5.0)
        >>> gradients = torch.autograd.grad(layer(torch.ones(4, 2)).sum(), optimizer.parameters)
        >>> norm = optimizer.norm(gradients)
        >>> optimizer.step(gradients, norm)
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, lr: float, clip_grad: float | None = None, seed_dims: int = 0
    ) -> None:
        self.parameters = list(parameters)
        self.clip_grad = clip_grad
        self.seed_dims = seed_dims
        first = self.parameters[0]
        self.lr = torch.tensor(lr, dtype=first.dtype, device=first.device)
        self.exp_avgs = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), dtype=first.dtype, device=first.device) for _ in self.parameters]

    def state(self) -> list[Tensor]:
        """Moments and numbers of steps: what a resumed run needs beside the parameters and the settings."""
        return [*self.exp_avgs, *self.exp_avg_sqs, *self.steps]

    @torch.no_grad()
    def norm(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The common norm of ``gradients``, or each seed's [S]; not finite where any of their entries is not."""
        present = [gradient for gradient in gradients if gradient is not None]
        if self.seed_dims:
            norms = [torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1) for gradient in present]
        else:
            norms = [torch.linalg.vector_norm(gradient) for gradient in present]
        return torch.linalg.vector_norm(torch.stack(norms), dim=0)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], norm: Tensor, valid: Tensor | None = None) -> None:
        """Take a step along ``gradients``, leaving parameters without one as they are.

        Args:
            gradients: one for each of ``parameters``, or None.
            norm: their :meth:`norm`.
            valid: a boolean tensor ``[]``; where it is False neither parameters nor moments change.
        """
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        present = [gradient for gradient in gradients if gradient is not None]
        groups = (self.parameters, self.exp_avgs, self.exp_avg_sqs, self.steps)
        state = tuple([group[i] for i in used] for group in groups)
        if torch.compiler.is_compiling():
            self._traced_step(present, norm, state, valid)
        else:
            self._fused_step(present, norm, state, valid)

    def _scale(self, norm: Tensor) -> Tensor:
        """What clipping multiplies gradients of this norm by."""
        return torch.ones_like(norm) if self.clip_grad is None else (self.clip_grad / (norm + 1e-6)).clamp_max(1.0)

    def _fused_step(self, gradients: list[Tensor], norm: Tensor, state: _State, valid: Tensor | None) -> None:
        """The fastest step eagerly. The kernel reads memory in order, whatever the strides say."""
        parameters, means, squares, steps = state
        is_number = norm.is_cpu and not norm.ndim  # which can be read without a sync
        if self.clip_grad is not None and not (is_number and float(norm) + 1e-6 <= self.clip_grad):
            scale = self._scale(norm)
            gradients = [gradient * _as(scale, gradient) for gradient in gradients]
        gradients = [gradient.contiguous() for gradient in gradients]
        found_inf = None if valid is None else valid.logical_not().float()
        options: dict[str, Any] = {"lr": self.lr, "beta1": _BETA1, "beta2": _BETA2, "eps": _EPS, "found_inf": found_inf}
        options |= {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
        taken = torch.ones_like(steps[0]) if valid is None else valid.to(steps[0].dtype)
        torch._foreach_add_(steps, [taken] * len(steps))  # of a number it would make a tensor each time
        torch._fused_adam_(parameters, gradients, means, squares, [], steps, **options)

    def _traced_step(self, gradients: list[Tensor], norm: Tensor, state: _State, valid: Tensor | None) -> None:
        """The same for the compiler, which fuses it with what is around it.

        It would work out a scalar anew for every few elements, powers too; what is stacked it keeps. The parameters of
        a network step together: one number of steps stands for all.
        """
        time = state[3][0] + 1
        rate, root = self.lr / (1 - _BETA1**time), (1 - _BETA2**time).sqrt()
        scale, rate, root = torch.stack(torch.broadcast_tensors(self._scale(norm), rate, root)).unbind()
        gradients = [gradient * _as(scale, gradient) for gradient in gradients]
        means = [mean.lerp(gradient, 1 - _BETA1) for mean, gradient in zip(state[1], gradients, strict=True)]
        squares = [
            torch.addcmul(square * _BETA2, gradient, gradient, value=1 - _BETA2)
            for square, gradient in zip(state[2], gradients, strict=True)
        ]
        parameters = [
            parameter - _as(rate, mean) * mean / (square.sqrt() / _as(root, mean) + _EPS)
            for parameter, mean, square in zip(state[0], means, squares, strict=True)
        ]
        steps = [step + 1 for step in state[3]]
        for before, after in zip(state, (parameters, means, squares, steps), strict=True):
            if valid is not None:
                after = [torch.where(valid, new, old) for new, old in zip(after, before, strict=True)]
            torch._foreach_copy_(before, after)  # in a graph of torch 2.13 a float64 scalar's own copy_ is lost


def _as(value: Tensor, other: Tensor) -> Tensor:
    """A scalar, or one value a seed, in a shape that multiplies ``other``."""
    return value.reshape(value.shape + (1,) * (other.ndim - 1)) if value.ndim else value
