"""Ansätze: a parameterised circuit with its roles named, and its encodings."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import ControlFlowOp, ControlledGate, Delay, Instruction, Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import (
    Barrier,
    Measure,
    Reset,
    UnitaryGate,
    XXPlusYYGate,
    get_standard_gate_name_mapping,
)
from qiskit.quantum_info import Pauli, SparsePauliOp

from qrkt_hw.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
Encoding = Literal["angle", "unary", "unary_tree"]


def z_observables(num_qubits: int) -> tuple[SparsePauliOp, ...]:
    """``<Z_j>`` for every qubit j, in order of j."""
    return tuple(SparsePauliOp.from_sparse_list([("Z", [j], 1.0)], num_qubits=num_qubits) for j in range(num_qubits))


@dataclass(frozen=True, eq=False)
class CircuitTemplate:
    """A circuit to be evaluated for many inputs and trained over its weights.

    Attributes:
        name: name under which it is registered.
        circuit: parameterised, without measurements; it starts in ``|0...0>``.
        inputs: parameters that take features, in feature order.
        weights: trainable parameters, in the order of the layer's ``.weight``.
        observables: what is measured; one real value each. Hermitian sums of Pauli strings, or a single one.
        topology: which pairs of qubits its two-qubit gates join: ``chain``, ``ring``, ``all``, ``none``,
            ``hypercube``.
        reference: where the circuit comes from.
        encoding: how features become ``inputs``. ``angle``: they are the angles. ``unary``, ``unary_tree``: they are
            the amplitudes of one excitation, which :func:`unary_encoding` loads from spherical angles; outputs are
            multiplied by the norm of the features.
        initial: angles to begin with, by name, such as ``identity``: a number for each weight. A layer takes the first
            ones; without any, its angles are drawn.
        source: of a template that :func:`~qrkt_hw.compiler.derive` or :func:`by_angles` wrote, the one it was written
            from.

    The circuit is copied: a gate appended to the original later does not enter the template.

    Raises TypeError for a part of another kind, ValueError where parameters and roles differ, an observable does not
    fit or is not Hermitian, or the circuit has no qubits, measures, resets or branches.
    """

    name: str
    circuit: QuantumCircuit
    inputs: ParameterVector | tuple[Parameter, ...]
    weights: ParameterVector | tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...] = field(default=())
    topology: str = "unknown"
    reference: str = ""
    encoding: Encoding = "angle"
    initial: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    source: CircuitTemplate | None = field(default=None, repr=False)
    num_qubits: int = field(init=False, repr=False)
    num_features: int = field(init=False, repr=False)
    num_inputs: int = field(init=False, repr=False)
    num_weights: int = field(init=False, repr=False)
    num_outputs: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.circuit, QuantumCircuit):
            raise TypeError(f"template {self.name!r}: circuit is a {type(self.circuit).__name__}, not a QuantumCircuit")
        if not self.circuit.num_qubits:
            raise ValueError(f"template {self.name!r}: the circuit has no qubits")
        object.__setattr__(self, "inputs", self._roles("inputs"))
        object.__setattr__(self, "weights", self._roles("weights"))
        known = self.parameters
        if len(set(known)) != len(known):
            raise ValueError(f"template {self.name!r}: a parameter is named twice among inputs and weights")
        if set(known) != set(self.circuit.parameters):
            odd = sorted(p.name for p in set(known) ^ set(self.circuit.parameters))
            raise ValueError(f"template {self.name!r}: parameters {odd} are not both in the circuit and declared")
        given = self.observables
        alone = (given,) if isinstance(given, (SparsePauliOp, Pauli, str)) and given != "" else given
        if not isinstance(alone, Iterable):
            raise TypeError(f"template {self.name!r}: observables are a {type(given).__name__}, not Pauli strings")
        found = tuple(alone) or z_observables(self.circuit.num_qubits)
        object.__setattr__(self, "observables", tuple(self._as_operator(o) for o in found))
        if self.encoding not in get_args(Encoding):
            names = ", ".join(get_args(Encoding))
            raise ValueError(f"template {self.name!r}: encoding is {self.encoding!r}; there are {names}")
        for start, angles in self.initial.items():
            if len(angles) != len(self.weights) or not np.isfinite(angles).all():
                wanted = f"{len(self.weights)} finite angles, one for each weight"
                raise ValueError(f"template {self.name!r}: initial {start!r} must be {wanted}")
        features = len(self.inputs) + (self.encoding != "angle")
        counts = self.circuit.num_qubits, features, len(self.inputs), len(self.weights), len(found)
        for count, role in zip(counts, ("qubits", "features", "inputs", "weights", "outputs"), strict=True):
            object.__setattr__(self, f"num_{role}", count)
        try:
            object.__setattr__(self, "circuit", _plain(self.circuit))
        except (RecursionError, ValueError) as error:
            what = "a gate is defined by itself" if isinstance(error, RecursionError) else error
            raise ValueError(f"template {self.name!r}: {what}") from error

    def __deepcopy__(self, memo: dict) -> CircuitTemplate:
        return self  # never changed

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _REMEMBERED}

    @property
    def parameters(self) -> list[Parameter]:
        """Inputs, then weights: the order of the last axis of parameter values everywhere."""
        return [*self.inputs, *self.weights]

    def _roles(self, role: str) -> ParameterVector | tuple[Parameter, ...]:
        given = getattr(self, role)
        if isinstance(given, ParameterVector):
            return given
        found = tuple(given) if isinstance(given, Iterable) else (given,)
        odd = [p for p in found if not isinstance(p, Parameter)]
        if odd or not isinstance(given, Iterable):
            kind = type(odd[0] if odd else given).__name__
            what = f"{role} must be a ParameterVector or a list of Parameter"
            raise TypeError(f"template {self.name!r}: {what}, not {kind}")
        return found

    def _as_operator(self, observable: SparsePauliOp | Pauli | str) -> SparsePauliOp:
        mine = f"template {self.name!r}"
        if not isinstance(observable, (SparsePauliOp, Pauli, str)):
            kind = type(observable).__name__
            raise TypeError(f"{mine}: an observable is a {kind}, not a SparsePauliOp, a Pauli or a string")
        try:
            operator = SparsePauliOp(observable)
        except Exception as error:
            raise ValueError(f"{mine}: {observable!r} is no Pauli string: {error}") from error
        if (on := operator.num_qubits) != self.circuit.num_qubits:
            raise ValueError(f"{mine}: observable on {on} qubits, circuit on {self.circuit.num_qubits}")
        if operator.coeffs.dtype.kind not in "fc":
            raise ValueError(f"{mine}: a coefficient of an observable is no number")
        if not np.isfinite(operator.coeffs).all():
            raise ValueError(f"{mine}: a coefficient of an observable is not finite")
        if operator.coeffs.imag.any() or operator.paulis.phase.any():
            raise ValueError(f"{mine}: an observable has a complex coefficient, so it is not Hermitian")
        return operator


_REMEMBERED = "_remembered"


def remembered(function: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Keep the results of ``function(template, *arguments)`` on the template itself: they live as long as it does."""

    @wraps(function)
    def looked_up(template: Any, *arguments: P.args, **named: P.kwargs) -> T:
        held = vars(template).setdefault(_REMEMBERED, {})
        key = (function, arguments, *named.items())
        if key not in held:
            held[key] = function(template, *arguments, **named)
        return held[key]

    return looked_up


