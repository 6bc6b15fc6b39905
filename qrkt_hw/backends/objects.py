"""Qiskit's own objects as backends: any ``BackendV2``, ``BaseSamplerV2`` or ``BaseEstimatorV2``."""

import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, get_args
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from qiskit import generate_preset_pass_manager
from qiskit.circuit import QuantumCircuit
from qiskit.exceptions import QiskitError
from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2, BitArray
from qiskit.providers import BackendV2

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Backend, Call, Gradient
from qrkt_hw.backends.device.measurement import LARGEST_TABLE, Basis, Counts, Floats, bases, counts_of
from qrkt_hw.backends.device.packing import Counted, DeviceBackend, Packer
from qrkt_hw.backends.device.pubs import PUB
from qrkt_hw.backends.device.transpile import SEED
from qrkt_hw.errors import UserError

SHOTS = 1024  # of a backend that does not say
LARGEST_RUN = 1000  # circuits that go to a backend's ``run`` at once where it sets no limit
# a packed circuit is as wide as all its replicas: a device runs it as fast, a simulator does not
SIMULATORS = (
    "qiskit_aer.", "qiskit.providers.basic_provider.", "qiskit.providers.fake_provider.",
    "qiskit_ibm_runtime.fake_provider.",
)  # fmt: skip
_made: WeakValueDictionary[int, Backend] = WeakValueDictionary()  # by the identity of the object, which each holds


def of(
    thing: Any,
    *,
    shots: int | None = None,
    gradient: Gradient | None = None,
    pack: bool | None = None,
    optimization_level: int | None = None,
) -> Backend:
    """A Backend of an object of Qiskit; a Backend as it is.

    One object gives one Backend where nothing else is given, so that layers which share it share circuit batches.

    Args:
        thing: a ``BackendV2`` (a vendor's, Aer's, a fake one), a ``BaseSamplerV2`` or a ``BaseEstimatorV2``.
        shots: samples of each circuit, of a backend or a sampler; default: its own.
        gradient: default ``parameter_shift``, which is right on every device.
        pack: run replicas of a circuit side by side; default: where the backend has couplings and is no simulator.
        optimization_level: of the transpiler; default 3 on backends with couplings, else 1.

    Raises:
        UserError: none of these, a device of IBM Quantum, which is named instead, or a backend that does not say what
            it runs.
    """
    plain = (shots, gradient, pack, optimization_level) == (None,) * 4
    if shots is not None and (type(shots) is not int or shots < 1):
        raise UserError(f"backend: shots is {shots!r}; it must be a positive whole number")
    if gradient is not None and gradient not in get_args(Gradient):
        raise UserError(f"backend: gradient is {gradient!r}; it must be one of {', '.join(get_args(Gradient))}")
    if optimization_level not in (None, 0, 1, 2, 3):
        raise UserError(f"backend: optimization_level is {optimization_level!r}; it must be 0, 1, 2 or 3")
    if isinstance(thing, Backend):
        if not plain:
            raise UserError("backend: shots, gradient, pack and optimization_level go with an object of Qiskit")
        return thing
    if plain and (known := _made.get(id(thing))) is not None:
        return known
    if isinstance(thing, BackendV2):
        made = _of_backend(thing, shots, pack, optimization_level)
    elif isinstance(thing, (BaseEstimatorV2, BaseSamplerV2)):
        if pack is not None:
            raise UserError("backend: pack goes with a BackendV2; a primitive takes circuits one beside another")
        if shots is not None and isinstance(thing, BaseEstimatorV2):
            raise UserError("backend: an estimator takes a precision, which it is made with, and no shots")
        kind = EstimatorBackend if isinstance(thing, BaseEstimatorV2) else SamplerBackend
        made = kind(thing, shots, optimization_level)
    else:
        if isinstance(thing, str):
            raise UserError(f"backend: {thing!r} is a name, which backends.get takes")
        what = f"a class ({thing.__name__}); make an object of it" if isinstance(thing, type) else type(thing).__name__
        raise UserError(
            f"backend is {what}; it must be a name in backends.yaml, a Backend, or one of Qiskit's BackendV2, "
            "BaseSamplerV2 and BaseEstimatorV2"
        )
    made.gradient = gradient or ("parameter_shift" if not made.differentiable else made.gradient)
    if plain:
        _made[id(thing)] = made
    return made


