"""A compiler pass: gradients of stacked weights come out of the product in the layout of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten = torch.ops.aten


class TransposeFactors(CustomGraphPass):
    """Replaces the transpose of a batched product, (A B)^T, by the product of its transposed factors, B^T A^T.

    The backward pass of a linear layer mapped over critics gives its weights' gradient transposed. What reads gradient
    and weight together, norm and Adam, would have to turn it round in small tiles; the product reads either layout.

    Examples:
        >>> compiled = torch.compile(
        ...     lambda a, b: torch.bmm(a, b).mT + 1, options={"post_grad_custom_post_pass": TransposeFactors()}
        ... )
    """

    def __call__(self, graph: fx.Graph) -> None:
        """Change ``graph`` in place."""
        for product in graph.find_nodes(op="call_function", target=aten.bmm.default):
            users = list(product.users)
            if len(users) != 1 or not _is_transpose(users[0]):
                continue
            (transpose,) = users
            with graph.inserting_before(transpose):
                factors = tuple(_transposed(graph, factor) for factor in reversed(product.args))
                turned = graph.call_function(aten.bmm.default, factors)
            turned.meta["val"] = transpose.meta["val"].contiguous()
            transpose.replace_all_uses_with(turned)
            graph.erase_node(transpose)
            graph.erase_node(product)

    def uuid(self) -> Any:
        """Stands for the pass in the key of the compiler's cache."""
        return get_hash_for_files((__file__,))


def _is_transpose(node: Any) -> bool:
    return node.target is aten.permute.default and list(node.args[1]) == [0, 2, 1]


def _transposed(graph: fx.Graph, factor: Any) -> Any:
    if _is_transpose(factor):
        return factor.args[0]
    node = graph.call_function(aten.permute.default, (factor, [0, 2, 1]))
    node.meta["val"] = factor.meta["val"].mT
    return node
