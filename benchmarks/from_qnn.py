"""QuantumLayer.from_qnn against TorchConnector on ten networks as in qiskit-machine-learning's tutorials.

python benchmarks/from_qnn.py [--batch 4]

Each takes one step forward and backward, by inputs and weights, in one thread. The stock network runs on its own exact
primitives. The largest differences of values and gradients are printed beside the times.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.circuit.library import real_amplitudes, z_feature_map, zz_feature_map
from qiskit.quantum_info import SparsePauliOp
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.neural_networks import EstimatorQNN, SamplerQNN

from qrkt_hw import QuantumLayer


def parity(outcome: int) -> int:
    return outcome.bit_count() % 2


def _estimator(circuit: QuantumCircuit, inputs, weights, observables=None) -> EstimatorQNN:
    return EstimatorQNN(circuit=circuit, input_params=inputs, weight_params=weights, observables=observables,
                        input_gradients=True)  # fmt: skip


def _sampler(circuit: QuantumCircuit, inputs, weights, interpret=None, shape=None) -> SamplerQNN:
    return SamplerQNN(circuit=circuit, input_params=inputs, weight_params=weights, interpret=interpret,
                      output_shape=shape, input_gradients=True)  # fmt: skip


def _one_qubit() -> tuple[QuantumCircuit, list, list]:
    x, w = ParameterVector("input1", 1), ParameterVector("weight1", 1)
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.ry(x[0], 0)
    circuit.rx(w[0], 0)
    return circuit, list(x), list(w)


def _entangled() -> tuple[QuantumCircuit, ParameterVector, ParameterVector]:
    x, w = ParameterVector("input", 2), ParameterVector("weight", 4)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.ry(x[1], 1)
    circuit.cx(0, 1)
    circuit.ry(w[0], 0)
    circuit.ry(w[1], 1)
    circuit.cx(0, 1)
    circuit.ry(w[2], 0)
    circuit.ry(w[3], 1)
    return circuit, x, w


def _maps(qubits: int, reps: int = 1) -> tuple[QuantumCircuit, list, list]:
    encoding, ansatz = zz_feature_map(qubits), real_amplitudes(qubits, reps=reps)
    return encoding.compose(ansatz), list(encoding.parameters), list(ansatz.parameters)


def _regression() -> tuple[QuantumCircuit, ParameterVector, ParameterVector]:
    x, w = ParameterVector("x", 1), ParameterVector("y", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(x[0], 0)
    circuit.ry(w[0], 0)
    return circuit, x, w


def _convolution(circuit: QuantumCircuit, a: int, b: int, angles: list, pool: bool) -> None:
    circuit.rz(-np.pi / 2, b)
    circuit.cx(b, a)
    circuit.rz(angles[0], a)
    circuit.ry(angles[1], b)
    circuit.cx(a, b)
    circuit.ry(angles[2], b)
    if not pool:
        circuit.cx(b, a)
        circuit.rz(np.pi / 2, a)


def _convolutional() -> tuple[QuantumCircuit, list, list]:
    """The quantum convolutional network on 8 qubits: convolve and pool to 4, 2 and 1."""
    encoding, circuit = z_feature_map(8), QuantumCircuit(8)
    weights: list = []
    for layer, first in enumerate((0, 4, 6)):
        wide = list(range(first, 8))
        pairs = [*zip(wide[::2], wide[1::2], strict=True), *zip(wide[1::2], [*wide[2::2], wide[0]], strict=True)]
        half = len(wide) // 2
        for kind, places in (("c", pairs), ("p", list(zip(wide[:half], wide[half:], strict=True)))):
            own = ParameterVector(f"{kind}{layer + 1}", 3 * len(places))
            weights += own
            for k, (a, b) in enumerate(places):
                _convolution(circuit, a, b, own[3 * k : 3 * k + 3], kind == "p")
    return encoding.compose(circuit), list(encoding.parameters), weights


def _autoencoder(latent: int = 2, trash: int = 1) -> tuple[QuantumCircuit, list, list]:
    """An encoder, and a swap test of what it throws away, read from one auxiliary qubit: no inputs."""
    ansatz = real_amplitudes(latent + trash, reps=3)
    circuit = QuantumCircuit(latent + 2 * trash + 1, 1)
    circuit.compose(ansatz, range(latent + trash), inplace=True)
    circuit.barrier()
    last = latent + 2 * trash
    circuit.h(last)
    for k in range(trash):
        circuit.cswap(last, latent + k, latent + trash + k)
    circuit.h(last)
    circuit.measure(last, 0)
    return circuit, [], list(ansatz.parameters)


def networks() -> dict[str, Callable[[], EstimatorQNN | SamplerQNN]]:
    """The ten networks by what their tutorials call them."""
    two = [SparsePauliOp("Y"), SparsePauliOp("Z")]
    last = SparsePauliOp.from_sparse_list([("Z", [7], 1.0)], 8)
    return {
        "estimator, 1 qubit": lambda: _estimator(*_one_qubit(), SparsePauliOp("Y")),
        "estimator, 2 observables": lambda: _estimator(*_one_qubit(), two),
        "sampler, parity": lambda: _sampler(*_entangled(), parity, 2),
        "sampler, all outcomes": lambda: _sampler(*_entangled()),
        "classifier, estimator": lambda: _estimator(*_maps(2)),
        "classifier, sampler, 3 classes": lambda: _sampler(*_maps(2, 3), lambda k: k % 3, 3),
        "regression, 1 qubit": lambda: _estimator(*_regression()),
        "hybrid network, 4 qubits": lambda: _estimator(*_maps(4), [SparsePauliOp("IIIZ"), SparsePauliOp("ZZII")]),
        "convolutional network, 8 qubits": lambda: _estimator(*_convolutional(), last),
        "autoencoder, swap test": lambda: _sampler(*_autoencoder(), lambda k: k, 2),
    }


def step(layer: torch.nn.Module, x: torch.Tensor | None, cotangent: torch.Tensor) -> list[torch.Tensor]:
    """Values, and the gradients by weights and, where there are any, by inputs."""
    values = layer(x)
    leaves = [layer.weight] if x is None else [layer.weight, x]
    return [values, *torch.autograd.grad(values, leaves, cotangent)]


def compare(make: Callable[[], EstimatorQNN | SamplerQNN], batch: int, repeat: int = 20) -> tuple[float, float, float]:
    """Seconds of a step of TorchConnector and of QuantumLayer, and the largest difference of their results."""
    qnn = make()
    torch.manual_seed(0)
    stock = TorchConnector(qnn)
    torch.manual_seed(0)
    layer = QuantumLayer.from_qnn(qnn)
    assert torch.equal(stock.weight, layer.weight)
    x = torch.rand(batch, qnn.num_inputs, requires_grad=True) if qnn.num_inputs else None
    cotangent = torch.rand(*(() if x is None else (batch,)), *qnn.output_shape)
    started = time.perf_counter()
    wanted = step(stock, x, cotangent)
    between = time.perf_counter()
    found = step(layer, x, cotangent)
    again = time.perf_counter()
    for _ in range(repeat):
        step(layer, x, cotangent)
    ours = (time.perf_counter() - again) / repeat
    worst = max(float((a - b).detach().abs().max()) for a, b in zip(wanted, found, strict=True))
    return between - started, ours, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    batch = parser.parse_args().batch
    torch.set_num_threads(1)
    compare(networks()["estimator, 1 qubit"], batch, 1)  # what both load when first used is not timed
    print(f"| network | TorchConnector (ms) | QuantumLayer (ms) | speed-up | largest difference |\n|{'---|' * 5}")
    for name, make in networks().items():
        stock, ours, worst = compare(make, batch)
        print(f"| {name} | {1e3 * stock:.1f} | {1e3 * ours:.3f} | {stock / ours:,.0f} | {worst:.1e} |", flush=True)


if __name__ == "__main__":
    main()
