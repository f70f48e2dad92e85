"""A compiler pass: thin matrix products are part of the kernel before or after them, not calls of a library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from torchrl_edp.training import rewrite

aten = torch.ops.aten

THIN = 16  # terms, or columns


class InlineThinProducts(CustomGraphPass):
    """Writes out products of few terms (actions into a first layer), few columns (out of a last one) or one row.

    For where oneDNN computes them: a call of it costs more than such a product, one of MKL does not. A policy's
    sampling has two of them in each of its 15 calls.

    Examples:
        >>> linear = torch.nn.Linear(64, 2)
        >>> compiled = torch.compile(linear, options={"post_grad_custom_post_pass": InlineThinProducts()})
    """

    def __call__(self, graph: fx.Graph) -> None:
        """Change ``graph`` in place."""
        rows: dict[Any, fx.Node] = {}  # right factors of few terms, whose rows must lie in one piece
        for node in graph.find_nodes(op="call_function", target=aten.mm.default):
            a, b = node.args
            left, right = a.meta["val"], b.meta["val"]
            (height, terms), width = left.shape, right.shape[1]
            if node.meta["val"].dtype.itemsize < 4:
                continue
            with graph.inserting_before(node):
                if terms <= THIN:
                    if b not in rows:
                        rows[b] = rewrite.written(graph, b, right.contiguous())
                    a = rewrite.written(graph, a, left.contiguous())
                    result = rewrite.trace_into(graph, _few_terms, a, rows[b])
                elif width <= THIN and (width == 1 or right.stride(0) == 1):
                    if width > 1 or len(a.users) > 1:
                        a = rewrite.written(graph, a, left)
                    result = rewrite.trace_into(graph, _few_columns, a, b)
                elif height == 1:
                    result = rewrite.trace_into(graph, _one_row, a, rewrite.written(graph, b, right))
                else:
                    continue
            node.replace_all_uses_with(result)
            graph.erase_node(node)

    def uuid(self) -> Any:
        """Stands for the pass in the key of the compiler's cache."""
        return get_hash_for_files((__file__, rewrite.__file__))


def _few_terms(a: Tensor, b: Tensor) -> Tensor:
    """The product, for the kernel that reads it."""
    total = a[:, :1] * b[:1]
    for i in range(1, a.shape[1]):
        total = total + a[:, i : i + 1] * b[i : i + 1]
    return total


def _few_columns(a: Tensor, b: Tensor) -> Tensor:
    """The same as dot products; of one column, for the kernel that writes ``a``."""
    return (a.unsqueeze(1) * b.t()).sum(-1)


def _one_row(a: Tensor, b: Tensor) -> Tensor:
    """The same as a sum over rows."""
    return (a.t() * b).sum(0, keepdim=True)
