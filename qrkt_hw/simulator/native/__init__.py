"""The native kernels of ``kernels.c``, built when the package is installed; None where no compiler was at hand.

Each has a plain torch reference, which serves other devices, second derivatives, and machines
without a compiler. ``QRKT_HW_NATIVE=0`` switches them off.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from qrkt_hw.compiler.program import Affine

VERSION = 9
_P, _I, _L = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
# arguments after the plan
_SIGNATURES: dict[str, list[Any]] = {
    "coefficients_forward": [_P, _L, _P],
    "coefficients_backward": [_P, _P, _L, _P],
    "tape_forward": [_P, _P, _P, _L, _L, _P, _I],
    "tape_backward": [_P, _P, _P, _P, _L, _L, _P, _P, _I],
    "givens_forward": [_P, _L, _P],
    "givens_backward": [_P, _P, _P, _L, _P],
    "circuit_forward": [_P, _P, _P, _L, _L, _P, _P, _I],
    "circuit_backward": [_P, _P, _P, _P, _L, _L, _P, _P, _P, _I],
}
# as in kernels.c: qubits of the largest state that is one block, and of a block beyond; qubits from which threads share
# a state, where before each has its own; threads of a call
BLOCKED, RANK, SHARED, PARTS = 9, 7, 15, 32
ALIGNED = 64  # bytes, of rows of states; torch gives new tensors so
COLUMNS = {torch.float32: 16, torch.float64: 8}  # samples that go through together


@lru_cache(maxsize=1)
def library() -> dict[str, Any] | None:
    """The routines by name and precision, such as ``tape_forward_f32``; None where they are off or were not built."""
    if os.environ.get("QRKT_HW_NATIVE", "1") == "0":
        return None
    for suffix in EXTENSION_SUFFIXES:
        file = Path(__file__).with_name(f"_kernels{suffix}")
        if not file.is_file():
            continue
        try:
            return routines(ctypes.CDLL(str(file)))
        except (OSError, AttributeError):
            continue
    return None


def routines(found: ctypes.CDLL, generation: int | None = None) -> dict[str, Any]:
    """The routines of a loaded library for a generation of vectors; by default the widest this machine has.

    Generation 1 is what every processor of this kind has; on x86, 2 is AVX2 and 3 AVX-512.
    """
    found.qrkt_version.restype = found.qrkt_generation.restype = ctypes.c_int64
    if found.qrkt_version() != VERSION:
        raise AttributeError("the native kernels are of another version")
    widest = found.qrkt_generation()
    made = {}
    for name, arguments in _SIGNATURES.items():
        for precision in ("f32", "f64"):
            function = getattr(found, f"{name}_{precision}_{widest if generation is None else generation}")
            function.argtypes = [_P, *arguments]
            function.restype = ctypes.c_int
            made[f"{name}_{precision}"] = function
    return made


def serves(*tensors: Tensor) -> bool:
    """Whether the native kernels can take these tensors: on a CPU, and not :func:`traced`."""
    if torch.compiler.is_exporting() or library() is None:
        return False
    for t in tensors:
        if not t.is_cpu:
            return False
    return not traced(*tensors)


def traced(*tensors: Tensor) -> bool:
    """Whether something must see every operation: ``torch.func``, forward-mode derivatives, ``torch.jit.trace``,
    ``torch.export``, a dispatch mode (fake tensors, make_fx), a subclass.

    Only torch's own operations are right then; a compiled routine would read addresses that hold no numbers.
    """
    if torch.compiler.is_exporting() or _transforms_active() or is_in_torch_dispatch_mode():
        return True
    if _tracing() is not None or forward_ad._current_level >= 0:
        return True
    for t in tensors:
        kind = type(t)
        if (kind is not Tensor and kind is not Parameter) or _is_batched(t):
            return True
    return False


def numbers(tensor: Tensor, shape: tuple[int, ...], real: torch.dtype, name: str) -> Tensor:
    """The tensor, its numbers in memory as they read (a negative view is resolved); any strides.

    With another shape, precision or device the routine would read or write foreign memory: that is a ValueError.
    """
    if tensor.shape != shape or tensor.dtype != real or not tensor.is_cpu:
        found = f"{tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name} must be {tuple(shape)} in {real} on a CPU, not {found}")
    return tensor.resolve_neg()


# as in torch.autograd.grad(..., is_grads_batched=True), which no transform announces
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_tracing = torch._C._get_tracing_state
_transforms_active = torch._C._are_functorch_transforms_active


class Routine:
    """A pair of forward and backward routines in one precision, bound to a C structure of angles, then ``fields``.

    Sequences of floats become float64 arrays, all others int32 arrays.
    """

    def __init__(self, name: str, real: torch.dtype, angles: Sequence[Affine], *fields: int | ArrayLike) -> None:
        found = library()
        assert found is not None
        suffix = "f32" if real == torch.float32 else "f64"
        self._forward, self._backward = found[f"{name}_forward_{suffix}"], found[f"{name}_backward_{suffix}"]
        starts = np.cumsum([0, *(len(a.terms) for a in angles)])
        terms = [term for a in angles for term in a.terms]
        factors, offsets = [float(f) for _, f in terms] or [0.0], [float(a.offset) for a in angles] or [0.0]
        # the list of angles is a structure of its own inside: what follows begins at a multiple of 8 bytes
        self._kept = [
            v if isinstance(v, int) else _array(v)
            for v in (len(angles), starts, [i for i, _ in terms], factors, offsets, *fields)
        ]
        names = [(f"field{k}", _I if isinstance(v, int) else _P) for k, v in enumerate(self._kept)]
        inner = type("Angles", (ctypes.Structure,), {"_fields_": names[:5]})
        outer = type("Plan", (ctypes.Structure,), {"_fields_": [("angles", inner), *names[5:]]})
        values = [v if isinstance(v, int) else v.ctypes.data for v in self._kept]
        self._structure = outer(inner(*values[:5]), *values[5:])
        self._plan = ctypes.addressof(self._structure)

    def forward(self, *arguments: object) -> None:
        if self._forward(self._plan, *arguments):
            raise MemoryError("not enough memory to evaluate the circuit")

    def backward(self, *arguments: object) -> None:
        if self._backward(self._plan, *arguments):
            raise MemoryError("not enough memory to evaluate the circuit")


def _array(values: ArrayLike) -> NDArray:
    found = np.asarray(values)
    kind = np.float64 if found.dtype.kind == "f" and found.size else np.int32
    return np.ascontiguousarray(found, dtype=kind).reshape(-1)


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
