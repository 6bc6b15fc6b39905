"""Packed values computed exactly from the packed circuits: taken apart into connected components, or as a whole."""

import numpy as np
import rustworkx as rx
from qiskit.circuit import ClassicalRegister, Parameter, ParameterVector, QuantumCircuit, QuantumRegister
from qiskit.quantum_info import SparsePauliOp, Statevector

from qrkt_hw.ansatz import CircuitTemplate


def pauli_template():
    """Observables that take three bases."""
    x, w = ParameterVector("x", 3), (Parameter("w"),)
    circuit = QuantumCircuit(3)
    for qubit in range(3):
        circuit.ry(x[qubit], qubit)
    circuit.cx(0, 1)
    circuit.rz(2 * w[0], 1)
    circuit.cx(1, 2)
    observables = (SparsePauliOp("XYZ"), SparsePauliOp(["ZZI", "IIX"], [0.5, -2.0]), SparsePauliOp("YYY"))
    return CircuitTemplate("several bases", circuit, x, w, observables)


def branching():
    """A circuit that measures on its way and branches."""
    circuit = QuantumCircuit(QuantumRegister(2, "q"), ClassicalRegister(1, "m"), ClassicalRegister(1, "out"))
    circuit.ry(Parameter("a"), 0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.cregs[0], 1)):
        circuit.x(1)
    circuit.measure(1, 1)
    return circuit


def components(wide):
    """Of a measured wide circuit: every connected part as a circuit, and its qubit behind ``(register, bit)``."""
    graph = rx.PyGraph()
    graph.add_nodes_from(range(wide.num_qubits))
    gates, measured = [], {}
    for instruction in wide.data:
        qubits = [wide.find_bit(q).index for q in instruction.qubits]
        if instruction.operation.name == "measure":
            register, bit = wide.find_bit(instruction.clbits[0]).registers[0]
            measured[(register.name, bit)] = qubits[0]
        else:
            gates.append((instruction.operation, qubits))
            if len(qubits) == 2:
                graph.add_edge(*qubits, None)
    used = set(measured.values()) | {q for _, qubits in gates for q in qubits}
    for part in rx.connected_components(graph):
        own = sorted(part & used)
        if own:
            place = {q: k for k, q in enumerate(own)}
            circuit = QuantumCircuit(len(own))
            for operation, qubits in gates:
                if qubits[0] in place:
                    circuit.append(operation, [place[q] for q in qubits])
            yield circuit, {where: place[q] for where, q in measured.items() if q in place}


def tables(work):
    """For each register the exact outcome probabilities ``(executions, outcomes)``; every component a statevector."""
    registers = {register.name: register.size for register in work.circuit.cregs}
    found = {name: np.ones((len(work.values), *[1] * size)) for name, size in registers.items()}
    order = {parameter: k for k, parameter in enumerate(work.circuit.parameters)}
    for circuit, measured in components(work.circuit):
        names = {name for name, _ in measured}
        assert len(names) == 1, "two copies are joined by a gate"
        (name,) = names
        bits = sorted(bit for _, bit in measured)
        qubits = [measured[(name, bit)] for bit in bits]
        for row, values in enumerate(work.values):
            bound = circuit.assign_parameters({p: values[order[p]] for p in circuit.parameters})
            chances = Statevector(bound).probabilities(qubits).reshape([2] * len(bits))
            axes = [2 if bit in bits else 1 for bit in reversed(range(registers[name]))]
            shaped = chances.reshape(axes)
            found[name] = _times(found[name], row, shaped)
    return {name: table.reshape(len(work.values), -1) for name, table in found.items()}


def _times(table, row, factor):
    """The table with one row multiplied by a factor that may have more axes filled."""
    shape = np.broadcast_shapes(table.shape[1:], factor.shape)
    table = np.broadcast_to(table, (len(table), *shape)).copy()
    table[row] = table[row] * factor
    return table


def component_values(packer, calls):
    """Values of calls from the exact outcomes of the PUBs that a packer makes."""
    pubs = packer.pack(calls)
    outcomes = []
    for pub in pubs:
        found = tables(pub)
        outcomes.append([found[f"c{place}"] for place in range(len(pub.slots))])
    return packer.decode(calls, pubs, outcomes)
