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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
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

Asked = tuple[str, int, int]  # ansatz, qubits, layers
Sha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Description(_Data):
    """A template in ``circuits.json``; ``qubits`` and ``layers`` are what the model asked the ansatz for, which is the
    index's unless the template names its own."""

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
    ansatz: str | None = None


class Source(_Data):
    """The file of a user's ansatz as it was when the run began."""

    sha256: Sha
    text: str


class Index(_Data):
    """``circuits.json``; ``ansatz`` is that of ``config.yaml``, ``source`` None for a registered one. Format 2 also has
    circuits of other ansätze, whose files are ``sources``."""

    format: Literal[1, 2]
    ansatz: str
    source: Source | None
    circuits: list[Description]
    sources: dict[str, Source] = {}

    @model_validator(mode="after")
    def _of_its_format(self) -> Index:
        if (self.format == 2) != (len(self.names()) > 1):
            raise ValueError(f"format {self.format} does not go with {len(self.names())} ansätze")
        return self

    @classmethod
    def of(cls, circuits: Circuits, found: Sequence[Kept]) -> dict[str, Any]:
        """The content for these templates; that of one ansatz alone is format 1."""
        first, *others = circuits.ansaetze
        sources = {name: source for name, source in circuits.sources.items() if name in others}
        described = [kept.description for kept in found]
        number: Literal[1, 2] = 2 if sources or any(one.ansatz for one in described) else 1
        source = circuits.sources.get(first)
        index = cls(format=number, ansatz=first, source=source, circuits=described, sources=sources)
        return index.model_dump(mode="json", exclude_defaults=True)

    def names(self) -> tuple[str, ...]:
        """All ansätze of the circuits and sources."""
        return tuple(dict.fromkeys([self.ansatz, *(c.ansatz for c in self.circuits if c.ansatz), *self.sources]))

    def all_sources(self) -> dict[str, Source]:
        """Files of users' ansätze by the ansatz."""
        return self.sources if self.source is None else {self.ansatz: self.source, **self.sources}

    def kept(self, read: Callable[[Description], bytes]) -> dict[Asked, Kept]:
        """The templates by what the model asks for."""
        return {(one.ansatz or self.ansatz, one.qubits, one.layers): Kept(one, read(one)) for one in self.circuits}


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

    ansaetze: tuple[str, ...]  # the run's, as in config.yaml; the first is its ``ansatz``
    run: Path | None = None  # for messages
    begun: bool = False
    trusted: bool = False
    kept: dict[Asked, Kept] | None = None  # None for an old run
    sources: dict[str, Source] = field(default_factory=dict)  # of users' ansätze
    asked: dict[Asked, Kept] = field(default_factory=dict)  # to be written

    def __call__(self, ansatz: str, qubits: int, layers: int) -> CircuitTemplate:
        """The template of that size.

        Raises UserError: no such ansatz or size; a circuit that cannot be kept, or whose file is damaged."""
        if ansatz not in self.ansaetze:  # of another model that is compared with the run's
            self._refuse_file(ansatz)
            return registry.build(ansatz, qubits, layers)
        asked = (ansatz, qubits, layers)
        found = (self.kept or {}).get(asked)
        if found is None and self.begun:
            self._refuse_file(ansatz)
            place = self.ansaetze.index(ansatz)
            found = keep(
                registry.build(*asked), qubits, layers, f"--ansatz: {ansatz!r}", ansatz if place else None, place
            )
            text = registry.source(ansatz)
            if text is not None:
                self.sources[ansatz] = Source(sha256=hashlib.sha256(text.encode()).hexdigest(), text=text)
            self.kept = {**(self.kept or {}), asked: found}
        if found is not None:
            self.asked[asked] = found
            return found.template
        if self.kept is not None:
            several = len(self.ansaetze) > 1
            sizes = [f"{q} qubits and {n} layers{f' of {name!r}' if several else ''}" for name, q, n in self.kept]
            of = f" of {ansatz!r}" if several else ""
            raise UserError(
                f"{self.run}: the configuration asks for circuits of {qubits} qubits and {layers} layers{of}, but "
                f"{FOLDER}/{INDEX} keeps {', '.join(sizes) or 'none'}; was config.yaml changed since the training?"
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
        return Circuits(self.ansaetze, self.run, True, self.trusted, self.kept, dict(self.sources))

    def publish(self) -> dict[str, str]:
        """Name the ansätze without their paths and forget their sources; returns the new names by the old ones."""
        names: dict[str, str] = {}
        for ansatz in self.ansaetze:
            short = Path(ansatz.rpartition(":")[2]).name
            names[ansatz] = next(s for k in count(1) if (s := short + f"-{k}" * (k > 1)) not in names.values())
        public: dict[Asked, Kept] = {}
        for (name, qubits, layers), one in self.asked.items():
            own = {"ansatz": one.description.ansatz and names[name]}
            public[names[name], qubits, layers] = Kept(one.description.model_copy(update=own), one.data)
        self.ansaetze, self.sources, self.kept, self.asked = tuple(names.values()), {}, public, dict(public)
        return names

    @property
    def digest(self) -> str | None:
        """Of everything that is kept; None where nothing is."""
        if not self.kept:
            return None
        marks = sorted(
            ((qubits, layers), kept.description.fingerprint, *([] if name == self.ansaetze[0] else [name]))
            for (name, qubits, layers), kept in self.kept.items()
        )
        return hashlib.sha256(repr(marks).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write what was asked for into ``folder``; nothing for a model without circuits."""
        if not self.asked:
            return
        folder.mkdir()
        found = list(self.asked.values())
        for kept in found:
            write_bytes(folder / kept.description.file, kept.data)
        write_json(folder / INDEX, Index.of(self, found))


def of_run(run: Path, ansaetze: tuple[str, ...], trusted: bool) -> Circuits:
    """The circuits of a run folder; warns once for each file of an ansatz that is not what it was.

    Raises UserError: a damaged index or QPY file, or an index of another ansatz."""
    place = run / FOLDER / INDEX
    if not os.path.lexists(run / FOLDER):
        return Circuits(ansaetze, run, trusted=trusted)
    try:
        index = Index.model_validate_json(_bytes(place))
    except ValidationError as error:
        raise UserError(f"{place} is damaged: {sentence(error)}") from error
    if index.ansatz != ansaetze[0] or not set(index.names()) <= set(ansaetze):
        named, found = (", ".join(map(repr, names)) for names in (ansaetze, index.names()))
        raise UserError(f"{run / 'config.yaml'}: ansatz is {named}, but {place} keeps the circuits of {found}")
    kept = index.kept(lambda one: _bytes(place.with_name(one.file)))
    for one in kept.values():
        try:
            _ = one.template
        except ValueError as error:
            raise UserError(f"{place.with_name(one.description.file)} is damaged: {error}") from error
    for ansatz, source in index.all_sources().items():
        _compare(run, ansatz, source)
    return Circuits(ansaetze, run, trusted=trusted, kept=kept, sources=index.all_sources())


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


def keep(
    template: CircuitTemplate,
    qubits: int,
    layers: int,
    named: str = "the ansatz",
    ansatz: str | None = None,
    place: int = 0,
) -> Kept:
    """The template as data, read back once; ``ansatz`` and its ``place`` among the run's where it is not the first.
    Raises UserError: QPY cannot hold the circuit, or holds another one."""
    circuit = template.circuit.copy(name=template.circuit.name)
    circuit.metadata = {}
    file = io.BytesIO()
    try:
        qpy.dump(circuit, file, version=QPY)
        data = file.getvalue()
        if len(data) > LARGEST:
            raise ValueError(f"{len(data):,} bytes are too many (at most {LARGEST:,})")
        described = Description(
            file=f"{qubits}-qubits-{layers}-layers{f'-{place + 1}' if place else ''}.qpy",
            ansatz=ansatz,
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
