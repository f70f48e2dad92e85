"""FrozenPolicy: a policy that only acts, as one compiled graph with its weights baked in."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, fx
from torch._inductor.exc import InductorError
from torch.fx.experimental.proxy_tensor import make_fx

from torchrl_edp.modules.fused import fused_sampling
from torchrl_edp.modules.mish import fast_mish
from torchrl_edp.modules.sampler import DiffusionSampler

aten = torch.ops.aten

Graph = Callable[..., Tensor]

MOST_ROWS_GENERATED = 32


class FrozenPolicy(TensorDictModuleBase):
    """A copy of a policy for acting, several times faster: one graph of plain tensors, everything constant folded.

    Weights, solver coefficients and the share of every solver step in the first layer become constants; the
    observation's share is computed once per action. Draws come from torch's generator in the policy's own order, so
    that the same seed gives the same actions. Later changes of the policy or its settings are not seen.

    A graph is made at the first call with inputs of a new shape or under a new exploration type: compiling it takes
    10 to 60 seconds (minutes for DDPM's hundreds of calls), so act once before it matters, and always with the same
    number of observations.

    Args:
        policy: reads tensors [*B, ...], writes one: an actor, a selector, or what ``load_policy`` returns.

    Keyword Args:
        compile: compile the graphs (default); otherwise they run eagerly, without TensorDict's cost.
        onednn: on a CPU, take products from oneDNN, in float32, with the weights in its layout; otherwise generate
            them for the graph. None (default) generates them for up to 32 rows (observations times candidates), where
            calls cost more than products. The paper's noise network is called by a kernel of its own, whatever this
            says, where the solver draws nothing.

    Raises:
        TypeError: if ``policy`` is no TensorDict module.
        ValueError: if it writes more than one entry.

    Examples:
        >>> from torchrl_edp.modules import EDPActor, NoisePredictionMLP
        >>> policy = FrozenPolicy(EDPActor(NoisePredictionMLP(11, 3)), compile=False)
        >>> policy(TensorDict({"observation": torch.zeros(4, 11)}, [4]))["action"].shape
        torch.Size([4, 3])
        >>> policy.act(torch.zeros(4, 11)).shape
        torch.Size([4, 3])
    """

    def __init__(self, policy: TensorDictModuleBase, *, compile: bool = True, onednn: bool | None = None) -> None:
        super().__init__()
        if not isinstance(policy, TensorDictModuleBase):
            raise TypeError(f"policy must be a TensorDict module, got {type(policy).__name__}.")
        if len(policy.out_keys) != 1:
            raise ValueError(f"FrozenPolicy needs a policy with one out_key, got {policy.out_keys}.")
        self.in_keys = list(policy.in_keys)
        self.out_keys = list(policy.out_keys)
        self.compile_graphs = compile
        self.onednn = onednn
        frozen = copy.deepcopy(policy).requires_grad_(False).eval()
        for module in frozen.modules():
            if isinstance(module, DiffusionSampler):  # tracing reads no numbers out of tensors
                module.schedule.betas = module.schedule.betas.tolist()  # type: ignore[assignment]
        # In a tuple, so that it is no submodule: to(), load_state_dict() and the like could not reach the graphs.
        self._frozen = (frozen,)
        self._graphs: dict[Any, Graph] = {}

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action into ``tensordict`` [*B] and return it."""
        action = self.act(*[tensordict.get(key, None) for key in self.in_keys])
        return tensordict.set(self.out_keys[0], action)

    def act(self, *inputs: Tensor | None) -> Tensor:
        """The action [*B, A] for the entries of ``in_keys`` in their order, without a tensordict.

        Raises:
            KeyError: if the policy misses an input: those that are None or left out at the end.
        """
        signature = [None if value is None else (value.shape, value.dtype, value.device) for value in inputs]
        key = (interaction_type(), *signature)
        given = [value for value in inputs if value is not None]
        graph = self._graphs.get(key)
        if graph is None:
            keys = [key for key, value in zip(self.in_keys, inputs, strict=False) if value is not None]
            graph = self._graphs[key] = self._freeze(keys, given)
        return graph(*given)

    def _freeze(self, keys: Sequence[Any], inputs: list[Tensor]) -> Graph:
        """The policy as a function of the entries ``keys``, for inputs of these shapes."""
        if not inputs:
            raise KeyError(f"The policy reads {self.in_keys}, got none of them.")

        def act(*values: Tensor) -> Tensor:
            data = TensorDict({}, inputs[0].shape[:-1])
            for key, value in zip(keys, values, strict=True):
                data.set(key, value)
            return self._frozen[0](data).get(self.out_keys[0])

        decompositions = {aten.mish.default: _mish} if self.compile_graphs else {}
        devices = [inputs[0].device] if inputs[0].is_cuda else []
        # Tracing draws numbers; the caller's generator must not notice.
        with torch.no_grad(), torch.random.fork_rng(devices):
            with fused_sampling() if self.compile_graphs else contextlib.nullcontext():
                graph = fold_constants(make_fx(torch.func.functionalize(act), decompositions)(*inputs))
            return self._compile(graph, inputs) if self.compile_graphs else graph

    def _compile(self, graph: fx.GraphModule, inputs: list[Any]) -> Graph:
        for node in graph.graph.find_nodes(op="placeholder"):
            node.meta.clear()  # tracing left a fake tensor of a mode of its own for each, the compiler wants one mode
        options: dict[str, Any] = {"freezing": True, "fallback_random": True}
        if inputs[0].device.type != "cpu":
            return torch._inductor.compile(graph, inputs, options=options)
        options["cpp_wrapper"] = True  # calls from C++: 1.2 times as fast for one observation
        if self.onednn is False or (self.onednn is None and _rows(graph) <= MOST_ROWS_GENERATED):
            generated = {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
            try:
                return torch._inductor.compile(graph, inputs, options=options | generated)
            except InductorError:  # raised for some shapes with dimensions of size 1
                pass
        with _onednn():
            return torch._inductor.compile(graph, inputs, options=options)


def fold_constants(graph: fx.GraphModule) -> fx.GraphModule:
    """Replace, in place, everything in a graph of ATen calls that follows from constants alone by its value.

    Examples:
        >>> graph = make_fx(lambda x: x + torch.ones(2).exp())(torch.zeros(2))
        >>> [node.op for node in fold_constants(graph).graph.nodes]
        ['placeholder', 'get_attr', 'call_function', 'output']
    """
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "get_attr":
            known[node] = getattr(graph, node.target)
        elif node.op == "call_function" and not random and all(source in known for source in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for i, (node, value) in enumerate(known.items()):
        used = any(user not in known for user in node.users)
        if node.op == "call_function" and used and isinstance(value, Tensor):
            graph.register_buffer(f"constant_{i}", value.clone(memory_format=torch.contiguous_format))
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(f"constant_{i}"))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _rows(graph: fx.GraphModule) -> int:
    """The most rows of any matrix product in a graph."""
    products = [node for node in graph.graph.nodes if node.target in (aten.mm.default, aten.addmm.default)]
    return max((node.meta["val"].shape[0] for node in products), default=0)


def _mish(x: Tensor) -> Tensor:
    """Mish for the compiler, which has no fast form of its own; half precision would overflow in it."""
    return fast_mish(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


@contextlib.contextmanager
def _onednn() -> Iterator[None]:
    """Lets the compiler pack float32 weights for oneDNN. Only it needs the switch: as it runs, products stay exact."""
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before