@remembered
def by_angles(template: CircuitTemplate) -> CircuitTemplate:
    """The template as a device runs it: its inputs are the angles of its encoding, and nothing is multiplied."""
    return template if template.encoding == "angle" else replace(template, encoding="angle", source=template)


@lru_cache(maxsize=1)
def _standard() -> dict[type, str]:
    return {getattr(g, "base_class", type(g)): name for name, g in get_standard_gate_name_mapping().items()}


def standard_name(gate: Any) -> str:
    """The name of one of Qiskit's standard gates, by its class; empty for others, whatever they are called."""
    if isinstance(gate, (Barrier, Delay)):
        return "barrier"
    if isinstance(gate, ControlledGate) and gate.ctrl_state != 2**gate.num_ctrl_qubits - 1:
        return ""
    return _standard().get(getattr(gate, "base_class", type(gate)), "")


def definition_of(gate: Any) -> QuantumCircuit | None:
    """The circuit a gate stands for, None where it has none; ValueError where it cannot say."""
    try:
        return getattr(gate, "definition", None)
    except RecursionError:
        raise
    except Exception as error:
        raise ValueError(f"gate {gate.name!r} has no definition: {error}") from error


def _plain(circuit: QuantumCircuit) -> QuantumCircuit:
    """A copy in which no gate bears another's name: compilers go by the name, so such gates become what they stand for.

    Classical bits, which nothing can use here, are left out.
    """
    if not any([_borrowed(i.operation) for i in circuit.data]) and not circuit.num_clbits:  # all are checked
        return circuit.copy()
    copy = QuantumCircuit(circuit.qubits, *circuit.qregs, name=circuit.name, global_phase=circuit.global_phase)
    for instruction in circuit.data:
        _append_plain(copy, instruction.operation, [circuit.find_bit(q).index for q in instruction.qubits])
    return copy


