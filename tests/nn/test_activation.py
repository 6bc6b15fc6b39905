"""The re-uploading activation: what it begins as, its derivatives, and how its angles to begin with are chosen."""

import pytest
import torch
from torch import nn

from qrkt_hw import circuits
from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.runs.circuits import Circuits, keep
from qrkt_hw.runs.config import Config
from qrkt_hw.simulator.analysis import cones

NAME = "activation_reuploading"
SHAPES = {"identity": nn.Identity(), "gelu": nn.GELU()}
ERRORS = {("identity", 1): 0.14, ("identity", 2): 0.026, ("identity", 3): 0.005, ("identity", 6): 0.005,
          ("gelu", 2): 0.055, ("gelu", 3): 0.004, ("gelu", 6): 0.004}  # fmt: skip


@pytest.mark.parametrize(("start", "layers"), ERRORS)
def test_it_begins_as_the_identity_or_as_gelu(start, layers):
    layer = QuantumLayer(6, NAME, qubits=2, layers=layers, initial_weights=start)
    x = torch.linspace(-3, 3, 61)[:, None].expand(-1, 6)
    assert (layer(x) - SHAPES[start](x)).abs().max() < ERRORS[start, layers]
    assert layer.weight.numel() == 6 * (3 * layers - 1)


def test_each_output_is_a_function_of_its_own_feature():
    for j, cone in enumerate(cones(circuits.build(NAME, 4, 2))):
        assert cone.inputs == (j,) and cone.weights == tuple(range(5 * j, 5 * j + 5)) and cone.exact


def test_it_is_differentiable_twice():
    layer = QuantumLayer(4, NAME, qubits=2, layers=2, dtype=torch.complex128, initial_weights="gelu")
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()

    def values(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(values, (x, weight))
    assert torch.autograd.gradgradcheck(values, (x, weight))


def test_without_a_choice_it_begins_with_its_first_angles_and_others_are_drawn():
    own = circuits.build(NAME, 2, 2).initial
    assert list(own) == ["identity", "gelu"]
    assert torch.equal(QuantumLayer(4, NAME, qubits=2, layers=2).weight, torch.tensor([*own["identity"]] * 2))
    drawn = [QuantumLayer(4, NAME, qubits=2, layers=2, initial_weights="uniform").weight for _ in "ab"]
    assert not torch.equal(*drawn)
    with pytest.raises(UserError, match="no 'gelu' to begin with, but identity, uniform"):
        QuantumLayer(4, NAME, initial_weights="gelu")  # of one layer


def test_a_run_keeps_the_angles_to_begin_with():
    template = circuits.build(NAME, 2, 2)
    assert keep(template, 2, 2).template.initial == template.initial
    options = Config(ansatz=NAME, qubits=2, layers=2, initial_angles="gelu")
    begun = Circuits(NAME, begun=True)
    for kept in (options, options.with_circuits(lambda: begun)):
        for layer in quantum_layers(build_model(kept, DataShape(1, 8, 10))):
            assert torch.equal(layer.weight, torch.tensor([*template.initial["gelu"]] * layer.groups))


def test_angles_that_an_ansatz_does_not_have_are_refused():
    with pytest.raises(UserError, match="ansatz brickwork has no angles for gelu"):
        build_model(Config(ansatz="brickwork", initial_angles="gelu"), DataShape(1, 8, 10))
    one = circuits.build(NAME, 1, 1)
    for wrong in ((0.0,), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="must be 2 finite angles"):
            CircuitTemplate("t", one.circuit, one.inputs, one.weights, initial={"zero": wrong})
