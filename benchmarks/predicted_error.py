"""How well the reporter's predictors rank circuits by their true noisy error on a device.

For every template, width and depth: the circuit as the reporter transpiles it, cut to its active qubits, is evaluated
with the device's noise exactly (superoperators) for random inputs and weights; its true error is the root mean square
of noisy minus exact values over samples and outputs. Predictors are compared by Spearman's rank correlation.

    python benchmarks/predicted_error.py --device fake_torino --out results/predicted_error
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from qrkt_hw.backends.device.measurement import bases
from qrkt_hw.backends.device.transpile import PlacedCircuit, cut, fake_device, transpiled
from qrkt_hw.backends.noise import device_noise, noisy_circuit, observable_effects
from qrkt_hw.circuits import CircuitTemplate, build, names
from qrkt_hw.compiler import derive
from qrkt_hw.resources.devices import place_circuit
from qrkt_hw.simulator import simulator
from qrkt_hw.simulator.noisy import LARGEST, NoisySimulator


def placed_as_reported(template: CircuitTemplate, device: str, level: int) -> PlacedCircuit:
    """The circuit where the reporter puts it."""
    (basis,) = bases(template)
    return cut(transpiled(template, basis, fake_device(device).target, level))


def true_error(template: CircuitTemplate, device: str, level: int, samples: int) -> tuple[float, float] | None:
    """Root mean square of noisy minus exact values, and of the exact values; None where the circuit is too wide."""
    placed, noise = placed_as_reported(template, device, level), device_noise(device)
    if len(placed.physical) > LARGEST:
        return None
    (basis,) = bases(template)
    effects = observable_effects(basis, template.num_outputs, placed, noise)
    noisy = NoisySimulator(template, [noisy_circuit(template, placed, noise, effects)], torch.complex128)
    generator = torch.Generator().manual_seed(11)
    inputs, weights = (
        (torch.rand(samples, count, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
        for count in (template.num_inputs, template.num_weights)
    )
    with torch.no_grad():  # every sample is a group: it has weights of its own
        ideal = simulator(template, torch.complex128)(inputs[None], weights)[0]
        found = noisy(inputs[None], weights)[0]
    return float((found - ideal).square().mean().sqrt()), float(ideal.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="fake_torino")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--qubits", default="2,3,4,5,6")
    parser.add_argument("--layers", default="1,2,3")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--out", type=Path, help="folder for rows.csv and results.json")
    options = parser.parse_args()
    rows = []
    left_out = []
    for name in names():
        for qubits in map(int, options.qubits.split(",")):
            for layers in map(int, options.layers.split(",")):
                template = derive(build(name, qubits, layers)).template
                found = true_error(template, options.device, options.level, options.samples)
                if found is None:
                    left_out.append(f"{name}:{qubits}:{layers}")
                    continue
                placed = place_circuit(template, fake_device(options.device), options.level)
                lost = np.array([1 - s for s in placed.output_success])
                rows.append(
                    {
                        "circuit": f"{name}:{qubits}:{layers}", "true_error": found[0], "ideal_rms": found[1],
                        "failure": 1 - placed.success, "cone_failure": float(lost.mean()),
                        "predicted_error": placed.predicted_error,
                        "two_qubit_gates": placed.two_qubit_gates,
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
    truth = [row["true_error"] for row in rows]
    scores = {
        key: float(spearmanr([row[key] for row in rows], truth).statistic)
        for key in ("failure", "cone_failure", "predicted_error", "two_qubit_gates")
    }
    result = {
        "device": options.device,
        "level": options.level,
        "circuits": len(rows),
        "too_wide": left_out,
        "spearman": scores,
    }
    print(json.dumps(result, indent=2))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
