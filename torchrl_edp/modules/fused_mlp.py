"""MLPs with Mish as one node of autograd, on CPUs: products by PyTorch, what is between them by a C++ kernel."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, is_legacy_batchedtensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.nn.modules.module import _has_any_global_hook
from torchrl.modules import MLP

from torchrl_edp.modules import kernels
from torchrl_edp.modules.mish import Mish

FUSED = (Mish, nn.Mish)  # activations

_entered = threading.local()


def fused_networks() -> contextlib.AbstractContextManager[None]:
    """Inside, the networks of this package are one node of autograd each, where a C++ kernel can help.

    It can in float32 on CPUs, where layers are linear with Mish in between and nothing changes them (hooks, other
    classes); the step embedding is too narrow to gain. Then bias, Mish and its derivative are one pass with one
    exponential, in place; PyTorch's operators take several exponentials and logarithms for Mish, and all of them once
    more for its gradient. Gradients cannot be differentiated again (``create_graph=True`` raises), and where a
    checkpoint computes values again, the gradient must be taken inside too (or see :func:`checkpoint_contexts`). The
    eager update of a :class:`~torchrl_edp.training.TrainState` uses it by itself; compiled, nothing changes.

    The kernel is compiled when it is first needed, which takes seconds, and kept in the compiler's cache. Without a
    compiler that knows vector types (GCC, Clang) there is a warning, and no kernel.

    Examples:
        >>> from torchrl_edp.modules import ValueNetwork
        >>> network = ValueNetwork(11)
        >>> with fused_networks():
        ...     network(torch.zeros(4, 11)).sum().backward()
    """
    return _set(True)


@contextlib.contextmanager
def _set(inside: bool) -> Iterator[None]:
    before = _is_inside()
    _entered.inside = inside
    try:
        yield
    finally:
        _entered.inside = before


def _is_inside() -> bool:
    return getattr(_entered, "inside", False)


def checkpoint_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """The ``context_fn`` of a checkpoint: what is computed again is computed as it was, wherever the gradient is taken.

    Examples:
        >>> from torch.utils.checkpoint import checkpoint
        >>> net, x = nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3)
        >>> checkpoint(net, x, use_reentrant=False, context_fn=checkpoint_contexts).shape
        torch.Size([4, 2])
    """
    return contextlib.nullcontext(), _set(_is_inside())


def run_mlp(net: Any, features: Tensor) -> Tensor:
    """``net(features)``, by one node where :func:`fused_networks` says so.

    Examples:
        >>> run_mlp(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """
    if not _is_inside() or not is_chain(net) or not can_fuse(features, params := own_params(net)):
        return net(features)
    if features.ndim == 2:
        return apply(features, params)
    return apply(features.reshape(-1, features.shape[-1]), params).view(*features.shape[:-1], -1)


def can_fuse(features: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether to call :func:`apply` on these tensors."""
    if not _is_inside() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if torch._C._len_torch_dispatch_stack():
        return False  # something is traced
    if torch._C._are_functorch_transforms_active():
        if any(transform.key() != TransformType.Vmap for transform in retrieve_all_functorch_interpreters()):
            return False  # something is differentiated by torch.func
    for tensor in (features, *params):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.dtype != torch.float32 or not tensor.is_cpu:
            return False
    return features.numel() > 0 and kernels.library() is not None


def own_params(net: Any) -> list[Tensor]:
    """Weight and bias of every layer of a network that is such a chain (:func:`is_chain`), as it has them now.

    Examples:
        >>> [tuple(value.shape) for value in own_params(nn.Sequential(nn.Linear(3, 2)))]
        [(2, 3), (2,)]
    """
    return [tensor for layer in list(net)[::2] for tensor in (layer.weight, layer.bias)]


def is_chain(net: Any, activations: Collection[type[nn.Module]] = FUSED) -> bool:
    """Whether ``net`` is linear layers with a bias and ``activations`` in between, and nothing changes them.

    Examples:
        >>> is_chain(nn.Sequential(nn.Linear(3, 8), nn.Mish(), nn.Linear(8, 1)))
        True
    """
    if type(net) not in (MLP, nn.Sequential):
        return False
    layers = list(net)
    for i, layer in enumerate(layers):
        if not (type(layer) in activations if i % 2 else type(layer) is nn.Linear and layer.bias is not None):
            return False
    return len(layers) % 2 == 1 and not has_hooks(net, *layers)


def has_hooks(*modules: nn.Module) -> bool:
    """Whether calling one of ``modules`` does more, or other things, than its class says.

    Examples:
        >>> has_hooks(nn.Linear(1, 1))
        False
    """
    for module in modules:
        forward = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        if forward or module._backward_hooks or module._backward_pre_hooks:
            return True
    return bool(_has_any_global_hook())


def apply(features: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Linear layers with Mish in between.

    Args:
        features: inputs [B, in], or [E, B, in].
        params: weight [out, in] and bias [out] of every layer, one after the other; or of E networks [E, ...].

    Returns:
        [B, out], or [E, B, out].

    Examples:
        >>> apply(torch.ones(3, 1), [torch.ones(2, 1), torch.zeros(2), torch.ones(1, 2), torch.zeros(1)]).T
        tensor([[1.7302, 1.7302, 1.7302]])
    """
    return _FusedMLP.apply(features, torch.is_grad_enabled(), *params)[0]


class _FusedMLP(torch.autograd.Function):
    """Gives the result and what its gradient needs: results of hidden layers, and slopes of their activations."""

    @classmethod
    def apply(cls, *args: Any) -> tuple[Tensor, ...]:
        # Function's own binds the arguments to their names first, which takes as long as a kernel.
        skipped = cls if torch._C._are_functorch_transforms_active() else torch.autograd.Function
        return super(skipped, cls).apply(*args)  # type: ignore[misc]

    @staticmethod
    def forward(features: Tensor, with_gradient: bool, *params: Tensor) -> tuple[Tensor, ...]:
        hidden: list[Tensor] = []
        kept: list[Tensor] = []  # slopes of the hidden layers' activations
        values = features.mT  # samples are columns, so that gradients have the weights' layout
        for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
            values = _product(weight, values).contiguous()
            slopes = torch.empty_like(values) if with_gradient else None
            rows = bias if bias.shape == values.shape[:-1] else bias.expand(values.shape[:-1])  # one node, many inputs
            _call("mish", values, rows.contiguous(), slopes)
            if slopes is not None:
                hidden.append(values)
                kept.append(slopes)
        result = _product(params[-2], values).add_(params[-1].unsqueeze(-1))
        return (result.mT.contiguous(), *hidden, *kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, _, *params = inputs
        ctx.set_materialize_grads(False)  # no zeros for what is only kept
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(features, *output[1:], *params)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("Inside fused_networks() gradients cannot be differentiated again (create_graph=True).")
        wanted, _, *trained = ctx.needs_input_grad
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        last = len(trained) // 2 - 1  # of the layers
        features, *saved = ctx.saved_tensors  # once: under a checkpoint a second time is an error
        inputs, slopes, params = [features.mT, *saved[:last]], saved[last : 2 * last], saved[2 * last :]
        gradients: list[Tensor | None] = [None] * len(params)
        transformed = torch._C._are_functorch_transforms_active() or is_legacy_batchedtensor(gradient)  # by vmap
        gradient = gradient.mT
        for i in range(last, -1, -1):
            if i < last and transformed:
                gradient = gradient * slopes[i]
            if i == last or transformed:
                sums = gradient.sum(-1)
            else:
                sums = gradient.new_empty(gradient.shape[:-1])
                _call("mish_gradient", gradient, sums, slopes[i])  # in place: the product below made it
            if trained[2 * i]:
                gradients[2 * i] = _product(gradient, inputs[i].mT)
            if trained[2 * i + 1]:
                gradients[2 * i + 1] = sums
            if i or wanted:
                gradient = _product(params[2 * i].mT, gradient).contiguous()
        return gradient.mT.sum_to_size(features.shape) if wanted else None, None, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Networks of several seeds [S, ...] are one more dimension in front."""
        features, with_gradient, *params = args
        params = [
            value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip(params, in_dims[2:], strict=True)
        ]
        if in_dims[0] is not None:
            features = features.movedim(in_dims[0], 0)
            features = features.reshape(info.batch_size, *[1] * (params[0].ndim - features.ndim), *features.shape[1:])
        outputs = _FusedMLP.apply(features, with_gradient, *params)
        return outputs, (0,) * len(outputs)


def _product(one: Tensor, other: Tensor) -> Tensor:
    return torch.bmm(one, other) if one.ndim == other.ndim == 3 else torch.matmul(one, other)  # which costs more


def _call(name: str, values: Tensor, rows: Tensor, slopes: Tensor | None) -> None:
    """A kernel on ``values`` [..., rows, B], in place, with one number for each row."""
    kernel = getattr(kernels.library(), name)
    pointers = values.data_ptr(), rows.data_ptr(), None if slopes is None else slopes.data_ptr()
    kernel(*pointers, rows.numel(), values.shape[-1], torch.get_num_threads())
