"""From options to a model."""

import pytest
import torch

from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import build_model, count_parameters, largest_circuit, quantum_layers
from qrkt_hw.models.weights import load_weights
from qrkt_hw.nn.blocks import TransformerBlock
from qrkt_hw.runs.config import Config

SHAPE = DataShape(1, 8, 10)


def model(seed=0, **options):
    torch.manual_seed(seed)
    return build_model(Config(**options), SHAPE)


def test_the_seed_decides_the_weights():
    first, second, third = model(0), model(0), model(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_parameters_are_counted_by_kind():
    small = model(hidden=4, heads=2, qubits=2, mlp=2, layers=1, rk_blocks=1, ansatz="qrkt", output_scale=False)
    # q, k, v, o: two circuits of two weights each; the MLP: one circuit of two
    assert count_parameters(small)["quantum"] == 4 * 2 * 2 + 2
    assert largest_circuit(small) == 2
    classical = model(projection="classical")
    assert count_parameters(classical)["quantum"] == 0 and largest_circuit(classical) == 0


@pytest.mark.parametrize(("projection", "circuits"), [("quantum-attention", 4), ("quantum-mlp", 1), ("quantum", 5)])
def test_circuits_stand_where_the_projection_says(projection, circuits):
    assert len(quantum_layers(model(projection=projection, rk_blocks=1, encoder_blocks=0))) == circuits


def test_the_mlp_takes_the_smaller_of_qubits_and_width():
    assert Config(qubits=4, mlp=2).mlp_qubits == 2
    assert Config(qubits=2, mlp=8).mlp_qubits == 2
    assert Config(qubits=2, mlp=8, mlp_qubits=8).mlp_qubits == 8


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"heads": 3}, "heads"),
        ({"qubits": 3}, "qubits"),
        ({"mlp_qubits": 3}, "mlp_qubits"),
        ({"patch": 3}, "patch"),
    ],
)
def test_sizes_that_do_not_fit_name_the_flag(options, flag):
    with pytest.raises(UserError, match=flag):
        model(**options)


def test_double_precision_gives_nearly_the_same():
    images = torch.randn(2, 1, 8, 8)
    single, double = model().eval(), model(dtype="complex128").eval()
    double.load_state_dict(single.state_dict())
    torch.testing.assert_close(double(images).float(), single(images), atol=1e-4, rtol=1e-4)
    assert double(images).dtype == torch.float64


def test_classes_and_channels_follow_the_data():
    assert build_model(Config(), DataShape(3, 12, 7))(torch.zeros(2, 3, 12, 12)).shape == (2, 7)


def test_weights_of_another_model_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file(model(hidden=8).state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        load_weights(model(), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="missing"):
        load_weights(model(), tmp_path / "none.safetensors")


def test_a_block_refuses_what_it_would_not_read():
    options = {"encoder_blocks": 1, "decoder_blocks": 1, "rk_blocks": 0, "hidden": 8, "heads": 2, "mlp": 4}
    built = model(projection="classical", **options)
    encoder, decoder = (m for m in built.modules() if isinstance(m, TransformerBlock))
    y = torch.zeros(2, 4, 8)
    assert encoder(y).shape == decoder(y, None, y).shape == y.shape
    for call in (lambda: encoder(y, None, y), lambda: encoder(y, None, None, y[..., 0] > 0), lambda: decoder(y)):
        with pytest.raises(ValueError, match="memory goes with cross-attention"):
            call()
