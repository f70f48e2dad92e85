"""What compiler passes share: functions put into a graph in place of a node, and values written to memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

write = torch.ops.prims.inductor_force_stride_order.default  # the compiler's "write this to memory"


def trace_into(graph: fx.Graph, function: Callable[..., Tensor], *inputs: Any) -> Any:
    """The node of ``function(*inputs)``, whose operations go to the graph's point of insertion."""
    values = [node.meta["val"] for node in inputs]
    with cast(FakeTensor, values[0]).fake_mode:
        traced = make_fx(function, select_decomp_table())(*values)
    arguments = traced.graph.find_nodes(op="placeholder")
    return graph.graph_copy(traced.graph, dict(zip(arguments, inputs, strict=True)))


def written(graph: fx.Graph, node: Any, like: Tensor) -> fx.Node:
    """``node`` in memory, with the strides of ``like``.

    Left alone, the compiler works out in every kernel anew what is cheap to it.
    """
    result = graph.call_function(write, (node, list(like.stride())))
    result.meta["val"] = like
    return result
