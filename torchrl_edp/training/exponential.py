"""A compiler pass: the exponential inside Mish is a polynomial in the kernel, not a call of a library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from torchrl_edp.training import rewrite

aten = torch.ops.aten

HIGHEST = 20.0  # where Mish clamps what it takes the exponential of
_HIGHEST_BITS = int(torch.tensor(HIGHEST).exp().view(torch.int32))
_LEAST_POWER, _MOST_POWER = -125.0, 30.0  # of two: the first keeps float32 normal, the second is more than exp(20)
_LOG2_E = 1.4426950408889634
# 2^f for f in [-1/2, 1/2], of the least relative error (7.5e-8) among polynomials of degree 5; highest power first
_POWERS_OF_TWO = (
    1.3276472072484874e-3,
    9.675541429987111e-3,
    5.5507132740786995e-2,
    0.24022119722080745,
    0.6931469670638869,
    1.0000000716550383,
)


def saturating_exp(x: Tensor) -> Tensor:
    """exp(min(x, 20)) by a polynomial, for float32; below x = -86.9 it stays near 2^-125.

    exp(x) = 2^k 2^f with k the integer nearest to x / ln 2: the polynomial gives 2^f, and k is added to its exponent in
    place. The relative error stays below 3e-7 + 1.2e-7 |x|. Bounds are those of k, by relu, and of the result's bits,
    as integers: a clamp of floats looks for NaNs, which took an Intel Xeon longer than all the rest. Nonsense where x
    is not finite.

    Args:
        x: float32, of any shape.

    Returns:
        Tensor of the shape of ``x``.

    Examples:
        >>> saturating_exp(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 2.7183])
    """
    scaled = x * _LOG2_E
    k = scaled.round()
    fraction = scaled - k
    power = torch.full_like(fraction, _POWERS_OF_TWO[0])
    for coefficient in _POWERS_OF_TWO[1:]:
        power = power * fraction + coefficient
    # whole numbers: exact
    k = _LEAST_POWER + (_MOST_POWER - _LEAST_POWER - (_MOST_POWER - k).relu()).relu()
    # float32: eight bits of exponent above 23 of mantissa; positive ones are ordered as their bits
    bits = power.view(torch.int32) + (k.to(torch.int32) << 23)
    return bits.clamp(max=_HIGHEST_BITS).view(torch.float32)


class InlineExp(CustomGraphPass):
    """Replaces the ``exp(x.clamp(max=20))`` of Mish by :func:`saturating_exp`.

    On CPUs the compiler calls a library for every vector of an exponential; inline it needs no call. Where a gradient
    reads the exponential, too, it is written to memory: left alone, the compiler would compute the polynomial again in
    every kernel of the backward pass, and take several times as long to compile.

    Examples:
        >>> from torchrl_edp.modules.mish import fast_mish
        >>> compiled = torch.compile(fast_mish, options={"post_grad_custom_post_pass": InlineExp()})
    """

    def __call__(self, graph: fx.Graph) -> None:
        """Change ``graph`` in place."""
        for node in graph.find_nodes(op="call_function", target=aten.exp.default):
            clamp: Any = node.args[0]
            value = node.meta["val"]
            if clamp.target is not aten.clamp_max.default or clamp.args[1] != HIGHEST or value.dtype != torch.float32:
                continue
            with graph.inserting_before(node):
                result = rewrite.trace_into(graph, saturating_exp, *clamp.all_input_nodes)
                if len(node.users) > 2:  # e (e + 2) reads it twice
                    result = rewrite.written(graph, result, value)
            node.replace_all_uses_with(result)
            graph.erase_node(node)
            if not clamp.users:
                graph.erase_node(clamp)

    def uuid(self) -> Any:
        """Stands for the pass in the key of the compiler's cache."""
        return get_hash_for_files((__file__, rewrite.__file__))
