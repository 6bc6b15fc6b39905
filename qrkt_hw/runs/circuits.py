"""The circuits of a run, kept as data: ``circuits/circuits.json``, and one QPY file for each distinct template.

A run is trained on the templates that were read back from these files, and every later command reads the same files, so
that neither an edited source nor another version of this package changes what a trained run computes. QPY holds no
Python code. Roles are ordered lists of parameter names; the fingerprint does not depend on names, nor on the bytes that
a version of Qiskit writes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from qiskit import QuantumCircuit, qpy
from qiskit.circuit import AnnotatedOperation, Parameter, ParameterExpression
from qiskit.circuit.library import PauliEvolutionGate
from qiskit.exceptions import QiskitError
from qiskit.quantum_info import Operator, SparsePauliOp

from qrkt_hw import circuits as registry
from qrkt_hw.ansatz import CircuitTemplate, Encoding
from qrkt_hw.errors import RunWarning, UserError, sentence
from qrkt_hw.runs.atomic import write_bytes, write_json

FOLDER, INDEX = "circuits", "circuits.json"
QPY = 13  # read by every Qiskit since 1.3; the only layout whose sizes are checked before it is read
LARGEST = 16 * 2**20  # bytes of a file
LARGEST_SOURCE = 2**20  # bytes of a user's file that are compared

Sha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Description(_Data):
    """A template in ``circuits.json``; ``qubits`` and ``layers`` are what the model asked the ansatz for."""

    file: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,80}\.qpy$")]
    sha256: Sha
    qubits: int = Field(ge=1, le=10_000)
    layers: int = Field(ge=1, le=10_000)
    name: str
    num_qubits: int = Field(ge=1, le=10_000)
    inputs: list[str]  # names of the circuit's parameters, in the order of their roles
    weights: list[str]
    observables: list[list[tuple[str, float]]] = Field(min_length=1)  # for each value Pauli strings and coefficients
    topology: str
    reference: str
    encoding: Encoding
    initial: dict[str, tuple[float, ...]] = {}
    fingerprint: Sha


class Source(_Data):
    """The file of a user's ansatz as it was when the run began."""

    sha256: Sha
    text: str


class Index(_Data):
    """``circuits.json``; ``ansatz`` is that of ``config.yaml``, ``source`` None for a registered one."""

    format: Literal[1]
    ansatz: str
    source: Source | None
    circuits: list[Description]


@dataclass(frozen=True)
class Kept:
    """A template as data: its description and the bytes of its QPY file."""

    description: Description
    data: bytes

    @cached_property
    def template(self) -> CircuitTemplate:
        """The template, read back once.

        Raises:
            ValueError: the data are damaged, or not what the description says.
        """
        one = self.description
        if hashlib.sha256(self.data).hexdigest() != one.sha256:
            raise ValueError(f"its sha256 is not the one in {INDEX}")
        _check_header(self.data, one.num_qubits)
        try:
            (circuit,) = qpy.load(io.BytesIO(self.data))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Qiskit's reader is no Exception
            raise ValueError(f"it is not QPY that can be read ({_short(error)})") from error
        if not isinstance(circuit, QuantumCircuit) or circuit.num_qubits != one.num_qubits:
            raise ValueError(f"it does not hold a circuit on {one.num_qubits} qubits")
        found = {parameter.name: parameter for parameter in circuit.parameters}
        missing = [name for name in (*one.inputs, *one.weights) if name not in found]
        if missing:
            raise ValueError(f"its circuit has no parameter {missing[0]!r}")
        try:
            observables = tuple(SparsePauliOp([word for word, _ in o], [c for _, c in o]) for o in one.observables)
        except QiskitError as error:
            raise ValueError(f"{INDEX} holds an observable that is none ({_short(error)})") from error
        inputs, weights = (tuple(found[name] for name in role) for role in (one.inputs, one.weights))
        template = CircuitTemplate(
            one.name,
            circuit,
            inputs,
            weights,
            observables,
            one.topology,
            one.reference,
            one.encoding,
            one.initial,
        )
        if fingerprint(template) != one.fingerprint:
            raise ValueError(f"its circuit is not the one that {INDEX} describes (another fingerprint)")
        return template


