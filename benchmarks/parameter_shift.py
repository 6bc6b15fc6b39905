"""One backward pass by parameter shift: ours against the stock EstimatorQNN, on the same Aer, in one run.

    python benchmarks/parameter_shift.py --out results/parameter_shift.json

A layer of 6 qubits and 42 weights at batch 16, derivatives by inputs and weights. The stock network takes its gradient
by ``ParamShiftEstimatorGradient`` on Aer's EstimatorV2 without sampling; ours is one broadcast call on Aer. Both
Jacobians are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit_aer.primitives import EstimatorV2
from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
from qiskit_machine_learning.neural_networks import EstimatorQNN

from qrkt_hw.backends import resolve
from qrkt_hw.circuits import CircuitTemplate
from qrkt_hw.nn.quantum import TemplateNetwork

QUBITS, LAYERS, BATCH = 6, 7, 16


def template() -> CircuitTemplate:
    """RY encoding, then seven layers of RY and a CX chain: 6 inputs, 42 weights."""
    inputs, weights = ParameterVector("x", QUBITS), ParameterVector("w", QUBITS * LAYERS)
    circuit = QuantumCircuit(QUBITS)
    for qubit in range(QUBITS):
        circuit.ry(inputs[qubit], qubit)
    for layer in range(LAYERS):
        for qubit in range(QUBITS):
            circuit.ry(weights[layer * QUBITS + qubit], qubit)
        for qubit in range(QUBITS - 1):
            circuit.cx(qubit, qubit + 1)
    return CircuitTemplate("benchmark", circuit, inputs, weights)


def timed(function, repeats: int) -> tuple[float, float, object]:
    """Median wall and CPU seconds of as many repeats for either side, and the last value.

    CPU time counts all threads of this process and does not move with what else the machine is doing.
    """
    walls, processors, value = [], [], None
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        value = function()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return float(np.median(walls)), float(np.median(processors)), value


def compare(batch: int = BATCH, repeats: int = 1) -> dict[str, float]:
    """Seconds of both, their ratio, and the largest difference of the Jacobians."""
    circuit = template()
    backend = resolve("aer_cpu", gradient="parameter_shift")
    ours = TemplateNetwork(circuit, backend)
    estimator = EstimatorV2(options={"default_precision": 0.0})
    stock = EstimatorQNN(
        circuit=circuit.circuit,
        estimator=estimator,
        gradient=ParamShiftEstimatorGradient(estimator),
        observables=list(circuit.observables),
        input_params=list(circuit.inputs),
        weight_params=list(circuit.weights),
        input_gradients=True,
        default_precision=0.0,
    )
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(batch, circuit.num_inputs)), rng.normal(size=circuit.num_weights)
    ours.backward(x[:1], w)  # transpiles once, as any training does
    wall, processor, found = timed(lambda: ours.backward(x, w), repeats)
    stock_wall, stock_processor, wanted = timed(lambda: stock.backward(x, w), repeats)
    difference = max(float(np.abs(a - np.asarray(b)).max()) for a, b in zip(found, wanted, strict=True))
    return {
        "batch": batch,
        "qubits": circuit.num_qubits,
        "weights": circuit.num_weights,
        "repeats": repeats,
        "wall_seconds": round(wall, 4),
        "stock_wall_seconds": round(stock_wall, 3),
        "wall_ratio": round(stock_wall / wall, 1),
        "cpu_seconds": round(processor, 4),
        "stock_cpu_seconds": round(stock_processor, 3),
        "cpu_ratio": round(stock_processor / processor, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "largest_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/parameter_shift.json"))
    given = parser.parse_args()
    found = compare()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
