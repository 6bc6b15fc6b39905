"""Memory that an evaluation takes, estimated before it is taken, so that too much is refused in a sentence.

The figures are what tensors and native kernels ask for at the peak, forward and backward, derived from the methods and
checked against measured peaks (tests/simulator/test_never_wrong_memory.py). Many blocks of a few MiB can make the C
library's heap larger than that.
"""

import math
import os
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.compiler.litinski import PauliRotation, absorb
from qrkt_hw.compiler.subspace import Diagonal, Givens, Matrix, subspace
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import native
from qrkt_hw.simulator.propagated import Propagated, plan, uses_weights
from qrkt_hw.simulator.statevector import LARGEST_NATIVE, LARGEST_TABLE, Statevector
from qrkt_hw.simulator.subspace import Subspace, layers, only_rotations

SMALL = 64 * 2**20  # bytes that nobody asks about
SHARE = 0.9  # of the free memory that may be taken
_EXPONENTS = {"statevector": 1, "density_matrix": 2, "unitary": 2, "superop": 4}  # Aer's: 2^(exponent * qubits) numbers


class Need(NamedTuple):
    """Bytes at the peak: ``fixed`` (tables), and for each weight set ``group`` plus ``row`` for each sample."""

    fixed: float
    group: float
    row: float
    columns: int = 1  # samples go through in multiples of this

    def of(self, batch: int, groups: int) -> float:
        """Bytes for a batch ``(batch, groups, inputs)``."""
        return self.fixed + groups * (self.group + self.row * -(-batch // self.columns) * self.columns)


def need(template: CircuitTemplate, method: str, real: torch.dtype, gradient: bool, compiled: bool) -> Need:
    """What an evaluation by a method takes, ``compiled`` where native kernels take the circuit."""
    number = torch.finfo(real).bits // 8
    if method == "adjoint":
        size = 2.0**template.num_qubits
        if compiled and template.num_qubits <= LARGEST_NATIVE:
            plane, columns = size * 64, native.COLUMNS[real]  # one row of columns for each amplitude
            planes = (4 if gradient else 2) + (template.num_qubits <= native.BLOCKED)
            threads = 1 if template.num_qubits >= native.SHARED else min(torch.get_num_threads(), native.PARTS)
            return Need(plane * planes * threads, 0, 2 * plane / columns if gradient else 0, columns)
        found = absorb(template)
        signs = {s.z for s in found.steps if isinstance(s, PauliRotation)} if size <= LARGEST_TABLE else ()
        flips = {r.x for r in found.readings}
        fixed = size * number * (len(signs) + min(len(found.readings), max(1.0, LARGEST_TABLE / size)) + 2)
        return Need(fixed, 0, size * 2 * number * (10.5 + 0.7 * (len(flips) - 1) if gradient else 5.5))
    if method == "subspace":
        program = subspace(template)
        assert program is not None
        state = number * (1 if program.real else 2) * program.size
        if template.encoding == "angle":
            parts = {Givens: 6.0, Diagonal: 3.3, Matrix: 1.0}  # saved for backward, of each pair, amplitude or entry
            saved = sum(parts[type(step)] * len(step) for step in program.steps)
            saved += 2.5 * sum(map(len, program.readings))
            return Need(0, 0, state * (3 + saved / program.size if gradient else 7))
        if compiled and program.real and only_rotations(program):  # one matrix, and its gradient
            matrices = 4.0 if gradient else 2.0
        else:  # those of all layers, and their products
            matrices = 2 + (4.0 if gradient else 3.0) * len(layers(program))
        ends = template.num_features + template.num_outputs
        return Need(0, matrices * state * program.size, (2 if gradient else 1) * number * ends)
    planned = plan(template)
    if planned is None:
        return Need(math.inf, 0, 0)
    e = planned[0]
    factors, rows = sum(max(len(s), 1) for s in e.strings), sum(map(len, e.rows))
    held, ends = 3.0 * number * (factors + len(e.entries) + rows), template.num_inputs + template.num_outputs
    if compiled and not uses_weights(e, template):
        return Need(0, held, 2 * number * ends)
    dense = len(e.rows) * rows + template.num_outputs * len(e.strings)
    kept = 4 * factors + 3 * rows if gradient else 1.3 * factors + rows
    return Need(0, held + 3 * number * dense, number * (kept + 2 * ends))


class Needs:
    """What calls of a simulator take; UserError where its tables alone do not fit."""

    def __init__(self, template: CircuitTemplate, method: str, real: torch.dtype) -> None:
        self._template, self._method, self._real = template, method, real
        self._needs = self._variants(method, real)
        cheapest = min(one.fixed for one in self._needs.values())
        if cheapest >= SMALL and cheapest > (free := SHARE * available(torch.device("cpu"))):
            self._refuse(0, cheapest, free, [])
        most = max((one.group + one.row * one.columns) for one in self._needs.values())
        fixed = max(one.fixed for one in self._needs.values())
        # numbers in the inputs of a call that takes less than SMALL, whatever its shape
        self.unchecked = max(0.0, SMALL - fixed) / max(most, 1.0) * max(template.num_features, 1)

    def check(self, inputs: Tensor, weights: Tensor) -> None:
        """Refuse a call that would take more memory than there is, and say what would fit."""
        gradient = torch.is_grad_enabled() and (inputs.requires_grad or weights.requires_grad)
        variant, batch, groups = (gradient, inputs.is_cpu), math.prod(inputs.shape[:-2]), weights.shape[0]
        one = self._needs[variant]
        needed = one.of(batch, groups)
        if needed < SMALL or needed <= (free := SHARE * available(inputs.device)):
            return
        methods = (Propagated, Statevector, Subspace)
        others = [m.name for m in methods if m.name != self._method and m.supports(self._template)]
        changed = [(f"method {name!r}", name, self._real) for name in others]
        if self._real == torch.float64:
            changed.append(("dtype complex64", self._method, torch.float32))
        ways = [
            f"{what} fits" for what, m, real in changed if self._variants(m, real)[variant].of(batch, groups) <= free
        ]
        if one.of(1, groups) <= free:
            fitting = bisect(range(1, batch), free, key=lambda samples: one.of(samples, groups))
            ways.insert(0, f"a batch of {fitting} fits")
        self._refuse(batch, needed, free, ways)

    def _variants(self, method: str, real: torch.dtype) -> dict[tuple[bool, bool], Need]:
        """By whether gradients are wanted, and whether the call is on a CPU."""
        compiled, choices = native.library() is not None, (False, True)
        return {(g, c): need(self._template, method, real, g, compiled and c) for g in choices for c in choices}

    def _refuse(self, batch: int, needed: float, free: float, ways: Sequence[str]) -> None:
        samples = f" for {batch} sample{'s' if batch != 1 else ''}" if batch else ""
        t = self._template
        what = f"ansatz {t.name!r} on {t.num_qubits} qubits by method {self._method!r}{samples}"
        _refuse(what, needed, free, ways, t.num_qubits)


def check_aer(name: str, method: str, qubits: int) -> None:
    """Refuse a circuit whose state does not fit into memory in Aer's simulation method."""
    exponent = _EXPONENTS.get(method)
    if exponent is None:  # memory follows from the circuit
        return
    needed = math.ldexp(16.0, min(exponent * qubits, 1000))
    if needed >= SMALL and needed > (free := SHARE * available(torch.device("cpu"))):
        _refuse(f"backend {name!r} with method {method!r} on {qubits} qubits", needed, free, [], qubits, exponent)


def _refuse(what: str, needed: float, free: float, ways: Sequence[str], qubits: int, exponent: int = 1) -> None:
    fewer = qubits - math.ceil(math.log2(needed / free) / exponent)
    ways = ways or [f"at most {fewer} qubits fit" if fewer > 0 else "nothing of this kind fits"]
    raise UserError(f"{what} takes {_text(needed)} of memory, and {_text(free)} may be taken: {'; '.join(ways)}")


def _text(size: float) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def available(device: torch.device) -> float:
    """Bytes that can be taken on a device without driving others out."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        import psutil

        free = float(psutil.virtual_memory().available)
    except ImportError:
        free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(1.0, min(free, *(_left(group) for group in _groups())))


def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Folders of the control groups that limit this process, of either version."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except (OSError, ValueError):
        return []
    found: list[Path] = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        inner = top / path.lstrip("/")
        found += [inner, *(p for p in inner.parents if p == top or top in p.parents)]
    return found


def _left(group: Path) -> float:
    """What a control group's limit leaves; its cached files can be driven out."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
            lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return math.inf if most == "max" else int(most) - used + int(lines.get(cached, 0))
        except (OSError, ValueError):
            continue
    return math.inf