def _of_backend(device: BackendV2, shots: int | None, pack: bool | None, level: int | None) -> Backend:
    name = str(device.name or type(device).__name__)
    # a module that is not loaded has made no object
    ibm = getattr(sys.modules.get("qiskit_ibm_runtime.ibm_backend"), "IBMBackend", ())
    if isinstance(device, ibm):
        raise UserError(
            f"backend {name!r} is a device of IBM Quantum, whose jobs are journalled and limited: give its name, "
            f"backend={name!r}"
        )
    target: Any = getattr(device, "target", None)
    lacks = (
        "target" if target is None
        else "number of qubits in its target" if target.num_qubits is None
        else "measure in its target" if "measure" not in target.operation_names else None
    )  # fmt: skip
    if lacks is not None:
        raise UserError(f"backend {name!r} has no {lacks}, so no circuit can be transpiled to it; give it one")
    if _is_shipped(device, name):
        from qrkt_hw.backends.fake import FakeBackend

        level = 3 if level is None else level
        fake = FakeBackend(name, name, shots=shots, optimization_level=level, pack=pack is not False)
        fake.device = device  # held: another object made later cannot have its identity
        return fake
    coupled = target.build_coupling_map() is not None
    simulates = any(kind.__module__.startswith(SIMULATORS) for kind in type(device).__mro__)
    if pack and not coupled:
        raise UserError(f"backend {name!r} has no couplings, so nothing says what can run side by side: leave out pack")
    given = device.options.get("shots", None) if shots is None else shots
    level = (3 if coupled else 1) if level is None else level
    packs = coupled and not simulates if pack is None else pack
    return QiskitBackend(name, device, int(given or SHOTS), level, packs, coupled)


def _is_shipped(device: BackendV2, name: str) -> bool:
    """Whether it is one of the IBM runtime's fake backends as it is shipped: those are simulated slot by slot."""
    fake = getattr(sys.modules.get("qiskit_ibm_runtime.fake_provider.fake_backend"), "FakeBackendV2", ())
    if not isinstance(device, fake):
        return False
    from qrkt_hw.backends.device.transpile import fake_device, fake_names

    if name not in fake_names():
        return False
    shipped = fake_device(name)
    return type(shipped) is type(device) and _rates(shipped.target) == _rates(device.target)


def _rates(target: Any) -> dict[Any, Any]:
    return {
        (name, qubits): None if one is None else (one.error, one.duration)
        for name in target.operation_names
        for qubits, one in (target[name] or {}).items()
    }


