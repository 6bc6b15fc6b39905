"""Every registered template x projection x Runge-Kutta rule x classifier runs forward and backward."""

import itertools

import pytest
import torch

from qrkt_hw.circuits import names
from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model, count_parameters, quantum_layers
from qrkt_hw.nn.blocks import TABLEAUS
from qrkt_hw.nn.quantum import QuantumProjection
from qrkt_hw.runs.config import Config

pytestmark = pytest.mark.acceptance
PROJECTIONS = ["quantum", "classical", "quantum-attention", "quantum-mlp"]
PROJECTING = [name for name in names() if name != "higher_order"]  # which has one output
# every circuit everywhere; every Runge-Kutta method and pool with two of them, with the others nightly
CASES = [
    case
    if case[0] in ("ry_rz_ring", "orthogonal_brick") or case[2:] == ("rk2", "mean")
    else pytest.param(*case, marks=pytest.mark.slow)
    for case in itertools.product(PROJECTING, PROJECTIONS, TABLEAUS, ["mean", "class"])
]
CASES += [("ry_rz_ring", projection, "rk2", "weighted") for projection in PROJECTIONS]
SMALL = {"hidden": 4, "heads": 2, "qubits": 2, "mlp": 2, "layers": 1, "rk_blocks": 1, "encoder_blocks": 1}


@pytest.mark.parametrize(("ansatz", "projection", "rk", "pool"), CASES, ids=lambda part: part)
def test_runs_forward_and_backward(ansatz, projection, rk, pool):
    torch.manual_seed(0)
    options = Config(**SMALL, ansatz=ansatz, projection=projection, rk=rk, pool=pool)
    model = build_model(options, DataShape(1, 8, 10))
    logits = model(torch.randn(2, 1, 8, 8))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert bool(quantum_layers(model)) == (projection != "classical")


def test_quantum_in_every_projection_holds_no_dense_map_in_attention():
    model = build_model(Config(), DataShape(1, 8, 10))
    for block in model.blocks:
        for field in block.fields:
            attention = field.attention
            for part in (attention.query, attention.key, attention.value, attention.output):
                assert isinstance(part, QuantumProjection)
                assert all(p.ndim == 1 for p in part.parameters())
            assert isinstance(field.feed_forward.projection, QuantumProjection)
    counts = count_parameters(model)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["quantum"] > 0


def test_default_model_has_runge_kutta_blocks():
    options = Config()
    assert options.model.rk_blocks >= 1 and options.model.projection == "quantum"


def test_unshared_stages_have_weights_of_their_own():
    shared = count_parameters(build_model(Config(rk="rk4"), DataShape(1, 8, 10)))["quantum"]
    unshared = count_parameters(build_model(Config(rk="rk4", share_stages=False), DataShape(1, 8, 10)))["quantum"]
    assert unshared == 4 * shared
