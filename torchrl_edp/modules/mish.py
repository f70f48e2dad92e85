"""Mish, in the form that is fastest where it is called."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mish(nn.Module):
    """x tanh(softplus(x)), in a form with one exponential where it is faster.

    With n = e (e + 2) and e = exp(x), Mish is x n / (n + 2): one exponential and one division instead of a chain of
    transcendental functions. Compiled it is several times faster (error below 3e-7 of max(1, |Mish|) in float32), and
    four times on a CPU without gradients, there by the sigmoid. Eager training keeps PyTorch's fused operator, which
    records fewer autograd nodes (but see :func:`fused_networks`); so do other devices, where each operation is a
    launch, and half precision, where n overflows.

    Examples:
        >>> torch.allclose(Mish()(torch.tensor([1.0])), nn.functional.mish(torch.tensor([1.0])))
        True

    Source: https://arxiv.org/abs/1908.08681.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply Mish to every element."""
        if x.dtype.itemsize >= 4 and torch.compiler.is_compiling():
            return fast_mish(x)
        if x.dtype.itemsize < 4 or torch.is_grad_enabled() or x.device.type != "cpu":
            return F.mish(x)
        # n / (n + 2) is h / (1 - h) with h = s - s^2 / 2, s = sigmoid(x): the fewest operations, mostly in place.
        s = x.sigmoid()
        h = torch.addcmul(s, s, s, value=-0.5)
        return h.div_(1 - h).mul_(x)


def fast_mish(x: Tensor) -> Tensor:
    """Mish with one exponential, for float32 and better.

    Examples:
        >>> fast_mish(torch.zeros(2))
        tensor([0., 0.])
    """
    e = x.clamp(max=20.0).exp()  # above, Mish is x
    n = e * (e + 2)
    return x * (n * (n + 2).reciprocal())  # a quotient would divide twice more in its gradient
