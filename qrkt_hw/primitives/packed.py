"""A sampler and an estimator of Qiskit's interface that run replicas side by side."""

from __future__ import annotations

import hashlib
import uuid
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from threading import RLock
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.exceptions import QiskitError
from qiskit.primitives import (
    BasePrimitiveJob,
    BaseSamplerV2,
    BitArray,
    DataBin,
    PrimitiveResult,
    PubResult,
    SamplerPubResult,
)
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.providers import JobStatus

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.aer import AerBackend
from qrkt_hw.backends.base import Backend, Call
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.backends.device.pubs import PUB
from qrkt_hw.backends.objects import of
from qrkt_hw.backends.registry import resolve
from qrkt_hw.errors import UserError, in_python
from qrkt_hw.primitives.circuits import Prepared, Term, prepare, whole_circuit

Floats = NDArray[np.float64]
# by backend: threads run one after the other, as a run sets the samples' generator and the packer's options
_locks: WeakKeyDictionary[DeviceBackend, Any] = WeakKeyDictionary()
DEFAULT_SHOTS = 1024  # Qiskit's


class PrimitiveError(QiskitError, UserError):
    """What keeps a primitive from running, in one sentence."""

    def __str__(self) -> str:  # without the quotes that Qiskit adds
        return str(self.message)


class PubError(PrimitiveError, ValueError):
    """A PUB that cannot be run as it is; nothing was sent."""


@contextmanager
def pub_errors(tag: str) -> Iterator[None]:
    """Raise what is wrong with a PUB as PubError, in one sentence that names it."""
    try:
        yield
    except PubError:
        raise
    except (ValueError, QiskitError, UserError) as error:
        message = error.message if isinstance(error, QiskitError) else str(error)
        raise PubError(f"{tag}: {' '.join(message.split())}") from error


