"""The loopback service computes rightly: against Statevector, Aer's noise, and itself."""

import numpy as np
import pytest
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import Statevector

from tests.ibm_service import engine


def random_circuit(seed, parts=2, width=3):
    """Disjoint parts with parameters, linear expressions among them, on a chip with idle qubits."""
    rng = np.random.default_rng(seed)
    p = ParameterVector("p", 4)
    circuit = QuantumCircuit(parts * (width + 1), parts * width)
    for part in range(parts):
        qubits = [part * (width + 1) + k for k in range(width)]
        for _ in range(12):
            a, b = rng.choice(qubits, 2, replace=False)
            kind = rng.integers(4)
            if kind == 0:
                circuit.cz(a, b)
            elif kind == 1:
                circuit.sx(a)
            elif kind == 2:
                circuit.rz(p[int(rng.integers(4))] * float(rng.normal()) + float(rng.normal()), a)
            else:
                circuit.rz(float(rng.normal()), a)
                circuit.x(b)
        circuit.barrier()
        order = rng.permutation(width)
        circuit.measure(qubits, [part * width + int(k) for k in order])
    return circuit


@pytest.mark.parametrize("seed", range(5))
def test_chances_of_each_component_equal_the_whole_statevector(seed):
    circuit = random_circuit(seed)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(9, circuit.num_parameters))
    values[:, 0] = values[0, 0]  # a column that all rows share
    plain = circuit.remove_final_measurements(inplace=False)
    for part in engine.components(circuit):
        if not part.reads:
            continue
        found = engine.probabilities(circuit, part, values, None)
        for row, chances in zip(values, found, strict=True):
            order = {p.name: v for p, v in zip(circuit.parameters, row, strict=True)}
            state = Statevector(plain.assign_parameters({p: order[p.name] for p in plain.parameters}))
            np.testing.assert_allclose(chances, state.probabilities(list(part.physical)), atol=1e-12)


def test_bits_land_in_their_registers():
    circuit = QuantumCircuit(3)
    circuit.add_register(*QuantumCircuit(0, 0).cregs)
    from qiskit.circuit import ClassicalRegister

    first, second = ClassicalRegister(2, "c0"), ClassicalRegister(1, "c1")
    circuit.add_register(first, second)
    circuit.x(0)
    circuit.x(2)
    circuit.measure([0, 1, 2], [first[1], first[0], second[0]])
    found = engine.run(circuit, np.zeros((2, 0)), 7, None, "")
    assert found["c0"].shape == (2, 7, 2) and found["c1"].all()
    assert found["c0"][..., 1].all() and not found["c0"][..., 0].any()


def test_the_seed_is_made_of_the_content():
    circuit = random_circuit(1)
    values = np.random.default_rng(0).normal(size=(5, circuit.num_parameters))
    once, again = (engine.run(circuit, values, 100, None, "fez") for _ in range(2))
    other = engine.run(circuit, values + 1e-9, 100, None, "fez")
    np.testing.assert_array_equal(once["c"], again["c"])
    assert (once["c"] != other["c"]).any()
