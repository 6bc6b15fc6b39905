"""Lowering: every gate becomes fixed unitaries and Pauli rotations that give the same operator up to a phase."""

import numpy as np
import pytest
import torch
from qiskit.circuit import Gate, Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import CRXGate, PauliEvolutionGate
from qiskit.quantum_info import Operator, SparsePauliOp

from qrkt_hw.circuits import CircuitTemplate
from qrkt_hw.compiler import Fixed, Rotation, lower
from qrkt_hw.compiler.program import Affine
from qrkt_hw.simulator import METHODS, Simulator
from tests.random_templates import GATES, reference_values

PARAMETERISED = [name for name, gate in GATES.items() if gate.params and gate.num_qubits]


def unitary(program, values):
    circuit = QuantumCircuit(program.num_qubits)
    for step in program.steps:
        if isinstance(step, Rotation):
            angle = step.angle.offset + sum(values[i] * c for i, c in step.angle.terms)
            step = Fixed(Rotation(step.pauli, step.qubits, Affine(offset=angle)).matrix(), step.qubits)
        circuit.unitary(step.matrix, step.qubits)
    return Operator(circuit)


@pytest.mark.parametrize("name", PARAMETERISED)
def test_every_parameterised_gate_is_its_rotations(name):
    gate = GATES[name].to_mutable()
    w = ParameterVector("w", len(gate.params))
    gate.params = [0.3 - 1.7 * p + 0.4 * w[0] for p in w]
    circuit = QuantumCircuit(gate.num_qubits)
    circuit.append(gate, range(gate.num_qubits))
    template = CircuitTemplate("t", circuit, (), w)
    program = lower(template)
    assert all(step.instruction == 0 for step in program.steps)
    values = np.random.default_rng(0).uniform(-3, 3, size=len(w))
    assert unitary(program, values).equiv(Operator(circuit.assign_parameters(values)))


def agrees(circuit, parameters, observables=()):
    template = CircuitTemplate("t", circuit, (), parameters, observables)
    values = np.random.default_rng(1).uniform(-3, 3, size=len(parameters))
    weights = torch.tensor(values)[None]
    for name, method in METHODS.items():
        if method.supports(template):
            found = Simulator(template, torch.complex128, name)(torch.zeros(1, 1, 0, dtype=torch.float64), weights)
            np.testing.assert_allclose(found[0, 0], reference_values(template, values), atol=1e-12, err_msg=name)


def test_a_gate_that_borrows_a_standard_name_is_not_taken_for_it():
    a = Parameter("a")
    inner = QuantumCircuit(2, name="rx")
    inner.h(0)
    inner.cx(0, 1)
    inner.rz(a, 1)
    inner.h([0, 1])
    circuit = QuantumCircuit(2)
    circuit.append(inner.to_gate(), [0, 1])
    idle = QuantumCircuit(1, name="id")
    idle.x(0)
    circuit.append(idle.to_gate(), [0])
    agrees(circuit, [a], ("XX", "ZI", "IZ"))


def test_open_controls_and_powers_of_a_circuit():
    a, b = Parameter("a"), Parameter("b")
    circuit = QuantumCircuit(3)
    circuit.h([0, 1, 2])
    circuit.append(CRXGate(a, ctrl_state=0), [0, 1])
    inner = QuantumCircuit(1)
    inner.ry(2 * b - a, 0)
    circuit.append(inner.to_gate().control(1), [2, 0])
    circuit.barrier()
    circuit.append(inner.to_gate().control(1, ctrl_state=0), [1, 2])
    agrees(circuit, [a, b], ("XYZ", "ZZI"))


def test_a_phase_that_depends_on_a_parameter_is_not_seen():
    a = Parameter("a")
    circuit = QuantumCircuit(1, global_phase=a)
    circuit.ry(a, 0)
    agrees(circuit, [a])


def test_time_evolution_of_commuting_paulis():
    a = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.h([0, 1])
    circuit.append(PauliEvolutionGate(SparsePauliOp(["ZZ", "IZ"], [0.7, -0.3]), time=a), [0, 1])
    agrees(circuit, [a], ("XX", "YI"))


@pytest.mark.parametrize("bad", [lambda a: a.sin(), lambda a: a * a, lambda a: (a + 1) * (a + 2), lambda a: a.abs()])
def test_what_is_not_linear_is_refused(bad):
    a = Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.rx(bad(a), 0)
    with pytest.raises(ValueError, match="not linear"):
        lower(CircuitTemplate("t", circuit, (), [a]))


def test_a_gate_without_matrix_or_definition_is_refused():
    a = Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.append(Gate("mystery", 1, [a]), [0])
    with pytest.raises(ValueError, match="mystery"):
        lower(CircuitTemplate("t", circuit, (), [a]))
    circuit = QuantumCircuit(1)
    circuit.rx(a, 0)
    circuit.append(Gate("mystery", 1, []), [0])
    with pytest.raises(ValueError, match="mystery"):
        lower(CircuitTemplate("t", circuit, (), [a]))