class QiskitBackend(DeviceBackend):
    """A ``BackendV2``: circuits are transpiled to its target, packed where it has couplings, and run."""

    kind = "Qiskit backend"

    def __init__(self, name: str, device: BackendV2, shots: int, level: int, pack: bool, coupled: bool) -> None:
        super().__init__(name)
        self.device, self.shots, self.coupled = device, shots, coupled
        self.target = device.target
        label = f"{type(device).__module__}.{type(device).__name__}:{name}"  # never that of a shipped fake backend
        self.packer = Packer(self.target, device=label, level=level, shots=shots, pack=pack, runs_on=device)
        self.rng: np.random.Generator | None = None  # where it is set, of the samples of an Aer simulator
        self._seeded = label.startswith("qiskit_aer.")

    def about(self) -> dict[str, Any]:
        found = {**super().about(), "device": self.name, "qubits": self.num_qubits, "packed": self.packer.packs}
        return {**found, "calibrated": self.calibrated()}

    def pack(self, calls: Sequence[Call]) -> list[PUB]:
        """PUBs of packed circuits. Raises UserError: a circuit is too large, or cannot be transpiled to the target."""
        try:
            return super().pack(calls)
        except QiskitError as error:
            raise UserError(f"backend {self.name!r}: a circuit cannot be transpiled to its target: {error}") from error

    def submit(self, pubs: Sequence[PUB]) -> Counted:
        """What ``run`` counts. Raises UserError: it fails, or gives other results than were asked for."""
        return self.one_by_one(pubs, self._counted)

    def _counted(self, pub: PUB) -> Sequence[Counts | BitArray]:
        circuit = pub.circuit if self.coupled else _narrow(pub.circuit)
        bound = [circuit.assign_parameters(row) if len(row) else circuit for row in pub.values]
        step = int(getattr(self.device, "max_circuits", None) or LARGEST_RUN)
        rows = [one for k in range(0, len(bound), step) for one in self._run(bound[k : k + step], pub.shots)]
        sizes = [register.size for register in circuit.cregs]
        return _by_register(rows, sizes) if pub.slots else _shots(rows, sizes, pub.shots)

    def _run(self, circuits: list[QuantumCircuit], shots: int) -> list[dict[str, int]]:
        """The counts of each circuit."""
        how: Any = {}
        if self._seeded and self.rng is not None:
            how["seed_simulator"] = int(self.rng.integers(2**31))
        try:
            result = self.device.run(circuits, shots=shots, **how).result()
            if not getattr(result, "success", True):
                raise RuntimeError(getattr(result, "status", "no success"))
            found = [result.get_counts(k) for k in range(len(circuits))]
        except Exception as error:  # of whatever kind the vendor raises
            raise UserError(f"backend {self.name!r} failed: {type(error).__name__}: {error}") from error
        if not all(sum(one.values()) > 0 for one in found):
            raise UserError(f"backend {self.name!r} counted nothing in one of {len(circuits)} circuits")
        fewest = min((sum(one.values()) for one in found), default=shots)
        if fewest < shots:
            raise UserError(f"backend {self.name!r} counted {fewest:g} of {shots} shots of a circuit")
        return found


