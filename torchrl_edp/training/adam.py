"""Adam with clipping for one network, as a function of tensors: it runs eagerly and inside a compiled update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class NetworkOptimizer:
    """Clips the gradients of one network by their common norm, then takes a step of ``torch.optim``'s Adam.

    All its state is in tensors that are changed in place, the learning rate too, so that a compiled update needs to be
    compiled once, and the whole state can be saved.

    Args:
        parameters: of the network.
        lr: learning rate; ``optimizer.lr.fill_(...)`` changes it.
        clip_grad: largest norm of the network's gradient; None for no clipping.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = NetworkOptimizer(list(layer.parameters()), lr=0.1, clip_grad=5.0)
        >>> gradients = torch.autograd.grad(layer(torch.ones(4, 2)).sum(), optimizer.parameters)
        >>> norm = optimizer.norm(gradients)
        >>> optimizer.step(gradients, norm)
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, lr: float, clip_grad: float | None = None) -> None:
        self.parameters = list(parameters)
        self.clip_grad = clip_grad
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
        """The common norm of ``gradients``; not finite where any of their entries is not."""
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients if gradient is not None]
        return torch.stack(norms).square().sum().sqrt()

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
        if self.clip_grad is not None:
            scale = (self.clip_grad / (norm + 1e-6)).clamp_max(1.0)
            present = [gradient * scale for gradient in present]
        groups = (self.parameters, self.exp_avgs, self.exp_avg_sqs, self.steps)
        parameters, exp_avgs, exp_avg_sqs, steps = ([group[i] for i in used] for group in groups)
        options: dict[str, Any] = {"lr": self.lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
        options |= {"amsgrad": False, "maximize": False}
        if not torch.compiler.is_compiling():
            # The fused kernel is the fastest eagerly. It reads memory in order, whatever the strides say.
            present = [gradient.contiguous() for gradient in present]
            found_inf = None if valid is None else valid.logical_not().float()
            adam(parameters, present, exp_avgs, exp_avg_sqs, [], steps, fused=True, found_inf=found_inf, **options)
            return
        # The compiler fuses this form with what is around it, the copies too.
        state = [*parameters, *exp_avgs, *exp_avg_sqs, *steps]
        before = [tensor.clone() for tensor in state]
        adam(parameters, present, exp_avgs, exp_avg_sqs, [], steps, foreach=True, capturable=True, **options)
        if valid is not None:
            for tensor, old in zip(state, before, strict=True):
                tensor.copy_(torch.where(valid, tensor, old))
