"""Sampling in one call: all steps of a solver and all layers of the noise network in a C++ kernel, on CPUs.

Step by step, a sampler is some hundred products and activations, each of which threads share out and wait for, of
weights laid out anew for every product. Here a thread takes its rows through all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_edp.diffusion import Bounds, NoiseSchedule, model_steps, solver_table
from torchrl_edp.modules import kernels
from torchrl_edp.modules.fused_mlp import is_chain, own_params
from torchrl_edp.modules.kernels import LANES
from torchrl_edp.modules.networks import NoisePredictionMLP

_lock = threading.Lock()
_depth = 0  # how many fused_sampling() are entered, by any thread


@contextlib.contextmanager
def fused_sampling() -> Iterator[None]:
    """Inside, actors sample by one call of a C++ kernel, all steps and layers, where it can take their place.

    It does for :class:`NoisePredictionMLP` with Mish, unchanged, in float32 on a CPU, without gradients, and solvers
    that draw nothing: ``dpm_solver``, ``dpm_solver_pp``, and ``ddim`` without ``eta``. All else samples step by step.
    A graph that is compiled or traced inside calls the kernel from then on. The update of a
    :class:`~torchrl_edp.training.TrainState` and a compiled :class:`FrozenPolicy` use it by themselves.

    The kernel is compiled when it is first needed, which takes seconds, and kept in the compiler's cache. Without a
    compiler that knows vector types (GCC, Clang) actions are sampled step by step, with a warning.

    Examples:
        >>> from torchrl_edp.modules import DiffusionSampler, NoisePredictionMLP
        >>> sampler = DiffusionSampler(NoisePredictionMLP(11, 3), action_size=3)
        >>> with torch.no_grad(), fused_sampling():
        ...     sampler.sample(torch.zeros(4, 11), torch.randn(4, 3)).shape
        torch.Size([4, 3])
    """
    global _depth
    with _lock:
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1


PLANNED = ("dpm_solver", "dpm_solver_pp", "ddim")  # solvers that draw nothing; the last one if its eta is 0

MOST_CALLS = 100  # the table has their square

Plan = tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]  # the steps of a solver's calls, and the kernel's table


@functools.lru_cache(maxsize=32)
def make_plan(solver: str, schedule: NoiseSchedule, prediction: str, options: tuple[tuple[str, Any], ...]) -> Plan:
    """The steps at which a solver calls its model, and the table that :func:`sample` needs."""
    given: dict[str, Any] = dict(options)
    steps = model_steps(solver, schedule, **given)
    rows = solver_table(solver, schedule, list(np.eye(len(steps) + 1)), **given)
    shares = []  # of what the network is given and of what it gives, in the clean action
    for step in steps:
        alpha, sigma = schedule.alpha((step + 1) / schedule.num_steps), schedule.sigma((step + 1) / schedule.num_steps)
        scale = sigma * given["policy_scale"]
        shares.append((1 / alpha, -scale / alpha) if prediction == "noise" else ((1 - sigma * scale) / alpha, -scale))
    table = (tuple([*row.tolist(), *share]) for row, share in zip(rows, [*shares, (0.0, 0.0)], strict=True))
    return tuple(steps), tuple(table)


def can_sample(network: nn.Module, noise: Tensor, observation: Tensor) -> bool:
    """Whether to sample in one call, and the kernel knows this network, and inputs of these types and shapes."""
    if not _depth or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if type(network) is not NoisePredictionMLP or not network.is_plain() or not is_chain(network.net):
        return False
    values = noise, observation, *own_params(network.net)
    float32 = all(value.dtype == torch.float32 and value.is_cpu for value in values)
    fits = noise.shape == (*observation.shape[:-1], network.action_size)
    return len(network.net) > 1 and float32 and fits and _is_available()


def sample_actions(
    network: NoisePredictionMLP,
    noise: Tensor,
    observation: Tensor,
    plan: Plan,
    bounds: Bounds | None,
) -> Tensor:
    """Actions [*B, A] by the kernel, from ``noise`` [*B, A], given [*B, O]."""
    steps, table = (_kept_tensors if kernels.may_read_memory(noise, observation) else _tensors)(plan)
    by_action, share, biases = network.first_layer(observation, steps)
    first, *rest = [layer for layer in network.net if type(layer) is nn.Linear]
    layers = [(by_action, torch.zeros_like(first.bias)), *[(layer.weight, layer.bias) for layer in rest]]
    low, high = (-math.inf, math.inf) if bounds is None else bounds
    size = noise.shape[-1]
    limits = torch.stack([_row(low, size), _row(high, size)])
    # The operator's dispatch takes as long as a product.
    run = _sample if kernels.may_read_memory(noise, share, biases) else sample
    actions = run(
        noise.reshape(-1, size),
        pad(share.reshape(-1, len(first.bias))),
        pad(biases),
        pack(layers),
        table,
        limits,
        [size, *[len(bias) for _, bias in layers]],
    )
    return actions.reshape(noise.shape)


def _tensors(plan: Plan) -> list[Tensor]:
    return [torch.tensor(values, dtype=torch.float32, device="cpu") for values in plan]


_kept_tensors = functools.lru_cache(maxsize=32)(_tensors)


def _row(limit: float | Tensor, size: int) -> Tensor:
    if isinstance(limit, Tensor):
        return limit.to("cpu", torch.float32).expand(size)
    return torch.full((size,), limit, dtype=torch.float32, device="cpu")


@torch.compiler.assume_constant_result
def _is_available() -> bool:
    return kernels.library() is not None


def pack(layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Weights [out, in] and biases [out] of some layers as the kernel reads them: one after the other, flat.

    Examples:
        >>> pack([(torch.ones(16, 3), torch.ones(16))]).shape
        torch.Size([64])
    """
    if kernels.may_read_memory(*itertools.chain(*layers)) and (library := kernels.library()) is not None:
        sizes = [(weight.shape[1] + 1) * _padded(len(bias)) for weight, bias in layers]
        packed = torch.empty(sum(sizes), dtype=torch.float32, device="cpu")
        for (weight, bias), part in zip(layers, packed.split(sizes), strict=True):
            weight, bias = weight if weight.stride(1) == 1 else weight.contiguous(), bias.contiguous()
            pointers = weight.data_ptr(), bias.data_ptr(), part.data_ptr()
            library.pack(*pointers, weight.stride(0), *weight.shape[::-1], torch.get_num_threads())
        return packed
    parts = []
    for weight, bias in layers:
        panels = pad(weight.T).T.unflatten(0, (-1, LANES))
        parts += [panels.transpose(1, 2).flatten(), pad(bias)]
    return torch.cat(parts)


