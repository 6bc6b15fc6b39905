"""The thesis' circuit is the thesis' circuit."""

import numpy as np
import pytest

from qrkt_hw.circuits import build
from tests.random_templates import reference_values


def gates(template):
    find = template.circuit.find_bit
    return [(i.operation.name, tuple(find(q).index for q in i.qubits)) for i in template.circuit.data]


def test_gates_and_order_for_three_qubits():
    encoding = [("ry", (j,)) for j in range(3)]
    rotations = [(name, (j,)) for j in range(3) for name in ("rx", "rz")]
    ring = [step for j in range(3) for step in (("h", (j,)), ("cx", (j, (j + 1) % 3)))]
    assert gates(build("qrkt", 3, 2)) == encoding + 2 * (rotations + ring)


def test_two_qubits_have_one_cnot_and_no_hadamard():
    assert gates(build("qrkt", 2, 1))[-1] == ("cx", (0, 1))
    assert "h" not in [name for name, _ in gates(build("qrkt", 2, 1))]


def test_one_angle_turns_twice():
    template = build("qrkt", 3, 1)
    angles = [i.operation.params[0] for i in template.circuit.data if i.operation.name in ("rx", "rz")]
    assert angles == [w for w in template.weights for _ in range(2)]


@pytest.mark.parametrize("qubits", [3, 4, 6])
def test_at_one_layer_all_outputs_but_the_first_depend_on_one_input(qubits):
    template = build("qrkt", qubits, 1)
    rng = np.random.default_rng(qubits)
    x, theta = rng.uniform(-3, 3, size=(2, qubits))
    wanted = np.cos(theta) * np.sin(x) + np.sin(theta) ** 2 * np.cos(x)
    found = reference_values(template, np.concatenate([x, theta]))
    np.testing.assert_allclose(found[1:], wanted[1:], atol=1e-12)
    assert found[0] == pytest.approx(wanted[0] * wanted[-1], abs=1e-12)


def test_predecessor_is_an_rx_ring():
    names = [name for name, _ in gates(build("rx_ring", 3, 1))]
    assert names == ["rx"] * 6 + ["cx"] * 3


def test_brickwork_needs_no_swaps_on_a_line():
    from qiskit import transpile

    circuit = build("brickwork", 6, 3).circuit
    two = circuit.num_nonlocal_gates()
    line = [[j, j + 1] for j in range(5)] + [[j + 1, j] for j in range(5)]
    placed = transpile(circuit, coupling_map=line, optimization_level=0, initial_layout=list(range(6)))
    assert "swap" not in placed.count_ops() and placed.num_nonlocal_gates() == two


def test_reuploading_at_more_layers_has_higher_frequencies():
    def harmonics(layers):
        template = build("reuploading", 1, layers)
        rng = np.random.default_rng(0)
        weights = rng.uniform(-3, 3, size=template.num_weights)
        points = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        values = [reference_values(template, np.concatenate([[p], weights]))[0] for p in points]
        return np.flatnonzero(np.abs(np.fft.rfft(values)) > 1e-9).max()

    assert [harmonics(layers) for layers in (1, 2, 3)] == [1, 2, 3]
