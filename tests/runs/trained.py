"""Small trained runs that tests copy and spoil."""

import json
import shutil
from pathlib import Path

from tests.command_line import qrkt

SMALL = ["--epochs", 1, "--limit", 64, "--hidden", 16, "--mlp", 8, "--rk", "rk1", "--rk-blocks", 1]
GAN = ["--model", "gan", "--epochs", 1, "--limit", 32, "--latent", 4, "--generator-hidden", 16, "--hidden", 8,
       "--generator-patch", 2, "--heads", 2, "--mlp", 8, "--rk", "rk1", "--discriminator-rk-blocks", 1]  # fmt: skip
MINE = """
from pathlib import Path
from qiskit.circuit import ParameterVector, QuantumCircuit
from qrkt_hw.circuits import CircuitTemplate

def f(n, layers):
    x, w = ParameterVector("x", n), ParameterVector("w", n)
    circuit = QuantumCircuit(n)
    for j in range(n):
        circuit.ry(x[j], j)
        circuit.rx(w[j], j)
    for j in range(n - 1):
        circuit.cx(j, j + 1)
    return CircuitTemplate("mine", circuit, x, w)
"""


def copied(run: Path, place: Path) -> Path:
    shutil.copytree(run, place)
    return place


def loss(run: Path, cwd: Path) -> tuple[float, str]:
    found = qrkt("infer", run, "--json", cwd=cwd)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)["loss"], found.stderr