def _borrowed(gate: Any) -> bool:
    """Whether a gate, or one within it, has the name of a standard gate and is another."""
    if isinstance(gate, (Measure, Reset, ControlFlowOp)) or getattr(gate, "num_clbits", None):
        raise ValueError(f"{gate.name} is not allowed in a template")
    if standard_name(gate):
        return False
    if gate.name == "barrier" or gate.name in _standard().values():
        return True
    if isinstance(gate, UnitaryGate) or not isinstance(gate, Instruction):
        return False
    try:
        inner = definition_of(gate)
    except ValueError:  # whoever needs it will say so
        return False
    return inner is not None and any(_borrowed(i.operation) for i in inner.data)


def _append_plain(circuit: QuantumCircuit, gate: Any, qubits: list[int]) -> None:
    if not _borrowed(gate):
        circuit.append(gate, qubits)
        return
    inner = definition_of(gate)
    if inner is None:
        raise ValueError(f"a gate is called {gate.name!r} like one of Qiskit's, but is another and has no definition")
    circuit.global_phase += inner.global_phase
    for instruction in inner.data:
        _append_plain(circuit, instruction.operation, [qubits[inner.find_bit(q).index] for q in instruction.qubits])


def base_and_index(name: str) -> tuple[str, int]:
    """``x[3]`` as ``("x", 3)``, and so ``_x_3_``, which is how OpenQASM 3 spells it; ``("a", -1)`` of ``a``."""
    found = re.fullmatch(r"_?(.*?)(?:\[(\d+)\]|_(\d+)_?)", name)
    return (name, -1) if found is None else (found[1], int(found[2] or found[3]))


def by_name(circuit: QuantumCircuit, name: str) -> list[Parameter]:
    """The parameter of that name, else those of the vector of that name, in the order of their indices."""
    alone = [p for p in circuit.parameters if p.name == name]
    found = [(base_and_index(p.name), p) for p in circuit.parameters]
    return alone or [p for (base, _), p in sorted(found, key=lambda pair: pair[0]) if base == name]


INPUTS = ("x", "in", "input", "inputs", "feature", "features")  # vectors that hold features in a file
FILES = (".qasm", ".qasm3", ".qpy")


