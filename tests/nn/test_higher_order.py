"""Higher-order attention: its circuit, its heads, padding, and hidden parity."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from qrkt_hw import circuits
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import build_model, count_parameters
from qrkt_hw.nn.attention import HigherOrderAttention
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.runs.config import Config, unused

POSITIONS = 10
OPTIONS = {"model": "text", "projection": "classical", "attention": "higher-order", "ansatz": "higher_order",
           "encoder_blocks": 1, "rk_blocks": 0, "hidden": 4, "heads": 4, "mlp": 1, "positions": "none",
           "dropout": 0.0}  # fmt: skip


def attention(ansatz="higher_order", tokens=5):
    torch.manual_seed(0)
    layer = QuantumLayer(2 * tokens, ansatz, qubits=tokens, initial_weights="uniform")
    return HigherOrderAttention(hidden=4, circuits=layer, projection=None)


def test_one_layer_is_the_real_part_of_a_product():
    layer = QuantumLayer(6, "higher_order", dtype=torch.complex128, initial_weights="uniform")
    x = torch.randn(5, 6, dtype=torch.float64)
    *angles, last = layer.weight
    factors = [a.cos() - 1j * a.sin() * x[:, j].sin() for j, a in enumerate(angles)]
    wanted = (torch.exp(1j * last) * torch.stack(factors).prod(0)).real
    torch.testing.assert_close(layer(x)[:, 0], wanted)


@pytest.mark.parametrize("ansatz", ["higher_order", "brickwork"])
def test_each_feature_of_all_tokens_passes_the_circuit_of_its_head(ansatz):
    module, value = attention(ansatz), torch.randn(3, 5, 4)
    found = module.mix(value)
    for feature in range(4):
        angles = module.circuits.weight.view(2, -1)[feature // 2]
        alone = QuantumLayer(5, ansatz, initial_weights=angles)(value[..., feature] * (math.pi / 2))
        torch.testing.assert_close(found[..., feature], alone.expand(3, 5))


def test_padding_counts_as_zero():
    module, value = attention(), torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    found, short = module.mix(value, mask=mask), module.mix(value[1:, :3])
    torch.testing.assert_close(found[1, :3], short[0])
    with pytest.raises(ValueError, match="6 tokens; the circuits take at most 5"):
        module.mix(torch.randn(2, 6, 4))


def test_what_does_not_fit_is_refused():
    two = circuits.CircuitTemplate("two", *_three_in_two_out())
    with pytest.raises(UserError, match="gives 2 values for 3 tokens"):
        HigherOrderAttention(hidden=2, circuits=QuantumLayer(3, two), projection=None)
    assert "only the attention has circuits" in (unused(Config(**OPTIONS, qubits=2), ["qubits"]) or "")
    assert unused(Config(**OPTIONS), ["attention", "layers", "ansatz"]) is None
    none = Config(**{**OPTIONS, "encoder_blocks": 0})
    assert "no blocks" in (unused(none, ["attention"]) or "") and not none.has_circuits


def _three_in_two_out():
    one = circuits.build("brickwork", 3, 1)
    return one.circuit, one.inputs, one.weights, one.observables[:2]


def test_a_model_with_it_is_quantum_and_its_baseline_is_not():
    options = Config(**OPTIONS)
    assert options.has_circuits and not options.without_circuits().has_circuits
    count = count_parameters(build_model(options, DataShape(0, 0, 2, 4, POSITIONS)))
    assert count["quantum"] == 4 * (POSITIONS + 1)


def parity_accuracy(order: int, seed: int, epochs: int) -> float:
    """Of a model trained on 768 strings of 10 bits, on the other 256; the parity is that of ``order`` hidden bits."""
    torch.manual_seed(seed)
    bits = torch.arange(2**POSITIONS)[:, None] >> torch.arange(POSITIONS) & 1
    labels = bits[:, torch.randperm(POSITIONS)[:order]].sum(1) % 2
    training, test = torch.randperm(len(bits)).split(768)
    ids = bits + 2  # 0 is padding, 1 an unknown word
    model = build_model(Config(**OPTIONS), DataShape(0, 0, 2, 4, POSITIONS))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(epochs):
        for batch in training[torch.randperm(len(training))].split(64):
            loss = cross_entropy(model(ids[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            accuracy = (model(ids[test]).argmax(1) == labels[test]).double().mean().item()
        if accuracy >= 0.99:
            break
    print(f"order {order}, seed {seed}: {accuracy:.3f} with {count_parameters(model)['total']} parameters")
    return accuracy


@pytest.mark.parametrize("order", [2, 3, 4])
def test_it_learns_a_hidden_parity_that_it_was_not_shown(order):
    assert parity_accuracy(order, seed=0, epochs=30) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("order", range(2, 7))
def test_it_learns_hidden_parities_up_to_order_six(order):
    assert sum(parity_accuracy(order, seed, epochs=60) >= 0.99 for seed in range(3)) >= 2


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="hidden is 5; it must be a multiple of the 2 heads"):
        HigherOrderAttention(hidden=5, circuits=QuantumLayer(6, "higher_order", qubits=3), projection=None)
