"""Adam with clipping for one network, as a function of tensors: it runs eagerly and inside a compiled update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class NetworkOptimizer:
    """Clips the gradients of one network by their common norm, then takes a step of ``torch.optim``'s Adam.

    All its state is in tensors that are changed in place, the learning rate too, so that a compiled update needs to be
    compiled once.

    Args:
        parameters: of the network.
        lr: learning rate; ``optimizer.lr.fill_(...)`` changes it.
        clip_grad: largest norm of the network's gradient; None for no clipping.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = NetworkOptimizer(list(layer.parameters()), lr=0.1, clip_grad=5.0)
        >>> gradients = torch.autograd.grad(layer(torch.ones(4, 2)).sum(), optimizer.parameters)
        >>> optimizer.step(gradients).shape
        torch.Size([])
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, lr: float, clip_grad: float | None = None) -> None:
        self.parameters = list(parameters)
        self.clip_grad = clip_grad
        first = self.parameters[0]
        self.lr = torch.tensor(lr, dtype=first.dtype, device=first.device)
        self.exp_avgs = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), dtype=first.dtype, device=first.device) for _ in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Take a step along ``gradients``, leaving parameters without one as they are; returns the norm unclipped."""
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        present = [gradient for gradient in gradients if gradient is not None]
        norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in present]).square().sum().sqrt()
        if self.clip_grad is not None:
            scale = (self.clip_grad / (norm + 1e-6)).clamp_max(1.0)
            present = [gradient * scale for gradient in present]
        in_graph = torch.compiler.is_compiling()
        if not in_graph:  # the fused kernel reads memory in order, whatever the strides say
            present = [gradient.contiguous() for gradient in present]
        adam(
            [self.parameters[i] for i in used],
            present,
            [self.exp_avgs[i] for i in used],
            [self.exp_avg_sqs[i] for i in used],
            [],
            [self.steps[i] for i in used],
            # The fused kernel is the fastest eagerly; the compiler fuses the other form with what is around it.
            fused=not in_graph,
            foreach=in_graph,
            capturable=in_graph,
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )
        return norm
