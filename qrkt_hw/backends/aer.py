"""Qiskit Aer as a backend: one parameter-bind run per call, circuits transpiled once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Call, LocalBackend
from qrkt_hw.backends.device.measurement import Basis, Floats, bases, confuse, sample
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.errors import extras
from qrkt_hw.simulator import memory

LARGEST_TABLE = 12  # qubits up to which all outcome probabilities are read and sampled; beyond, Aer samples
# Aer's runtime parameter binding computes wrong values for some wider parameterised gates; these it binds rightly
BASIS = [
    "rx", "ry", "rz", "h", "x", "y", "z", "s", "sdg", "t", "tdg", "sx", "sxdg", "id", "cx", "cy", "cz", "swap", "ecr",
]  # fmt: skip
CHUNK = 4096  # circuits per Aer job: bounds the memory of its result


@dataclass(frozen=True, eq=False)
class Compiled:
    """A circuit for one basis, ready for Aer, with the qubits that are read and their readout errors."""

    basis: Basis
    circuit: QuantumCircuit
    measured: tuple[int, ...]
    readout: list[NDArray[np.float64]] | None


class AerBackend(LocalBackend):
    """Noiseless simulation by Aer, which also samples circuits of more than 12 qubits.

    Up to 12 qubits the outcome probabilities come from Aer, and with shots they are sampled here: the same distribution
    as Aer's own sampling of circuits that measure at their end, several times faster.
    """

    kind = "Aer simulator"

    def __init__(
        self,
        name: str,
        device: str = "cpu",  # or ``gpu``
        method: str = "statevector",  # Aer's simulation method
        shots: int | None = None,  # samples per circuit; None for exact values
        seed: int | None = None,  # of the samples: the same circuit batches in the same order give the same numbers
        optimization_level: int = 1,  # of the transpiler
    ) -> None:
        super().__init__(name)
        self.processor, self.method, self.shots, self.level = device, method, shots, optimization_level
        self.rng = np.random.default_rng(seed)
        self._compiled: dict[CircuitTemplate, list[Compiled]] = {}

    @property
    def stand_in(self) -> ExactBackend | None:
        """The torch simulator, on the GPU for Aer's, where values are exact and the gradient is ``adjoint``."""
        if self.shots is not None or self.gradient != "adjoint":
            return None
        return ExactBackend(self.name, "cuda" if self.processor == "gpu" and torch.cuda.is_available() else "auto")

    def about(self) -> dict[str, Any]:
        return {**super().about(), "device": self.processor, "method": self.method}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "random": self.rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if "random" in state:
            self.rng.bit_generator.state = state["random"]

    def circuits_for(self, template: CircuitTemplate) -> int:
        return len(bases(template))

    def compiled(self, template: CircuitTemplate) -> list[Compiled]:
        if template not in self._compiled:
            self._compiled[template] = [self._compile(template, basis) for basis in bases(template)]
        return self._compiled[template]

    def _compile(self, template: CircuitTemplate, basis: Basis) -> Compiled:
        from qiskit import transpile

        circuit = transpile(basis.rotated(template.circuit), basis_gates=BASIS, optimization_level=self.level)
        # no value sees the global phase, and Aer's runtime binding goes astray where it holds a parameter
        circuit.global_phase = 0
        return Compiled(basis, circuit, tuple(range(template.num_qubits)), None)

    @cached_property
    def _aer(self) -> Any:
        with extras():
            from qiskit_aer import AerSimulator

        # batching needs runtime parameter binding and is off by default
        gpu: Any = {"device": "GPU", "batched_shots_gpu": True, "cuStateVec_enable": False}
        on = gpu if self.processor == "gpu" else {}
        return AerSimulator(method=self.method, runtime_parameter_bind_enable=True, **on)

    def _evaluate(self, call: Call) -> NDArray[np.float64]:
        template = call.template
        values = np.asarray(call.values, dtype=np.float64).reshape(call.samples, -1)
        total = np.zeros((len(values), template.num_outputs))
        for one in self.compiled(template):
            if len(one.measured) > LARGEST_TABLE:
                total += self._wide(template, one, values)
                continue
            table = self._probabilities(template, one, values)
            if self.shots is not None:
                table = sample(table, self.shots, self.rng)
            total += table @ one.basis.signs(template.num_outputs).T
        return total

    def _probabilities(self, template: CircuitTemplate, one: Compiled, values: Floats) -> Floats:
        """Chances ``(samples, outcomes)`` of every outcome of the template's qubits."""
        circuit = one.circuit.copy()
        circuit.save_probabilities(list(one.measured))
        rows = [data["probabilities"] for data in self._execute(circuit, template, values, None)]
        table = np.asarray(rows, dtype=np.float64)
        return table if one.readout is None else confuse(table, one.readout)

    def _wide(self, template: CircuitTemplate, one: Compiled, values: NDArray[np.float64]) -> NDArray[np.float64]:
        circuit = one.circuit.copy()
        if self.shots is None:
            from qiskit.quantum_info import SparsePauliOp

            for row in range(template.num_outputs):
                of_row = [(c, m, range(m.bit_length())) for r, c, m in one.basis.terms if r == row]
                terms = [("Z" * m.bit_count(), [q for q in bits if m >> q & 1], c) for c, m, bits in of_row]
                operator = SparsePauliOp.from_sparse_list(terms or [("", [], 0.0)], num_qubits=template.num_qubits)
                circuit.save_expectation_value(operator, list(one.measured), label=f"o{row}")
            found = self._execute(circuit, template, values, None)
            return np.array([[data[f"o{row}"] for row in range(template.num_outputs)] for data in found])
        circuit.measure_all()
        result = np.zeros((len(values), template.num_outputs))
        for place, data in enumerate(self._execute(circuit, template, values, self.shots)):
            for key, count in data["counts"].items():
                for row, coefficient, mask in one.basis.terms:
                    sign = 1 - 2 * ((int(key, 16) & mask).bit_count() & 1)
                    result[place, row] += coefficient * sign * count / self.shots
        return result

    def _execute(self, circuit: QuantumCircuit, template: CircuitTemplate, values: Floats, shots: int | None) -> list:
        memory.check_aer(self.name, self.method, circuit.num_qubits)
        columns = [(p, k) for k, p in enumerate(template.parameters) if p in circuit.parameters]
        found: list[dict[str, Any]] = []
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            binds = [{parameter: part[:, k].tolist() for parameter, k in columns}] if columns else None
            seed = int(self.rng.integers(2**31)) if shots else None
            result = self._aer.run(circuit, parameter_binds=binds, shots=shots or 1, seed_simulator=seed).result()
            if not result.success:
                raise RuntimeError(f"Aer failed on {self.name}: {result.status}")
            data = [vars(experiment.data) for experiment in result.results]
            found.extend(data if columns else data * len(part))
        return found
