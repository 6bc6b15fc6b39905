"""Memory that an evaluation takes, estimated before it is taken, so that too much is refused in a sentence.

The figures are what tensors and native kernels ask for at the peak, forward and backward, derived from the methods and
checked against measured peaks (tests/simulator/test_never_wrong_memory.py). Many blocks of a few MiB can make the C
library's heap larger than that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.compiler import Program, Rotation, lower
from qrkt_hw.compiler.litinski import Turn, frame
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import native
from qrkt_hw.simulator.fused import segments, split_encoding
from qrkt_hw.simulator.methods import METHODS
from qrkt_hw.simulator.pulled import plan

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


class Evaluates(Protocol):
    """What :func:`check` asks of a simulator."""

    template: CircuitTemplate
    method: str
    real_dtype: torch.dtype


def need(
    method: str,
    program: Program,
    observables: Sequence[SparsePauliOp],
    real: torch.dtype,
    gradient: bool,
    compiled: bool,
) -> Need:
    """What an evaluation by a method takes.

    Args:
        method: ``gatewise``, ``fused``, ``pauli`` or ``adjoint``.
        program, observables: the lowered circuit and what is read.
        real: precision.
        gradient: whether a backward pass follows.
        compiled: by the native kernels, where the method has some.
    """
    number = torch.finfo(real).bits // 8
    if method == "pauli":
        return _of_propagation(program, observables, number, compiled)
    size, amplitude = 2.0**program.num_qubits, 2 * number
    state = size * amplitude
    if method == "adjoint" and compiled:
        plane = size * 64  # one row of columns for each amplitude
        columns = native.COLUMNS[real]
        return Need(plane * (5 if gradient else 3), 0, 2 * plane / columns if gradient else 0, columns)
    if method == "adjoint":
        framed = frame(program, observables)
        turns = [s for s in framed.steps if isinstance(s, Turn)]
        flips = {r.x for r in framed.readings}
        tables = size * (amplitude * len(turns) + 8 * sum(s.x != 0 for s in turns))
        tables += _readout(flips, len(observables), size, number)
        return Need(tables, 0, state * (10.5 + 3 * (len(flips) - 1) if gradient else 5.5))
    rotations = [s for s in program.steps if isinstance(s, Rotation)]
    if method == "gatewise":
        tables = size * (amplitude * len(rotations) + 8 * sum(any(p in "XY" for p in s.pauli) for s in rotations))
        tables += _readout(flips_of(observables), len(observables), size, number)
        return Need(tables, 0, state * (2 * len(rotations) + 8 if gradient else 6.5))
    runs = segments(split_encoding(program)[1], program)
    by_data, shared = (
        sum(isinstance(s, Rotation) for d, steps in runs if d is data for s in steps) for data in (True, False)
    )
    return Need(0, size * state * (2 * shared + 8 if gradient else 8), state * (2 * by_data + 8 if gradient else 8))


def flips_of(observables: Sequence[SparsePauliOp]) -> set[int]:
    """The qubits that each Pauli string flips, as bits."""
    return {sum(1 << q for q, bit in enumerate(x) if bit) for o in observables for x in o.paulis.x}


def _readout(flips: set[int], outputs: int, size: float, number: int) -> float:
    """A dense sign matrix for each set of flipped qubits, made in complex numbers of double precision."""
    return size * (150 + sum(outputs * (16 + number * (2 if x else 1)) + (8 if x else 0) for x in flips))


def _of_propagation(program: Program, observables: Sequence[SparsePauliOp], number: int, compiled: bool) -> Need:
    inputs_and_outputs = program.num_inputs + len(observables)
    found = plan(program, observables)
    if found is None:
        return Need(math.inf, 0, 0)
    e = found.expansion
    factors = sum(max(len(s), 1) for s in e.strings)
    held = number * (factors + len(e.entries) + sum(map(len, e.rows)))
    uses_weights = any(
        i >= program.num_inputs for row in e.rows for *_, m in row for f in m for i, _ in e.angles[f // 2].terms
    )
    if compiled and not uses_weights:
        return Need(0, 3 * held, 2 * number * inputs_and_outputs)
    return Need(0, 3 * held, number * (4 * factors + 3 * sum(map(len, e.rows)) + 2 * inputs_and_outputs))


_needs: WeakKeyDictionary[Evaluates, tuple[Need, ...]] = WeakKeyDictionary()


def check(simulate: Evaluates, inputs: Tensor, weights: Tensor) -> None:
    """Refuse a call of a simulator that would take more memory than there is.

    Args:
        simulate: the simulator.
        inputs, weights: of its call, ``(..., groups, inputs)`` and ``(groups, weights)``.

    Raises:
        UserError: it does not fit; says what would.
    """
    found = _needs.get(simulate)
    if found is None:
        found = _needs[simulate] = tuple(_variants(simulate, simulate.method, simulate.real_dtype))
    gradient = torch.is_grad_enabled() and (inputs.requires_grad or weights.requires_grad)
    one = found[2 * gradient + inputs.is_cpu]
    most, groups = inputs.numel(), weights.shape[0]
    if most and one.of(most, groups) < SMALL:  # there are no more samples than numbers
        return
    batch = math.prod(inputs.shape[:-2])
    needed = one.of(batch, groups)
    if needed < SMALL:
        return
    free = SHARE * available(inputs.device)
    if needed <= free:
        return

    def fits(other: Need, samples: int) -> bool:
        return other.of(samples, groups) <= free

    program, observables = lower(simulate.template), simulate.template.observables
    place = 2 * gradient + inputs.is_cpu
    others = [m.name for m in METHODS.values() if m.name != simulate.method and m.supports(program, observables)]
    changed = [(f"method {name!r}", name, simulate.real_dtype) for name in others]
    if simulate.real_dtype == torch.float64:
        changed.append(("dtype complex64", simulate.method, torch.float32))
    ways = [f"{what} fits" for what, m, real in changed if fits(_variants(simulate, m, real)[place], batch)]
    if fits(one, 1):
        ways.insert(0, f"a batch of {_largest(lambda samples: fits(one, samples), batch)} fits")
    _refuse(_subject(simulate.template, simulate.method, batch), needed, free, ways, program.num_qubits)


def check_tables(method: str, template: CircuitTemplate, real: torch.dtype) -> None:
    """Refuse a simulator whose tables alone would take more memory than there is.

    Raises:
        UserError: they do not fit.
    """
    needed = need(method, lower(template), template.observables, real, False, True).fixed
    if needed >= SMALL and needed > (free := SHARE * available(torch.device("cpu"))):
        _refuse(_subject(template, method, 0), needed, free, [], template.num_qubits)


def check_aer(name: str, method: str, qubits: int) -> None:
    """Refuse a circuit whose state does not fit into memory in Aer's simulation method.

    Raises:
        UserError: it does not fit.
    """
    exponent = _EXPONENTS.get(method)
    if exponent is None:  # memory follows from the circuit
        return
    needed = math.ldexp(16.0, min(exponent * qubits, 1000))
    if needed >= SMALL and needed > (free := SHARE * available(torch.device("cpu"))):
        _refuse(f"backend {name!r} with method {method!r} on {qubits} qubits", needed, free, [], qubits, exponent)


def _variants(simulate: Evaluates, method: str, real: torch.dtype) -> list[Need]:
    """Without and with gradients, each elsewhere and on a CPU."""
    program, observables = lower(simulate.template), simulate.template.observables
    compiled = native.library() is not None
    return [
        need(method, program, observables, real, gradient, compiled and cpu)
        for gradient in (False, True)
        for cpu in (False, True)
    ]


def _largest(fits: Callable[[int], bool], too_many: int) -> int:
    low, high = 1, too_many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _subject(template: CircuitTemplate, method: str, batch: int) -> str:
    samples = f" for {batch} sample{'s' if batch != 1 else ''}" if batch else ""
    return f"ansatz {template.name!r} on {template.num_qubits} qubits by method {method!r}{samples}"


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