def _narrow(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit without the idle qubits behind its last used one."""
    used = 1 + max(circuit.find_bit(q).index for instruction in circuit.data for q in instruction.qubits)
    narrow = QuantumCircuit(used)
    narrow.add_register(*circuit.cregs)
    for one in circuit.data:
        narrow.append(one.operation, [circuit.find_bit(q).index for q in one.qubits], one.clbits)
    return narrow


def _by_register(rows: Sequence[dict[str, int]], sizes: Sequence[int]) -> list[Counts]:
    """For each register a table of relative frequencies ``(rows, outcomes)`` or, for many qubits, counts.

    A key has the last register first, with or without a space between registers.
    """
    found: list[Counts] = []
    start = 0
    for size in sizes:
        counts: list[dict[int, int]] = [{} for _ in rows]
        for counted, row in zip(counts, rows, strict=True):
            for key, count in row.items():
                outcome = _outcome(key, sum(sizes)) >> start & (1 << size) - 1
                counted[outcome] = counted.get(outcome, 0) + int(count)
        start += size
        if size > LARGEST_TABLE:
            found.append(counts)
            continue
        table = np.zeros((len(rows), 2**size))
        for k, counted in enumerate(counts):
            table[k, list(counted)] = list(counted.values())
        found.append(table / table.sum(axis=1, keepdims=True))
    return found


def _shots(rows: Sequence[dict[str, int]], sizes: Sequence[int], shots: int) -> list[BitArray]:
    """For each register its shots; the same shot of two registers was read together."""
    width, rng = sum(sizes), np.random.default_rng(0)
    read = np.zeros((len(rows), shots, width), dtype=bool)
    for k, row in enumerate(rows):
        outcomes = np.repeat([_outcome(key, width) for key in row], list(row.values()))
        bits = [[outcome >> bit & 1 for bit in range(width)] for outcome in outcomes.tolist()]
        read[k] = rng.permutation(np.array(bits, dtype=bool).reshape(-1, width))[:shots]
    parts = np.split(read, np.cumsum(sizes)[:-1], axis=-1)
    return [BitArray.from_bool_array(part, order="little") for part in parts]


def _outcome(key: Any, width: int) -> int:
    text = str(key).replace(" ", "")
    if text.startswith("0x"):
        return int(text, 16)
    if len(text) != width or set(text) - {"0", "1"}:
        raise UserError(f"backend: counts are of {key!r}, which is no outcome of {width} bits")
    return int(text, 2)


class PrimitiveBackend(Backend):
    """A primitive: the calls of a circuit batch go as one job, one PUB for each circuit."""

    def __init__(self, primitive: Any, shots: int | None, level: int | None) -> None:
        super().__init__(type(primitive).__name__)
        self.primitive, self.shots, self.level = primitive, shots, 1 if level is None else level
        backend = getattr(primitive, "backend", None)
        try:
            backend = backend() if callable(backend) else backend
        except Exception:  # a primitive without a device of its own
            backend = None
        self.device = backend if isinstance(backend, BackendV2) else None
        if self.device is not None:
            self.name, self.target = f"{self.name} on {self.device.name}", self.device.target
        self._circuits: dict[tuple[CircuitTemplate, Basis | None], QuantumCircuit] = {}

    def about(self) -> dict[str, Any]:
        return {**super().about(), **({} if self.device is None else {"device": str(self.device.name)})}

    def circuit(self, template: CircuitTemplate, basis: Basis | None = None) -> QuantumCircuit:
        """What runs: measured in a basis, where one is given, and transpiled where the primitive has a device."""
        if (template, basis) not in self._circuits:
            if self.device is not None and template.num_qubits > self.device.target.num_qubits:
                has = f"{self.device.name} has {self.device.target.num_qubits} qubits"
                raise UserError(f"backend: {has}; ansatz {template.name!r} takes {template.num_qubits}")
            made = template.circuit if basis is None else basis.rotated(template.circuit)
            if basis is not None:
                made.measure_all()
            if self.device is not None:
                with_device = {"backend": self.device, "optimization_level": self.level, "seed_transpiler": SEED}
                made = generate_preset_pass_manager(**with_device).run(made)
            self._circuits[template, basis] = made
        return self._circuits[template, basis]

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """See :meth:`Backend.run`. Raises UserError: the primitive fails."""
        started = time.perf_counter()
        asked: dict[CircuitTemplate, list[int]] = {}
        for place, call in enumerate(calls):
            if call.samples:
                asked.setdefault(call.template, []).append(place)
        found = [np.zeros((*call.values.shape[:-1], call.template.num_outputs)) for call in calls]
        if asked:
            self.begin_batch(
                sum(calls[p].samples * self.circuits_for(t) for t, places in asked.items() for p in places),
                [call.tag for call in calls],
            )
            sets = {
                t: np.concatenate([calls[p].values.reshape(calls[p].samples, -1) for p in places])
                for t, places in asked.items()
            }
            try:
                values = self._values(sets)
            except UserError:
                raise
            except Exception as error:  # of whatever kind the primitive raises
                raise UserError(f"backend {self.name!r} failed: {type(error).__name__}: {error}") from error
            for (_, places), rows in zip(asked.items(), values, strict=True):
                for place in places:
                    part, rows = rows[: calls[place].samples], rows[calls[place].samples :]
                    found[place] = part.reshape(found[place].shape)
        self.counters.seconds += time.perf_counter() - started
        return found

    @abstractmethod
    def _values(self, sets: dict[CircuitTemplate, Floats]) -> list[Floats]:
        """``(rows, observables)`` for each template."""

    def _bound(self, template: CircuitTemplate, circuit: QuantumCircuit, rows: Floats) -> list[Floats]:
        """Parameter sets in the order of the circuit's own parameters: those of each of its PUBs.

        Without parameters each row is a PUB: Aer's primitives lose all rows but the first of an empty array.
        """
        place = {parameter: k for k, parameter in enumerate(template.parameters)}
        own = rows[:, [place[parameter] for parameter in circuit.parameters]]
        return [own] if circuit.num_parameters else list(own)


class SamplerBackend(PrimitiveBackend):
    """A ``BaseSamplerV2``: one PUB for each circuit and basis, values from what it counts."""

    kind = "sampler"

    def __init__(self, primitive: BaseSamplerV2, shots: int | None, level: int | None) -> None:
        super().__init__(primitive, shots, level)
        self._asks = shots
        if shots is None:
            options = getattr(primitive, "options", None)
            own = getattr(options, "default_shots", None) if options is not None else None
            self.shots = own if isinstance(own, int) else None if options is not None else self._default()

    def _default(self) -> int | None:
        found = getattr(self.primitive, "default_shots", None)
        return found if isinstance(found, int) else None

    def circuits_for(self, template: CircuitTemplate) -> int:
        return len(bases(template))

    def _values(self, sets: dict[CircuitTemplate, Floats]) -> list[Floats]:
        every = [(t, basis, self.circuit(t, basis), rows) for t, rows in sets.items() for basis in bases(t)]
        parts = [self._bound(template, circuit, rows) for template, _, circuit, rows in every]
        pubs = [(circuit, part) for (_, _, circuit, _), own in zip(every, parts, strict=True) for part in own]
        results = iter(self.primitive.run(pubs, shots=self._asks).result())
        found = {template: np.zeros((len(rows), template.num_outputs)) for template, rows in sets.items()}
        for (template, basis, _, _), own in zip(every, parts, strict=True):
            values = [basis.values(self._counts(next(results).data.meas, part), template.num_outputs) for part in own]
            found[template] += np.concatenate(values)
        return list(found.values())

    def _counts(self, bits: Any, part: Floats) -> Any:
        rows = len(part) if part.ndim > 1 else 1
        if isinstance(bits, BitArray):
            if self.shots is None:  # a sampler that did not say how many
                self.counters.executions += rows * bits.num_shots
            return counts_of(bits.reshape(rows))
        if hasattr(bits, "get_probabilities"):  # qiskit-machine-learning's sampler without shots is exact
            each = [bits.get_probabilities(row) for row in range(rows)] if part.ndim > 1 else [bits.get_probabilities()]
            return [{int(outcome, 2): p for outcome, p in one.items()} for one in each]
        raise UserError(f"backend {self.name!r} gives a {type(bits).__name__}, not the BitArray of a BaseSamplerV2")


class EstimatorBackend(PrimitiveBackend):
    """A ``BaseEstimatorV2``: one PUB for each circuit, with all its observables."""

    kind = "estimator"

    def _values(self, sets: dict[CircuitTemplate, Floats]) -> list[Floats]:
        found = {template: np.zeros((len(rows), template.num_outputs)) for template, rows in sets.items()}
        pubs, places = [], []
        for template, rows in sets.items():
            circuit = self.circuit(template)
            kept = [k for k, o in enumerate(template.observables) if o.simplify().coeffs.any()]  # 0 needs no circuit
            observables = [template.observables[k].apply_layout(circuit.layout) for k in kept]
            start = 0
            for part in self._bound(template, circuit, rows) if kept else ():
                many = len(part) if part.ndim > 1 else 1
                pubs.append((circuit, [[o] for o in observables] if part.ndim > 1 else observables, part))
                places.append((found[template][start : start + many], kept))
                start += many
        results = self.primitive.run(pubs).result() if pubs else []
        for (values, kept), result in zip(places, results, strict=True):
            values[:, kept] = np.asarray(result.data.evs, dtype=np.float64).T
        return list(found.values())
