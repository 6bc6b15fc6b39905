"""The penalties differentiate twice through circuits, correctly."""

import numpy as np
import pytest
import torch
from torch import nn

from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.runs.config import Config
from qrkt_hw.training.gan import discriminator_loss, generator_loss, penalty

SMALL = {
    "model": "gan", "latent": 4, "generator_hidden": 16, "generator_patch": 2, "hidden": 4, "heads": 2, "mlp": 4,
    "patch": 4, "discriminator_rk_blocks": 1, "dtype": "complex128", "qubits": 2,
}  # fmt: skip


def slope_of(function, parameter, place, eps=1e-5):
    """Central difference of a scalar function in one entry of a parameter."""
    entries, values = parameter.data.view(-1), []
    held = entries[place].item()
    for step in (eps, -eps):
        entries[place] = held + step
        values.append(function().item())
    entries[place] = held
    return (values[0] - values[1]) / (2 * eps)


QUICK = ("wgangp-eps", "qrkt", "rk1")
CASES = [(x, a, r) for x in ("wgangp-eps", "nonsaturating-r1") for a in ("ry_rz_ring", "qrkt") for r in ("rk1", "rk2")]


@pytest.mark.parametrize(
    ("loss", "ansatz", "rk"), [c if c == QUICK else pytest.param(*c, marks=pytest.mark.slow) for c in CASES]
)
def test_the_penalty_through_a_quantum_discriminator_has_the_gradient_of_finite_differences(loss, ansatz, rk):
    options = Config.model_validate({**SMALL, "loss": loss, "ansatz": ansatz, "rk": rk})
    torch.manual_seed(3)
    discriminator = build_model(options, DataShape(1, 8, 10)).discriminator
    real, fake = torch.rand(2, 2, 1, 8, 8, dtype=torch.float64) * 2 - 1

    def value():
        torch.manual_seed(0)  # the same points between real and generated images
        return penalty(options.gan, discriminator, real, fake)

    value().backward()
    largest = 0.0
    for name, parameter in discriminator.named_parameters():
        gradients = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for place in {0, parameter.numel() // 2, parameter.numel() - 1}:
            found = gradients.reshape(-1)[place].item()
            assert found == pytest.approx(slope_of(value, parameter, place), rel=1e-5, abs=1e-7), (name, place)
            largest = max(largest, abs(found)) if "weight" in name and "layer" in name else largest
    assert largest > 1e-3  # the circuits' angles take part


@pytest.mark.parametrize("ansatz", ["ry_rz_ring", "qrkt", "brickwork"])
def test_gradients_to_be_differentiated_again_equal_plain_ones_when_stages_share_weights(ansatz):
    options = Config.model_validate({**SMALL, "ansatz": ansatz, "rk": "rk4"})
    torch.manual_seed(1)
    discriminator = build_model(options, DataShape(1, 8, 10)).discriminator
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    parameters = [p for p in discriminator.parameters() if p.requires_grad]
    plain = torch.autograd.grad(discriminator(images).sum(), parameters)
    again = torch.autograd.grad(discriminator(images).sum(), parameters, create_graph=True)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


def test_the_stock_connector_loses_the_second_derivative_in_silence_and_ours_has_it():
    from qiskit_machine_learning.connectors import TorchConnector

    ours = QuantumLayer(2, "ry_rz_ring", dtype=torch.complex128, initial_weights=np.linspace(0.3, 1.9, 4))
    stock = TorchConnector(ours.network, initial_weights=ours.weight.detach().numpy())
    images = torch.tensor([[0.4, 1.1]], dtype=torch.float64)

    def second(layer: nn.Module):
        points = images.clone().requires_grad_()
        values = layer(points).sum()
        (gradients,) = torch.autograd.grad(values, points, create_graph=True)
        if not gradients.requires_grad:  # a constant: a penalty on it trains nothing and raises nothing
            return gradients, None
        return gradients, torch.autograd.grad(gradients.square().sum(), layer.weight, allow_unused=True)[0]

    gradients, curvature = second(ours)
    stock_gradients, stock_curvature = second(stock)
    torch.testing.assert_close(gradients.detach(), stock_gradients.detach().double(), rtol=1e-5, atol=1e-6)
    assert curvature is not None and curvature.abs().max() > 0.1
    assert stock_curvature is None or not stock_curvature.any()


def test_losses_fall_where_a_side_gets_better():
    for loss in ("wgangp-eps", "hinge", "nonsaturating-r1"):
        low, high = torch.full((4, 1), -0.5), torch.full((4, 1), 0.5)
        assert discriminator_loss(loss, high, low) < discriminator_loss(loss, low, high)
        assert generator_loss(loss, high) < generator_loss(loss, low)


def test_penalties_of_a_linear_score_have_their_formulas():
    gradient = torch.tensor([3.0, 4.0])
    real, fake = torch.randn(2, 5, 2, 1, 1)

    def score(x):
        return x.flatten(1) @ gradient

    def weigh(**o):
        return penalty(Config(model="gan", **o).gan, score, real, fake).item()

    assert weigh(loss="nonsaturating-r1", penalty=2.0) == pytest.approx(25.0)
    assert weigh(loss="wgangp-eps", penalty=10.0) == pytest.approx(10 * 16)
    assert weigh(loss="wgangp-eps", penalty=10.0, penalty_target=2.0) == pytest.approx(10 / 4 * 9)
    assert weigh(loss="hinge") == 0