@dataclass
class Circuits:
    """The circuits of a run: ``circuits(ansatz, qubits, layers)`` is a template.

    Of a new run (``begun``) each is built when it is first asked for, turned into data, and read back. Of a run with
    kept circuits it is the kept one, and none other is made. Of an old run without, a registered ansatz is built by its
    name, and a user's file is imported only where ``trusted``.
    """

    ansatz: str  # the run's, as in config.yaml
    run: Path | None = None  # for messages
    begun: bool = False
    trusted: bool = False
    kept: dict[tuple[int, int], Kept] | None = None  # by qubits and layers; None for an old run
    source: Source | None = None  # of a user's ansatz
    asked: dict[tuple[int, int], Kept] = field(default_factory=dict)  # to be written

    def __call__(self, ansatz: str, qubits: int, layers: int) -> CircuitTemplate:
        """The template of that size.

        Raises UserError: no such ansatz or size; a circuit that cannot be kept, or whose file is damaged."""
        if ansatz != self.ansatz:  # of another model that is weighed against the run's
            self._refuse_file(ansatz)
            return registry.build(ansatz, qubits, layers)
        size = (qubits, layers)
        found = (self.kept or {}).get(size)
        if found is None and self.begun:
            self._refuse_file(ansatz)
            found = keep(registry.build(ansatz, qubits, layers), qubits, layers, f"--ansatz: {ansatz!r}")
            text = registry.source(ansatz)
            if text is not None:
                self.source = Source(sha256=hashlib.sha256(text.encode()).hexdigest(), text=text)
            self.kept = {**(self.kept or {}), size: found}
        if found is not None:
            self.asked[size] = found
            return found.template
        if self.kept is not None:
            sizes = ", ".join(f"{q} qubits and {n} layers" for q, n in self.kept) or "none"
            raise UserError(
                f"{self.run}: the configuration asks for circuits of {qubits} qubits and {layers} layers, but "
                f"{FOLDER}/{INDEX} keeps {sizes}; was config.yaml changed since the training?"
            )
        self._refuse_file(ansatz)
        return registry.build(ansatz, qubits, layers)

    def _refuse_file(self, ansatz: str) -> None:
        # a new run's file was named by the user, unless the new run takes its circuits from another
        own = self.begun and self.run is None
        if not self.trusted and not own and ansatz not in registry.names():
            raise UserError(
                f"run: {self.run} keeps no circuits, and its ansatz {ansatz!r} is a Python file that would be run here;"
                " where you know that file, say --trust-ansatz (in Python: load(..., trust=True))"
            )

    def again(self) -> Circuits:
        """The same circuits for a new run."""
        return Circuits(self.ansatz, self.run, True, self.trusted, self.kept, self.source)

    @property
    def digest(self) -> str | None:
        """Of everything that is kept; None where nothing is."""
        if not self.kept:
            return None
        marks = sorted((size, kept.description.fingerprint) for size, kept in self.kept.items())
        return hashlib.sha256(repr(marks).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write what was asked for into ``folder``; nothing for a model without circuits."""
        if not self.asked:
            return
        folder.mkdir()
        found = list(self.asked.values())
        for kept in found:
            write_bytes(folder / kept.description.file, kept.data)
        index = Index(format=1, ansatz=self.ansatz, source=self.source, circuits=[k.description for k in found])
        write_json(folder / INDEX, index.model_dump(mode="json", exclude_defaults=True))


def of_run(run: Path, ansatz: str, trusted: bool) -> Circuits:
    """The circuits of a run folder; warns once where the file of its ansatz is not what it was.

    Raises UserError: a damaged index or QPY file, or an index of another ansatz."""
    place = run / FOLDER / INDEX
    if not os.path.lexists(run / FOLDER):
        return Circuits(ansatz, run, trusted=trusted)
    try:
        index = Index.model_validate_json(_bytes(place))
    except ValidationError as error:
        raise UserError(f"{place} is damaged: {sentence(error)}") from error
    if index.ansatz != ansatz:
        raise UserError(
            f"{run / 'config.yaml'}: ansatz is {ansatz!r}, but {place} keeps the circuits of {index.ansatz!r}"
        )
    kept = {}
    for one in index.circuits:
        file = place.with_name(one.file)
        kept[one.qubits, one.layers] = Kept(one, _bytes(file))
        try:
            _ = kept[one.qubits, one.layers].template
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from error
    if index.source is not None:
        _compare(run, ansatz, index.source)
    return Circuits(ansatz, run, trusted=trusted, kept=kept, source=index.source)


def _compare(run: Path, ansatz: str, source: Source) -> None:
    file = Path(ansatz.rpartition(":")[0])
    try:
        if not file.is_file():
            return
        same = file.stat().st_size <= LARGEST_SOURCE and registry.read(file) == source.text
    except (OSError, ValueError, SyntaxError):
        same = False
    if not same:
        warnings.warn(f"{file} has changed since {run} was trained; the run's own circuits are used", RunWarning)


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            found = "is damaged: it is no regular file" if os.path.lexists(path) else "is missing"
            raise UserError(f"{path} {found}")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is damaged: {path.stat().st_size:,} bytes are too many (at most {LARGEST:,})")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def keep(template: CircuitTemplate, qubits: int, layers: int, named: str = "the ansatz") -> Kept:
    """The template as data, read back once. Raises UserError: QPY cannot hold the circuit, or holds another one."""
    circuit = template.circuit.copy(name=template.circuit.name)
    circuit.metadata = {}
    file = io.BytesIO()
    try:
        qpy.dump(circuit, file, version=QPY)
        data = file.getvalue()
        if len(data) > LARGEST:
            raise ValueError(f"{len(data):,} bytes are too many (at most {LARGEST:,})")
        described = Description(
            file=f"{qubits}-qubits-{layers}-layers.qpy",
            sha256=hashlib.sha256(data).hexdigest(),
            qubits=qubits,
            layers=layers,
            name=template.name,
            num_qubits=template.num_qubits,
            inputs=[p.name for p in template.inputs],
            weights=[p.name for p in template.weights],
            observables=[[(word, float(c.real)) for word, c in o.to_list()] for o in template.observables],
            topology=template.topology,
            reference=template.reference,
            encoding=template.encoding,
            initial=dict(template.initial),
            fingerprint=fingerprint(template),
        )
        kept = Kept(described, data)
        _ = kept.template
    except UserError:
        raise
    except Exception as error:  # a gate of the user's own may fail in any way
        raise UserError(
            f"{named} cannot be kept as data (QPY), so no run can be trained with it: {_short(error)}; give a gate of "
            "your own a definition of standard gates, or take a UnitaryGate"
        ) from error
    return kept


_HEADER = struct.Struct("!6sBBBBQc1sH1cHIIQIQI")  # of the file, of its first program, of its circuit


def _check_header(data: bytes, num_qubits: int) -> None:
    """Sizes that the reader would reserve memory for, of the circuit itself."""
    if len(data) < _HEADER.size or data[:7] != b"QISKIT" + bytes([QPY]):
        raise ValueError(f"it is not QPY of version {QPY}")
    head = _HEADER.unpack_from(data)
    programs, kind, qubits, clbits, metadata, registers, instructions = (head[k] for k in (5, 7, 11, 12, 13, 14, 15))
    if programs != 1 or kind != b"q" or qubits != num_qubits or clbits:
        raise ValueError(f"it does not hold one circuit on {num_qubits} qubits")
    if max(metadata, registers, instructions) > len(data):
        raise ValueError("it is cut off")


def fingerprint(template: CircuitTemplate) -> str:
    """SHA-256 of gates, roles and observables.

    Parameters count by their role and place, not by their names; numbers count exactly. An expression counts by its
    values at two points, rounded to 1e-6, so that a version of Qiskit that writes or sums it differently agrees.
    """
    place = {parameter: k for k, parameter in enumerate(template.parameters)}
    unary = [] if template.encoding == "angle" else [template.encoding]  # older fingerprints name none
    content = [
        [template.num_qubits, template.num_inputs, template.num_weights, *unary],
        _gates(template.circuit, place),
        [[[word, float(c.real).hex()] for word, c in o.to_list()] for o in template.observables],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _gates(circuit: QuantumCircuit, place: dict[Parameter, int]) -> list[Any]:
    return [
        [_gate(one.operation, place), [circuit.find_bit(q).index for q in one.qubits]]
        for one in circuit.data
        if one.operation.name != "barrier"
    ]


def _gate(gate: Any, place: dict[Parameter, int]) -> list[Any]:
    if isinstance(gate, AnnotatedOperation):
        return [repr(gate.modifiers), _gate(gate.base_op, place)]
    kind = getattr(gate, "base_class", type(gate))  # the class of a singleton has no module
    params = [_number(p, place) for p in gate.params]
    described = [gate.name, getattr(gate, "ctrl_state", None), params]
    if kind.__module__.startswith("qiskit.circuit.library") and kind is not PauliEvolutionGate:
        return [*described, kind.__name__]
    if gate.definition is not None:
        return [*described, _gates(gate.definition, place)]
    return described if gate.name == "delay" else [*described, _number(Operator(gate).data, place)]


def _number(value: Any, place: dict[Parameter, int]) -> Any:
    """A gate's parameter: text for a number, a list for an expression."""
    if isinstance(value, ParameterExpression) and value.parameters:
        names = sorted(place[p] for p in value.parameters)
        if isinstance(value, Parameter):
            return names
        return [names, [_at(value, place, start) for start in (0.3, 0.7)]]
    if isinstance(value, ParameterExpression):
        value = value.numeric()
    if isinstance(value, np.ndarray):
        found = np.ascontiguousarray(value, dtype=complex)
        return f"{found.shape} {hashlib.sha256(found.tobytes()).hexdigest()}"
    if isinstance(value, (int, float, np.number)) and not isinstance(value, complex):
        return float(np.real(value)).hex()
    return repr(complex(value)) if isinstance(value, complex) else str(value)


def _at(value: ParameterExpression, place: dict[Parameter, int], start: float) -> str:
    point = {p: start + (place[p] + 1) * 0.6180339887 % 1 for p in value.parameters}
    found = complex(value.bind(point).numeric())
    return f"{found.real + 0.0:.6f} {found.imag + 0.0:.6f}"


def _short(error: BaseException) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
