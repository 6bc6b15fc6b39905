"""The simulator as a function: shapes, groups, precision, refusals."""

import dataclasses
import gc
import pickle
import weakref

import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qrkt_hw.circuits import CircuitTemplate, build
from qrkt_hw.compiler import lower
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import METHODS, REMOVED_METHODS, Simulator, simulator

TEMPLATE = build("ry_rz_ring", 3, 2)


@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (0,), (2, 0)])
def test_leading_axes_are_kept(lead, method):
    evaluate = Simulator(TEMPLATE, torch.complex64, "auto" if not fits(method) else method)
    values = evaluate(torch.randn(*lead, 2, 3), torch.randn(2, TEMPLATE.num_weights))
    assert values.shape == (*lead, 2, 3) and values.dtype == torch.float32


def fits(method):
    return method == "auto" or METHODS[method].supports(TEMPLATE)


def test_each_group_has_its_own_weights():
    evaluate = simulator(TEMPLATE, torch.complex128)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    w = torch.randn(3, TEMPLATE.num_weights, dtype=torch.float64)
    together = evaluate(x, w)
    for g in range(3):
        torch.testing.assert_close(together[:, g : g + 1], evaluate(x[:, g : g + 1], w[g : g + 1]))


@pytest.mark.parametrize(
    ("x", "w"), [((5, 3), (1, 12)), ((5, 2, 4), (2, 12)), ((5, 2, 3), (1, 12)), ((5, 2, 3), (2, 11)), ((3,), (1, 12))]
)
def test_wrong_shapes_are_named(x, w):
    with pytest.raises(ValueError, match="must be"):
        simulator(TEMPLATE)(torch.zeros(x), torch.zeros(w))


def test_unknown_methods_and_precisions_are_refused():
    with pytest.raises(UserError, match="auto"):
        Simulator(TEMPLATE, method="magic")
    with pytest.raises(ValueError, match="complex64"):
        Simulator(TEMPLATE, torch.float32)


@pytest.mark.parametrize("method", REMOVED_METHODS)
def test_a_removed_method_reads_as_auto_with_one_warning(method):
    with pytest.warns(UserWarning, match=f"'{method}' no longer exists") as seen:
        assert Simulator(TEMPLATE, method=method).method == simulator(TEMPLATE).method
    assert len(seen) == 1


def test_what_is_made_of_a_template_lives_and_dies_with_it():
    template = build("qrkt", 3, 1)
    for k in range(600):  # throw-away templates put nothing out
        lower(dataclasses.replace(template, name=f"t{k}"))
    assert lower(template) is lower(template) and simulator(template) is simulator(template, method="auto")
    copy = dataclasses.replace(template)
    program, made = weakref.ref(lower(copy)), weakref.ref(simulator(copy))
    assert pickle.loads(pickle.dumps(copy)).num_qubits == 3
    del copy
    gc.collect()
    assert program() is None and made() is None


def test_a_template_that_cannot_be_lowered_is_the_users_mistake():
    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.rx(x[0].sin(), 0)
    circuit.ry(w[0], 0)
    with pytest.raises(UserError, match="not linear"):
        Simulator(CircuitTemplate("mine", circuit, x, w))


def test_values_are_expectations():
    values = simulator(TEMPLATE)(torch.randn(50, 2, 3) * 3, torch.randn(2, TEMPLATE.num_weights) * 3)
    assert values.abs().max() <= 1 + 1e-5
    assert values.std() > 0.05