class PackedJob(BasePrimitiveJob[PrimitiveResult, JobStatus]):
    """A job that is done."""

    def __init__(self, result: PrimitiveResult) -> None:
        super().__init__(str(uuid.uuid4()))
        self._result = result

    def result(self) -> PrimitiveResult:
        return self._result

    def status(self) -> JobStatus:
        return JobStatus.DONE

    def done(self) -> bool:
        return True

    def running(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def in_final_state(self) -> bool:
        return True

    def cancel(self) -> bool:
        return False


@dataclass
class Work:
    """What a list of PUBs takes: calls that are packed, and circuits that stay whole."""

    calls: list[Call] = field(default_factory=list)
    whole: list[PUB] = field(default_factory=list)
    key: str = ""  # a hash of the PUBs


class PackedPrimitive(ABC):
    """What both primitives do: open the device, keep the journal, make work of PUBs and results of what was counted."""

    kind: str

    def __init__(
        self,
        backend: Any,
        shots: int | None,
        seed: int | None,
        journal: Journal | Path | str | None,
        budget: Budget | None,
        progress: Callable[[str], None] | None,
        device: dict[str, Any],
    ) -> None:
        if isinstance(seed, bool) or not (seed is None or (isinstance(seed, Integral) and seed >= 0)):
            raise ValueError(f"seed is {seed!r}; it must be a whole number from 0 on, or None")
        seed = None if seed is None else int(seed)
        self.backend, self.seed, self.progress = device_backend(backend, shots, seed, device), seed, progress
        self.budget = Budget.of(self.backend, budget)
        self._run, self._failed = 0, False  # runs that are done; whether the last one was not
        self._prepared: dict[bytes, Prepared] = {}
        self._templates: dict[tuple[bytes, tuple[Term, ...]], tuple[CircuitTemplate, list[int]]] = {}
        self._circuits: dict[tuple[bytes, Any], Any] = {}
        self._closed = False
        self._unopened()
        self.journal: Journal | None = None
        self.activity: Any = None
        if journal is not None:
            path = journal if isinstance(journal, Journal) else Path(journal)
            self.journal = path if isinstance(path, Journal) else self._stack.enter_context(Journal(path))
            self.activity = self._begun(self.journal)

    def _unopened(self) -> None:
        self._stack, self._held = ExitStack(), False  # what is open, and whether the device was opened
        self._lock = _locks.setdefault(self.backend, RLock())
        weakref.finalize(self, self._stack.close)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a model that is copied runs on the same device, in the same program

    def __getstate__(self) -> dict[str, Any]:
        if self.journal is not None:
            what = f"{type(self).__name__} on {self.backend.packer.device} keeps a journal, which cannot be pickled"
            raise PrimitiveError(f"{what}; pickle the model with a primitive that has none, or make this one anew")
        caches: dict[str, Any] = {"_prepared": {}, "_templates": {}, "_circuits": {}}
        return {key: value for key, value in self.__dict__.items() if key not in ("_stack", "_held", "_lock")} | caches

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unopened()

    def _begun(self, journal: Journal) -> Any:
        """The activity of this primitive in the journal. Raises PrimitiveError: it was begun otherwise."""
        terms = {"device": self.backend.packer.device, "seed": self.seed, "options": self.backend.packer.options}
        for activity in journal.activities():
            if activity.kind == self.kind:
                if activity.arguments != terms:
                    what = f"{journal.path} was begun with {activity.arguments}, not with {terms}"
                    raise PrimitiveError(f"{what}; begin anew with another journal")
                return activity
        return journal.start(self.kind, self.backend.packer.device, terms)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of session and journal; afterwards nothing is run."""
        self._closed = True
        self._stack.close()

    def _open(self, run: ExitStack) -> None:
        """Open the device: one that bills until :meth:`close`, any other for a run, as others may run on it too."""
        device: Any = self.backend
        if self._held and device.bills:
            return
        own = {"journal": self.journal, "activity": self.activity} if device.bills and self.journal is not None else {}
        stack = self._stack if device.bills else run
        stack.enter_context(device.open(budget=self.budget, progress=self.progress, **own))
        if self.budget is not None and self.journal is not None and not (device.bills or self._held):
            self.budget.charge(self.journal.answered(self.activity))
        self._held = True

    def prepared(self, circuit: QuantumCircuit, seen: dict[int, Prepared]) -> Prepared:
        """The circuit on the device, the same object for equal circuits; ``seen`` has those of this run."""
        if id(circuit) not in seen:
            made = prepare(circuit, self.backend.packer)
            seen[id(circuit)] = self._prepared.setdefault(made.key, made)
        return seen[id(circuit)]

    def _template(
        self, prepared: Prepared, tag: str, terms: tuple[Term, ...] = ()
    ) -> tuple[CircuitTemplate, list[int]]:
        """What is packed, and the circuit's qubit behind each of its qubits; the same object for equal circuits."""
        key = prepared.key, terms
        if key not in self._templates:
            with pub_errors(tag):
                self._templates[key] = prepared.template(terms)
        template, qubits = self._templates[key]
        if prepared.pinned:
            self.backend.packer.pinned[template] = tuple(qubits)
        return template, qubits

    def _whole(self, prepared: Prepared, values: Floats, shots: int, tag: str, letters: Any = None) -> list[PUB]:
        """PUBs of a circuit that is not packed, one for all rows, or one a row where there are no parameters."""
        packer, key = self.backend.packer, (prepared.key, letters)
        if key not in self._circuits:
            with pub_errors(tag):
                self._circuits[key] = whole_circuit(prepared, packer, None if letters is None else dict(letters))
        packed = self._circuits[key]
        places = {parameter.name: k for k, parameter in enumerate(prepared.circuit.parameters)}
        columns = [places[parameter.name] for parameter in packed.circuit.parameters]
        parts = [values[:, columns]] if columns else [values[k : k + 1, columns] for k in range(len(values))]
        return [
            PUB(packed, (), len(part), shots, tag, values=part, device=packer.device, options={"part": k})
            for k, part in enumerate(parts) if len(part)
        ]  # fmt: skip

    @abstractmethod
    def _work(self, pubs: Sequence[Any]) -> tuple[Work, Any]:
        """The work of PUBs, and what makes their results of what was counted. Raises ValueError: one is wrong."""

    @abstractmethod
    def coerced(self, pubs: Iterable[Any], default: Any = None) -> list[Any]:
        """PUBs of Qiskit's kind, each with its shots or precision. Raises PubError, TypeError: one is none."""

    def _coerced(self, kind: Any, pubs: Iterable[Any], default: Any) -> list[Any]:
        if self._closed:
            what = f"{type(self).__name__} on {self.backend.packer.device} is closed"
            raise PrimitiveError(f"{what}; make a new one, or run it inside its 'with' block")
        found = []
        for number, pub in enumerate(pubs):
            try:
                with pub_errors(f"PUB {number}"):
                    one = kind.coerce(pub, default)
                    one.validate()
            except TypeError as error:
                raise TypeError(f"PUB {number}: {error}") from error
            found.append(one)
        return found

    def planned(self, pubs: Sequence[Any]) -> tuple[Work, Any]:
        """:meth:`_work`, checked. Raises PubError: a PUB is wrong; PrimitiveError: the device cannot run it."""
        work, results = self._work(pubs)
        for call in work.calls:
            with pub_errors(call.tag):
                self.backend.packer.plan([call.template])
        most = self.backend.job_limits.executions
        for number, pub in enumerate(pubs):
            if (shots := self.shots_of(pub)) > most:
                raise PubError(f"PUB {number}: {shots:,} shots are more than a job may hold ({most:,}); take fewer")
        return work, results

    @abstractmethod
    def shots_of(self, pub: Any) -> int:
        """Shots of each circuit of a PUB."""

    def _answer(self, pubs: Sequence[Any]) -> PackedJob:
        with self._lock, ExitStack() as run:
            return self._answered(pubs, run)

    def _answered(self, pubs: Sequence[Any], run: ExitStack) -> PackedJob:
        backend, journal = self.backend, self.journal
        try:
            self._open(run)  # before anything is planned: a journal may hold the plan
            work, results = self.planned(pubs)
            position = self._position
            kept = None if journal is None else journal.asked(self.activity, position, work.key, self._failed)
            before = backend.counters.executions, backend.estimated
            self._failed = True
            if kept is None:
                if self.seed is not None and hasattr(backend, "rng"):  # whatever was run before
                    backend.rng = np.random.default_rng([self.seed, position, len(self.kind)])
                arrays = results(*self._counted(work, position), position)
            else:
                arrays = self._restore(kept)
            if kept is None and journal is not None:
                seconds = backend.estimated - before[1]
                journal.answer(self.activity, position, {**arrays, **self._learnt()}, seconds)
        except PrimitiveError:
            raise
        except UserError as error:
            raise PrimitiveError(str(error)) from error
        self._failed = False
        self._advance()
        facts = {"version": 2, "device": backend.packer.device, "executions": backend.counters.executions - before[0],
                 "from_journal": kept is not None}  # fmt: skip
        return PackedJob(PrimitiveResult([self._result(k, pub, arrays) for k, pub in enumerate(pubs)], metadata=facts))

    @property
    def _position(self) -> int:
        """Of the next run in the program: primitives that share an activity of a journal have one sequence."""
        return self._run if self.journal is None else self.journal.positions[self.activity.id]

    def _advance(self) -> None:
        self._run += 1
        if self.journal is not None:
            self.journal.positions[self.activity.id] += 1

    def _counted(self, work: Work, position: int) -> tuple[list[PUB], Any, list[Any]]:
        """The PUBs of the calls with what was counted, then what was counted in the registers of whole circuits."""
        packer, before = self.backend.packer, self.backend.packer.options
        place = {"position": position}
        try:
            packer.options = {**before, **place}
            whole = [replace(one, options={**packer.options, **one.options}) for one in work.whole]
            pubs, counts = self.backend.execute(work.calls, whole)
        finally:
            packer.options = before
        packed = len(pubs) - len(whole)
        return pubs[:packed], counts[:packed], list(counts[packed:])

    def _learnt(self) -> dict[str, NDArray[Any]]:
        readout = self.backend.packer.readout
        known = [] if readout is None else [(q, state, share) for (q, state), share in readout.ones.items()]
        return {"readout": np.array(known, dtype=np.float64).reshape(-1, 3)}

    def _restore(self, kept: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        readout = self.backend.packer.readout
        for qubit, state, share in kept.pop("readout").tolist() if readout is not None else ():
            readout.learn(int(state), [int(qubit)], [share])  # type: ignore[union-attr]
        return kept

    @abstractmethod
    def _result(self, number: int, pub: Any, arrays: dict[str, NDArray[Any]]) -> PubResult:
        """A PUB's result of the arrays that its run gave."""


def device_backend(backend: Any, shots: int | None, seed: int | None, device: dict[str, Any]) -> DeviceBackend:
    """The device that is meant by a name, one of our backends, or an object of Qiskit's BackendV2."""
    try:
        if isinstance(backend, str):
            found = resolve(backend, shots=shots, seed=seed, device=device)
        elif isinstance(backend, Backend):
            if device:
                raise UserError(f"{', '.join(device)}: backend {backend.name!r} is made already; make it with them")
            found = backend
        else:
            found = of(backend, shots=shots, **device)
        if isinstance(found, AerBackend) and not isinstance(found, DeviceBackend):
            from qiskit_aer import AerSimulator

            found = of(AerSimulator(method=found.method, device=found.processor.upper()), shots=found.shots or shots)
    except UserError as error:
        raise PrimitiveError(in_python(str(error))) from error
    if not isinstance(found, DeviceBackend) or not found.shots:
        way = "take aer_cpu, a fake backend, a device of IBM, or a BackendV2"
        raise PrimitiveError(f"backend {found.name!r} gives exact values and samples nothing; {way}")
    return found


class PackedSampler(PackedPrimitive, BaseSamplerV2):
    """Qiskit's sampler on a device, with replicas of small circuits side by side.

    Circuits are given as written and are transpiled once. Circuits that end with their measurements are packed;
    others, and those that are transpiled for the device already, run where they are. A run is done when it returns.

    Args:
        backend: a name such as ``fake_torino`` or ``ibm_fez``, a Backend of this package, or a BackendV2.
        shots: of PUBs that do not say theirs.
        seed: of simulated shots; with a journal the same program with the same seed goes on where it stopped.
        journal: a file (or an open Journal): a program that is started again takes finished runs from it.
        budget: limit of QPU time or money.
        progress: is told what is waited for.
        device: keys of ``backends.yaml`` in place of the entry's, such as ``mitigation="mthree"`` or ``spacing=1``.
    """

    kind = "sampler"

    def __init__(
        self,
        backend: Any,
        *,
        shots: int = DEFAULT_SHOTS,
        seed: int | None = None,
        journal: Journal | Path | str | None = None,
        budget: Budget | None = None,
        progress: Callable[[str], None] | None = None,
        **device: Any,
    ) -> None:
        if isinstance(shots, bool) or not isinstance(shots, Integral) or shots < 1:
            raise ValueError(f"shots is {shots!r}; it must be a positive whole number")
        self.shots: int = int(shots)
        super().__init__(backend, self.shots, seed, journal, budget, progress, device)

    def run(self, pubs: Iterable[Any], *, shots: int | None = None) -> PackedJob:
        """Run PUBs; results are in their order.

        Raises PubError (a ValueError): a PUB is wrong, nothing was sent; PrimitiveError: a budget, the journal or the
        device ends it.
        """
        return self._answer(self.coerced(pubs, shots))

    def coerced(self, pubs: Iterable[Any], default: Any = None) -> list[Any]:
        return self._coerced(SamplerPub, pubs, self.shots if default is None else default)

    def shots_of(self, pub: SamplerPub) -> int:
        return int(pub.shots or 0)

    def _work(self, pubs: Sequence[SamplerPub]) -> tuple[Work, Any]:
        how = self.backend.packer.mitigation
        if how not in ("none", "mthree"):
            what = f"{how} corrects expectation values, and a sampler returns shots"
            raise PrimitiveError(f"mitigation: {what}; take none or mthree")
        work, seen, digest = Work(), {}, hashlib.sha256()  # type: ignore[var-annotated]
        packed: list[tuple[int, Prepared, int]] = []  # PUB, its circuit, its call
        whole: list[tuple[int, slice]] = []
        for number, pub in enumerate(pubs):
            prepared, values = checked(self, number, pub, seen)
            digest.update(repr((prepared.key, pub.shots, pub.shape)).encode() + values.tobytes())
            if not pub.circuit.cregs:
                warnings.warn(f"PUB {number}: its circuit has no classical registers, so its result is empty")
            if prepared.body is None:
                start = len(work.whole)
                work.whole += self._whole(prepared, values, pub.shots, f"PUB {number}")
                whole.append((number, slice(start, len(work.whole))))
            elif prepared.reads and len(values):
                packed.append((number, prepared, len(work.calls)))
                template = self._template(prepared, f"PUB {number}")[0]
                work.calls.append(Call(template, prepared.values(values), f"PUB {number}", pub.shots))
        work.key = digest.hexdigest()
        work.whole = [replace(one, options={"part": k}) for k, one in enumerate(work.whole)]

        def results(own: list[PUB], counts: Any, found: list[Any], position: int) -> dict[str, NDArray[Any]]:
            arrays: dict[str, NDArray[Any]] = {}
            bits = self.backend.packer.bits(work.calls, own, counts, position)
            for number, prepared, place in packed:
                qubits = {q: k for k, q in enumerate(self._template(prepared, f"PUB {number}")[1])}
                for k, register in enumerate(prepared.circuit.cregs):
                    read = np.zeros((*bits[place].shape[:2], len(register)), dtype=bool)
                    for bit, clbit in enumerate(register):
                        qubit = prepared.reads.get(prepared.circuit.find_bit(clbit).index)
                        if qubit is not None:
                            read[..., bit] = bits[place][..., qubits[qubit]]
                    arrays[f"{number}.{k}"] = BitArray.from_bool_array(read, order="little").array
            for number, own_ones in whole:
                parts, shots = found[own_ones], self.shots_of(pubs[number])
                for k in range(len(pubs[number].circuit.cregs) if parts else 0):
                    arrays[f"{number}.{k}"] = np.concatenate([one[k].array[:, :shots] for one in parts])
            return arrays

        return work, results

    def _result(self, number: int, pub: SamplerPub, arrays: dict[str, NDArray[Any]]) -> SamplerPubResult:
        data = {}
        for k, register in enumerate(pub.circuit.cregs):
            shape = (*pub.shape, self.shots_of(pub), -(-len(register) // 8))
            array = arrays.get(f"{number}.{k}", np.zeros(shape, dtype=np.uint8))
            data[register.name] = BitArray(array.reshape(shape), len(register))
        metadata = {"shots": pub.shots, "circuit_metadata": pub.circuit.metadata}
        return SamplerPubResult(DataBin(**data, shape=pub.shape), metadata=metadata)


def checked(primitive: PackedPrimitive, number: int, pub: Any, seen: dict[int, Prepared]) -> tuple[Prepared, Floats]:
    """The circuit of a PUB, and its parameter values ``(rows, parameters)``."""
    given = pub.parameter_values
    with pub_errors(f"PUB {number}"):
        prepared = primitive.prepared(pub.circuit, seen)
        values = given.as_array(pub.circuit.parameters).reshape(given.size, pub.circuit.num_parameters)
    if not np.isfinite(values).all():
        raise PubError(f"PUB {number}: a parameter value is not finite")
    return prepared, values
