"""Tutorials of qiskit-machine-learning with one line changed, on a fake device: fewer executions, the same accuracy.

The notebooks are those of the checkout that ``QRKT_HW_QML_CHECKOUT`` names. The stock side runs on Aer with the noise
of the same device. ``-s`` prints the counts.
"""

import ast
import json
import os
import sys
import warnings
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from qiskit.circuit.library import real_amplitudes, zz_feature_map
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2, BaseEstimatorV2, BaseSamplerV2, StatevectorSampler
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel

from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.primitives import PackedEstimator, PackedSampler

CHECKOUT = os.environ.get("QRKT_HW_QML_CHECKOUT")
WHY = "QRKT_HW_QML_CHECKOUT names no checkout of qiskit-machine-learning"
pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(3600)]
DEVICE = "fake_torino"


class Stock:
    """A primitive of Qiskit on Aer with the device's noise; circuits are transpiled to the device and not packed."""

    def __init__(self):
        with warnings.catch_warnings(action="ignore"):
            noise = NoiseModel.from_backend(fake_device(DEVICE))
        aer = AerSimulator(noise_model=noise, method="density_matrix", seed_simulator=7)
        self.made, self.executions, self.isa = self.reference(backend=aer), 0, {}
        self.manager = generate_preset_pass_manager(3, backend=fake_device(DEVICE), seed_transpiler=1)

    def run(self, pubs, **how):
        """Pubs as a stock program sends them, after its pass manager."""
        own = []
        for pub in pubs:
            one = self.pub.coerce(pub, *how.values())
            isa = self.isa.setdefault(id(one.circuit), (self.manager.run(one.circuit), one.circuit))[0]
            own.append(self.on_device(one, isa))
            self.executions += self.shots(one) * one.parameter_values.size * self.strings(one)
        return self.made.run(own, **how)


class StockSampler(Stock, BaseSamplerV2):
    reference, pub = BackendSamplerV2, SamplerPub

    def on_device(self, one, isa):
        return (isa, one.parameter_values, one.shots)

    def shots(self, one):
        return one.shots or 1024

    def strings(self, one):
        return 1


class StockEstimator(Stock, BaseEstimatorV2):
    reference, pub = BackendEstimatorV2, EstimatorPub

    def on_device(self, one, isa):
        return (isa, one.observables.apply_layout(isa.layout), one.parameter_values, one.precision)

    def shots(self, one):
        return int(np.ceil(1 / (one.precision or 1 / 64) ** 2))

    def strings(self, one):
        return one.observables.size


def executed(name, made, stop=None, cuts=()):
    """What the notebook's cells define, and the values of its calls of ``score``, in order.

    ``made`` replaces the line that makes a primitive; ``cuts`` shorten it.
    """
    found, scores = {"__name__": "__main__"}, []
    for cell in json.loads((Path(CHECKOUT) / "docs/tutorials" / name).read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code" or "tutorial_magics" in text:
            continue
        for line in made:
            text = text.replace(line, f"{line.split()[0]} = __made__[{line!r}]")
        for long, short in cuts:
            text = text.replace(long, short)
        kept = [line for line in text.splitlines() if not line.startswith(("%", "!")) and ".draw(" not in line]
        tree = ast.parse("\n".join(kept))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        found["__made__"] = made
        exec(compile(tree, name, "exec"), found)
        value = None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), found)
        if ".score(" in (text.splitlines() or [""])[-1]:
            scores.append(float(value))
        if stop is not None and stop in found:
            break
    return found, scores


@pytest.fixture
def notebook(monkeypatch):
    if CHECKOUT is None:
        pytest.skip(WHY)
    for module in ("IPython", "IPython.display", "seaborn"):  # they only draw
        monkeypatch.setitem(sys.modules, module, MagicMock(version_info=(9, 0), get_ipython=lambda: None))
    return executed


def alike(first, second, samples):
    """Whether two accuracies differ by no more than three standard errors of so many samples."""
    mean = (first + second) / 2
    return abs(first - second) <= 3 * np.sqrt(2 * max(mean * (1 - mean), 0.05) / samples)


def test_the_tutorial_of_a_vqc_on_real_data(notebook):
    cuts = [("maxiter=100", "maxiter=25")]  # of 100 steps of the optimizer
    found = {}
    for sampler in (PackedSampler(DEVICE, seed=1), StockSampler()):
        ran, _ = notebook("02a_training_a_quantum_model_on_a_real_dataset.ipynb", {"sampler = Sampler()": sampler},
                          "test_score_q4", cuts)  # fmt: skip
        executions = sampler.executions if isinstance(sampler, Stock) else sampler.backend.counters.executions
        found[type(sampler).__name__] = executions, ran["train_score_q4"], ran["test_score_q4"]
    ours, stock = found["PackedSampler"], found["StockSampler"]
    print(f"\nVQC, 4 qubits, 25 steps: executions, accuracies on train and test: {ours} against {stock}")
    assert stock[0] / ours[0] >= 20
    assert alike(ours[1], stock[1], 120) and alike(ours[2], stock[2], 30)


def test_the_tutorial_of_classifiers(notebook):
    found = []
    for estimator, sampler in ((PackedEstimator(DEVICE, seed=1), PackedSampler(DEVICE, seed=1)),
                               (StockEstimator(), StockSampler())):  # fmt: skip
        made = {"estimator = Estimator()": estimator, "sampler = Sampler()": sampler}
        # its regressors follow, which take long
        _, scores = notebook("02_neural_network_classifier_and_regressor.ipynb", made, stop="predict")
        found.append(scores)
    print("\nclassifiers (EstimatorQNN, SamplerQNN, VQC, VQC of 3 classes):", *found)
    assert all(alike(*pair, 10) for pair in zip(*found, strict=True))


def test_a_classifier_has_the_same_accuracy_under_the_noise_of_the_device():
    rng, shots = np.random.default_rng(4), 4096
    circuit = zz_feature_map(4, reps=1).compose(real_amplitudes(4, reps=1)).measure_all(inplace=False)
    values = rng.uniform(0, 1, (50, circuit.num_parameters))
    values[:, [p.name.startswith("θ") for p in circuit.parameters]] = rng.uniform(-np.pi, np.pi, 8)
    chances = []
    for sampler in (StatevectorSampler(seed=1), PackedSampler(DEVICE, seed=1), StockSampler()):
        bits = sampler.run([(circuit, values)], shots=shots).result()[0].data.meas
        counts = [bits.get_int_counts(row) for row in range(len(values))]
        chances.append([[sum(n for k, n in one.items() if k % 3 == c) / shots for c in range(3)] for one in counts])
    exact, ours, stock = np.array(chances)
    # readout and gates differ from place to place on the chip
    assert np.sqrt(np.mean((ours - stock) ** 2)) < 0.04
    accuracies = [(one.argmax(1) == exact.argmax(1)).mean() for one in (ours, stock)]
    print("\naccuracies under noise, ours and stock:", *accuracies)
    assert min(accuracies) > 0.6 and alike(*accuracies, len(values))
