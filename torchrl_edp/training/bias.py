"""A compiler pass: biases are added by the kernel that reads the product, not by the product itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten = torch.ops.aten


class AddBiasLater(CustomGraphPass):
    """Splits ``addmm`` into a product and a sum, as the compiler itself does on GPUs.

    On CPUs ``addmm`` copies the bias into every row of its output and then reads it back; a sum costs nothing in the
    kernel of the activation that follows.

    Examples:
        >>> linear = torch.nn.Linear(3, 2)
        >>> compiled = torch.compile(linear, options={"post_grad_custom_post_pass": AddBiasLater()})
    """

    def __call__(self, graph: fx.Graph) -> None:
        """Change ``graph`` in place."""
        for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
            if node.kwargs:  # factors other than 1
                continue
            bias, *factors = node.args
            with graph.inserting_before(node):
                product = graph.call_function(aten.mm.default, tuple(factors))
                total = graph.call_function(aten.add.Tensor, (product, bias))
            product.meta["val"] = total.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(total)
            graph.erase_node(node)

    def uuid(self) -> Any:
        """Stands for the pass in the key of the compiler's cache."""
        return get_hash_for_files((__file__,))
