"""Expectation values by Qiskit's interface, many observables from the same shots."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.primitives import BaseEstimatorV2, DataBin, PubResult
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Call
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.measurement import Floats, bases
from qrkt_hw.backends.device.packing import counts_of, expectations
from qrkt_hw.backends.device.pubs import PUB
from qrkt_hw.primitives.circuits import PAULIS, Prepared, Term, operator
from qrkt_hw.primitives.packed import PackedJob, PackedPrimitive, PubError, Work, checked

DEFAULT_PRECISION = 1 / 64  # Qiskit's


@dataclass(eq=False)
class _Row:
    """One circuit with one parameter set, and the Pauli strings that are read from its shots."""

    values: Floats
    terms: dict[Term, None] = field(default_factory=dict)
    pubs: set[int] = field(default_factory=set)
    found: dict[Term, float] = field(default_factory=dict)


class PackedEstimator(PackedPrimitive, BaseEstimatorV2):
    """Qiskit's estimator on a device, with replicas of small circuits side by side.

    Observables of all PUBs of a run are read from the same shots where circuit, parameters and precision are equal and
    their bases fit; a Pauli string that two PUBs ask for is measured twice. ``evs`` and ``stds`` are those of
    BackendEstimatorV2. See :class:`PackedSampler` for circuits and the other arguments.

    Args:
        precision: of PUBs that do not say theirs; ``ceil(1 / precision**2)`` shots a circuit.
    """

    kind = "estimator"

    def __init__(
        self,
        backend: Any,
        *,
        precision: float = DEFAULT_PRECISION,
        seed: int | None = None,
        journal: Journal | Path | str | None = None,
        budget: Budget | None = None,
        progress: Callable[[str], None] | None = None,
        **device: Any,
    ) -> None:
        if isinstance(precision, bool) or not isinstance(precision, Real) or not 0 < precision < math.inf:
            raise ValueError(f"precision is {precision!r}; it must be a number above 0")
        self.precision: float = float(precision)
        super().__init__(backend, math.ceil(1 / precision**2), seed, journal, budget, progress, device)

    def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> PackedJob:
        """Run PUBs; results are in their order. Raises as :meth:`PackedSampler.run`."""
        return self._answer(self.coerced(pubs, precision))

    def coerced(self, pubs: Iterable[Any], default: Any = None) -> list[Any]:
        found = self._coerced(EstimatorPub, pubs, self.precision if default is None else default)
        for number, pub in enumerate(found):
            if not 0 < pub.precision < math.inf:
                raise PubError(f"PUB {number}: its precision is {pub.precision:g}; shots give a number above 0")
        return found

    def shots_of(self, pub: EstimatorPub) -> int:
        return math.ceil(1 / pub.precision**2)

    def _work(self, pubs: Sequence[EstimatorPub]) -> tuple[Work, Any]:
        work, seen, digest = Work(), {}, hashlib.sha256()  # type: ignore[var-annotated]
        rows: dict[tuple[bytes, int, bytes], list[_Row]] = {}
        asked: list[tuple[NDArray[Any], Any, list[_Row]]] = []  # row and observable of each value
        circuits: dict[bytes, Prepared] = {}
        for number, pub in enumerate(pubs):
            prepared, values = checked(self, number, pub, seen)
            circuits[prepared.key] = prepared
            observables = _observables(pub)
            places = np.arange(len(values)).reshape(pub.parameter_values.shape)
            which, wanted = (np.broadcast_to(one, pub.shape) for one in (places, observables))
            terms: list[dict[Term, None]] = [{} for _ in values]
            for place, one in zip(which.ravel(), wanted.ravel(), strict=True):
                terms[place].update(dict.fromkeys(term for term in one if term))
            own = []
            for row, need in zip(values, terms, strict=True):
                alike = rows.setdefault((prepared.key, self.shots_of(pub), row.tobytes()), [])
                free = (one for one in alike if number not in one.pubs and not need.keys() & one.terms.keys())
                found = next(free, None)
                if found is None:
                    found = _Row(row)
                    alike.append(found)
                found.terms.update(need)
                found.pubs.add(number)
                own.append(found)
            asked.append((which, wanted, own))
            content = prepared.key, pub.precision, pub.shape, [sorted(one.items()) for one in wanted.ravel()]
            digest.update(repr(content).encode() + values.tobytes())
        work.key = digest.hexdigest()
        together: dict[tuple[bytes, int, tuple[Term, ...]], list[_Row]] = {}
        for (key, shots, _), alike in rows.items():
            for one in alike:
                if one.terms:
                    together.setdefault((key, shots, tuple(sorted(one.terms))), []).append(one)
        called, whole = [], []
        for (key, shots, strings), members in together.items():
            prepared, values = circuits[key], np.array([one.values for one in members])
            tag = "PUB " + ", ".join(map(str, sorted({n for one in members for n in one.pubs})))
            if prepared.body is not None:
                called.append((strings, members))
                template = self._template(prepared, tag, strings)[0]
                work.calls.append(Call(template, prepared.values(values), tag, shots))
                continue
            support = sorted({q for term in strings for _, q in term})
            place = {q: k for k, q in enumerate(support)}
            operators = tuple(operator(term, place) for term in strings)
            reading = CircuitTemplate("a basis", QuantumCircuit(len(support)), (), (), operators)
            for basis in bases(reading):
                letters = tuple(zip(support, basis.letters, strict=True))
                parts = self._whole(prepared, values, shots, tag, letters)
                whole.append((basis, strings, members, slice(len(work.whole), len(work.whole) + len(parts))))
                work.whole += parts
        work.whole = [replace(one, options={"part": k}) for k, one in enumerate(work.whole)]

        def results(own: list[PUB], counts: Any, found: list[Any], position: int) -> dict[str, NDArray[Any]]:
            decoded = self.backend.packer.decode(work.calls, own, counts)
            for (strings, members), values in zip(called, decoded, strict=True):
                for one, row in zip(members, values, strict=True):
                    one.found.update(zip(strings, row.tolist(), strict=True))
            for basis, strings, members, part in whole:
                read: list[Floats] = []
                for pub, registers in zip(work.whole[part], found[part], strict=True):
                    place = [register.name for register in pub.circuit.cregs].index(PAULIS)
                    values = expectations(counts_of(registers[place]), basis, len(strings), pub.shots)
                    read += list(values)
                for one, row in zip(members, read, strict=True):
                    for column in {column for column, _, _ in basis.terms}:
                        one.found[strings[column]] = float(row[column])
            arrays: dict[str, NDArray[Any]] = {}
            for number, (which, wanted, members) in enumerate(asked):
                evs, stds = np.zeros(which.shape), np.zeros(which.shape)
                for index in np.ndindex(which.shape):
                    for term, weight in wanted[index].items():
                        value = members[which[index]].found[term] if term else 1.0
                        evs[index] += weight * value
                        stds[index] += abs(weight) * math.sqrt(max(0.0, 1 - value**2) / self.shots_of(pubs[number]))
                arrays |= {f"{number}.evs": evs, f"{number}.stds": stds}
            return arrays

        return work, results

    def _result(self, number: int, pub: EstimatorPub, arrays: dict[str, NDArray[Any]]) -> PubResult:
        evs, stds = arrays[f"{number}.evs"], arrays[f"{number}.stds"]
        metadata = {
            "target_precision": pub.precision, "shots": self.shots_of(pub), "circuit_metadata": pub.circuit.metadata,
        }  # fmt: skip
        return PubResult(DataBin(evs=evs, stds=stds, shape=pub.shape), metadata=metadata)


def _observables(pub: EstimatorPub) -> NDArray[Any]:
    """An array of the PUB's observables as weights of Pauli strings."""
    given = pub.observables.sparse_observables_array()
    found = np.empty(given.shape, dtype=object)
    for index, one in np.ndenumerate(given):
        terms: dict[Term, float] = {}
        for letters, qubits, weight in SparsePauliOp.from_sparse_observable(one).simplify().to_sparse_list():
            term = tuple(sorted(zip(letters, qubits, strict=True), key=lambda pair: pair[1]))
            terms[term] = terms.get(term, 0.0) + float(weight.real)
        found[index] = terms
    return found