def read_circuit(path: Path) -> QuantumCircuit:
    """The circuit in a file of OpenQASM 3 (``.qasm``, ``.qasm3``) or QPY (``.qpy``).

    Raises UserError: no such file, another kind of file, a damaged one, or not exactly one circuit in it.
    """
    from qiskit import qasm3, qpy

    if path.suffix not in FILES:
        raise UserError(f"{path} is no circuit file; there are {', '.join(FILES)}")
    if not path.is_file():
        raise UserError(f"no file {str(path)!r}")
    said = io.StringIO()
    try:
        if path.suffix == ".qpy":
            with path.open("rb") as file:
                found = qpy.load(file)
            if len(found) != 1:
                raise ValueError(f"it holds {len(found)} circuits, not one")
            circuit = found[0]
        else:
            text = path.read_text(encoding="utf-8")
            if re.search(r"^\s*OPENQASM\s+2", text, re.M):
                raise ValueError("it is OpenQASM 2, which has no parameters")
            with redirect_stderr(said):  # where the parser tells what is wrong
                circuit = qasm3.loads(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Qiskit's reader is no Exception
        kind, why = "QPY" if path.suffix == ".qpy" else "OpenQASM 3", said.getvalue() or str(error)
        raise UserError(f"{path} cannot be read as {kind}: {' '.join(why.split())[:200]}") from error
    if not isinstance(circuit, QuantumCircuit):
        raise UserError(f"{path} holds a {type(circuit).__name__}, not a circuit")
    return circuit


def read_template(path: Path) -> CircuitTemplate:
    """A template from a file: inputs are the parameters called x, input(s) or feature(s), all others weights.

    Observables are Z on every qubit. Raises UserError as :func:`read_circuit`, and where no input is found.
    """
    circuit = read_circuit(path)
    circuit.remove_final_measurements()
    inputs = [p for name in INPUTS for p in by_name(circuit, name)]
    if not inputs:
        there = ", ".join(p.name for p in circuit.parameters) or "none"
        raise UserError(f"{path}: no parameter is called {', '.join(INPUTS)}; there are {there}")
    taken = set(inputs)
    weights = sorted((p for p in circuit.parameters if p not in taken), key=lambda p: base_and_index(p.name))
    try:
        return CircuitTemplate(path.stem, circuit, tuple(inputs), tuple(weights), reference=path.name)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def angle_encoding(num_qubits: int, axis: str = "y", name: str = "x") -> tuple[QuantumCircuit, ParameterVector]:
    """A circuit with one rotation about ``axis`` by feature j on every qubit j, and the vector of its features."""
    inputs = ParameterVector(name, num_qubits)
    circuit = QuantumCircuit(num_qubits)
    for qubit, feature in enumerate(inputs):
        getattr(circuit, f"r{axis}")(feature, qubit)
    return circuit, inputs


def loader(encoding: Encoding, features: int) -> list[tuple[range, range]]:
    """How amplitude is shared out from the first feature: each step moves the norm of the second range of features
    from the first one of the first range to its own first one. ``unary`` is a chain, ``unary_tree`` a balanced tree."""
    steps, ready = [], [range(features)]
    while ready:  # breadth first, so that steps on different qubits are neighbours in time
        part = ready.pop(0)
        if len(part) < 2:
            continue
        middle = 1 if encoding == "unary" else (len(part) + 1) // 2
        steps.append((part[:middle], part[middle:]))
        ready += [part[:middle], part[middle:]]
    return steps


def unary_angles(encoding: Encoding, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spherical angles ``(..., features - 1)`` of vectors ``(..., features)``; those of 0 are 0."""

    def size(part: range) -> NDArray[np.float64]:  # one feature keeps its sign
        chosen = features[..., part.start : part.stop]
        return chosen[..., 0] if len(part) == 1 else np.linalg.norm(chosen, axis=-1)

    found = [np.arctan2(size(second), size(first)) for first, second in loader(encoding, features.shape[-1])]
    return np.stack(found, axis=-1) if found else features[..., :0]


def rbs(circuit: QuantumCircuit, angle: Any, first: int, second: int) -> None:
    """Append a Givens rotation (reconfigurable beam splitter): amplitudes of one excitation on the two qubits become
    ``cos a * first - sin a * second`` and ``sin a * first + cos a * second``."""
    circuit.append(XXPlusYYGate(2 * angle, -np.pi / 2), [second, first])


def unary_encoding(features: int, encoding: Encoding = "unary") -> tuple[QuantumCircuit, ParameterVector]:
    """A circuit on a reference qubit 0 and a qubit for each feature, and the vector of its spherical angles.

    Its state is ``(|1 on the reference> + sum_j x_j |1 on qubit j + 1>) / sqrt(2)`` for features ``x`` of norm 1.
    Raises ValueError: fewer than two features, whose angles would not hold a sign.
    """
    if features < 2:
        raise ValueError(f"a unary encoding needs at least 2 features, not {features}")
    inputs = ParameterVector("phi", features - 1)
    circuit = QuantumCircuit(features + 1)
    circuit.x(0)
    rbs(circuit, np.pi / 4, 0, 1)
    for angle, (first, second) in zip(inputs, loader(encoding, features), strict=True):
        rbs(circuit, angle, first.start + 1, second.start + 1)
    return circuit, inputs


def orthogonal(
    name: str, features: int, layers: Iterable[Iterable[tuple[int, int]]], *, topology: str, reference: str,
    encoding: Encoding = "unary",
) -> CircuitTemplate:  # fmt: skip
    """Givens rotations on pairs of features after a unary encoding, read by ``<X_reference X_j>`` for every feature j.

    The outputs are ``W x`` with a real orthogonal matrix W of the weights, signs included. All are read in one
    measurement basis, X on every qubit.
    """
    circuit, inputs = unary_encoding(features, encoding)
    pairs = [pair for layer in layers for pair in layer]
    weights = ParameterVector("theta", len(pairs))
    for weight, (first, second) in zip(weights, pairs, strict=True):
        rbs(circuit, weight, first + 1, second + 1)
    read = [SparsePauliOp.from_sparse_list([("XX", [0, j + 1], 1.0)], features + 1) for j in range(features)]
    return CircuitTemplate(name, circuit, inputs, weights, tuple(read), topology, reference, encoding)


def ring(num_qubits: int) -> Iterable[tuple[int, int]]:
    """Neighbours on a ring; one pair only for two qubits, none for one."""
    if num_qubits == 2:
        return [(0, 1)]
    return [(j, (j + 1) % num_qubits) for j in range(num_qubits)] if num_qubits > 2 else []


def behind_angle_encoding(name: str, ansatz: QuantumCircuit, *, topology: str, reference: str) -> CircuitTemplate:
    """RY(x_j) on every qubit, then ``ansatz``; its parameters become the weights, in the ansatz' own order."""
    circuit, inputs = angle_encoding(ansatz.num_qubits)
    weights = ParameterVector("theta", ansatz.num_parameters)
    circuit.compose(ansatz.assign_parameters(list(weights)), inplace=True)
    return CircuitTemplate(name, circuit, inputs, weights, topology=topology, reference=reference)