def _padded(width: int) -> int:
    return width + -width % LANES


def pad(values: Tensor) -> Tensor:
    """``values`` [..., width] with zeros up to whole vectors.

    Examples:
        >>> pad(torch.ones(2, 15)).shape
        torch.Size([2, 16])
    """
    missing = _padded(values.shape[-1]) - values.shape[-1]
    return F.pad(values, (0, missing)) if missing else values


def _sample(
    noise: Tensor,
    shares: Tensor,
    step_biases: Tensor,
    network: Tensor,
    table: Tensor,
    bounds: Tensor,
    widths: Sequence[int],
) -> Tensor:
    """Actions [rows, A] from ``noise`` [rows, A].

    Args:
        noise: what the solver starts from.
        shares: the observations' shares in the first layer [share_rows, H], padded; further rows repeat them.
        step_biases: the steps' shares in the first layer [calls, H], padded.
        network: the noise network's layers, the first one for actions alone, by :func:`pack`.
        table: by :func:`torchrl_edp.diffusion.solver_table` [calls + 1, calls + 1], and two more columns: the shares
            that the input and the output of the network's call have in the clean action (see :func:`make_plan`).
        bounds: of clean actions [2, A].
        widths: A, those of the hidden layers, A.

    Raises:
        ValueError: if sizes do not fit each other, or types are not float32.
        RuntimeError: if the kernel cannot be compiled here.
    """
    library = kernels.library()
    if library is None:
        raise RuntimeError("This graph samples by a kernel that cannot be compiled here: trace it here anew.")
    inputs = [x.contiguous() for x in (noise, shares, step_biases, network, table, bounds)]
    padded = [_padded(width) for width in widths]
    calls, size, hidden = len(step_biases), widths[0], padded[1]
    length = sum((width + 1) * out for width, out in zip(widths, padded[1:], strict=False))
    expected = [
        (len(noise), size),
        (len(shares), hidden),
        (calls, hidden),
        (length,),
        (calls + 1, calls + 3),
        (2, size),
    ]
    found = [tuple(x.shape) for x in inputs]
    if found != expected or widths[-1] != size or any(x.dtype != torch.float32 or x.is_cuda for x in inputs):
        raise ValueError(f"Expected float32 tensors {expected} on the CPU and {size} outputs, got {found}, {widths}.")
    actions = torch.empty_like(inputs[0])
    pointers = [x.data_ptr() for x in (*inputs, actions)]
    sizes = [len(widths) - 1, calls, len(noise), len(shares)]
    library.sample(*pointers, (ctypes.c_int64 * len(widths))(*widths), *sizes, torch.get_num_threads())
    return actions


sample = torch.library.custom_op("torchrl_edp::sample", _sample, mutates_args=())


@sample.register_fake
def _(noise: Tensor, *_: object) -> Tensor:
    return torch.empty_like(noise, memory_format=torch.contiguous_format)


@sample.register_vmap
def _(info: Any, in_dims: Sequence[Any], *inputs: Any) -> tuple[Tensor, int]:
    """One call per seed."""
    *tensors, widths = inputs
    own = [
        [value] * info.batch_size if dim is None else value.unbind(dim)
        for value, dim in zip(tensors, in_dims[:-1], strict=True)
    ]
    return torch.stack([sample(*values, widths) for values in zip(*own, strict=True)]), 0
