"""C++ kernels for CPUs, compiled when one is first needed."""

from __future__ import annotations

import ctypes
import functools
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._inductor import config
from torch._inductor.codecache import CppCodeCache

LANES = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 4)  # floats of a register


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning, where they cannot be compiled."""
    source = f"#define LANES {LANES}\n" + Path(__file__).with_suffix(".cpp").read_text()
    try:
        with config.patch({"cpp.enable_floating_point_contract_flag": "fast"}):  # a b + c in one instruction
            library = CppCodeCache.load(source, needs_vec_isa=True)
    except Exception as error:  # there are many ways to lack a compiler
        reason = str(error).partition("\n")[0]
        warnings.warn(f"It goes without C++ kernels, they cannot be compiled here: {reason}", stacklevel=2)
        return None
    tensor, size, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.mish.argtypes = library.mish_gradient.argtypes = [tensor] * 3 + [size] * 2 + [threads]
    library.pack.argtypes = [tensor] * 3 + [size] * 3 + [threads]
    library.sample.argtypes = [tensor] * 8 + [size] * 4 + [threads]
    for kernel in (library.mish, library.mish_gradient, library.pack, library.sample):
        kernel.restype = None
    return library


def may_read_memory(*tensors: Tensor) -> bool:
    """Whether ``tensors`` are no more than they seem: nothing is compiled, traced or mapped, no class is a subclass.

    Examples:
        >>> may_read_memory(torch.zeros(2))
        True
        >>> torch.vmap(lambda x: x + may_read_memory(x))(torch.zeros(2))
        tensor([0., 0.])
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
