"""Ours against EstimatorQNN behind TorchConnector on one layer step of size B (qrkt, 6 qubits, 260 tokens).

Runs on the project's own dependencies; takes a minute or more, all of it EstimatorQNN's.

python benchmarks/headline.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from layer_step import ours
from qiskit.primitives import StatevectorEstimator
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
from qiskit_machine_learning.neural_networks import EstimatorQNN
from timing import SIZES, save

from qrkt_hw import circuits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=SIZES["B"][2], help="batch of both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    n, layers, _ = SIZES["B"]
    template = circuits.build("qrkt", n, layers)
    method, found = ours(template, options.samples)
    estimator = StatevectorEstimator()
    network = EstimatorQNN(
        circuit=template.circuit,
        observables=list(template.observables),
        input_params=list(template.inputs),
        weight_params=list(template.weights),
        input_gradients=True,
        estimator=estimator,
        gradient=ParamShiftEstimatorGradient(estimator),
    )
    layer = TorchConnector(network)
    x = torch.randn(options.samples, n, requires_grad=True)
    started, used = time.perf_counter(), time.process_time()
    layer(x).square().sum().backward()
    theirs, processor = 1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - used)
    save(
        options.json,
        [{"samples": options.samples, "method": method, "ours_ms": found["median"], "EstimatorQNN_ms": theirs,
          "gain": theirs / found["median"], "ours_processor_ms": found["processor"],
          "EstimatorQNN_processor_ms": processor, "gain_of_processor_times": processor / found["processor"]}],
    )  # fmt: skip


if __name__ == "__main__":
    main()
