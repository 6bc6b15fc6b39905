"""The GAN's two sides at any shape."""

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from qrkt_hw.data.base import Data, DataShape, Indexed
from qrkt_hw.errors import UserError
from qrkt_hw.models import metrics
from qrkt_hw.models.factory import build_model, count_parameters, field_evaluations, quantum_layers
from qrkt_hw.models.metrics import fid, sliced_wasserstein
from qrkt_hw.models.transformer import of_class
from qrkt_hw.nn.blocks import TABLEAUS
from qrkt_hw.runs.config import Config

SMALL = {"model": "gan", "latent": 8, "generator_hidden": 64, "hidden": 8, "heads": 2, "mlp": 8, "patch": 4}


def made(shape=(1, 8), **options):
    return build_model(Config.model_validate({**SMALL, **options}), DataShape(*shape, 10))


@pytest.mark.parametrize("rk", sorted(TABLEAUS))
def test_every_rule_stands_in_either_side(rk):
    gan = made(rk=rk, generator_rk_blocks="1,0", generator_blocks="0,1", discriminator_rk_blocks=1)
    images = gan(torch.randn(3, 8))
    assert images.shape == (3, 1, 8, 8) and images.abs().max() <= 1
    assert gan.discriminator(images).shape == (3, 1)
    assert field_evaluations(gan.generator) == TABLEAUS[rk].stages + 1
    gan.discriminator(images).sum().backward()
    assert all(p.grad is not None for p in gan.generator.parameters())


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 32), {"generator_stages": 3}),
        ((1, 28), {"generator_stages": 2, "generator_patch": 2}),
        ((3, 16), {"generator_stages": 1, "generator_patch": 4}),
    ],
)
def test_images_have_the_size_of_the_data(shape, options):
    assert made(shape, projection="classical", generator_heads=1, **options)(torch.randn(2, 8)).shape[1:] == (
        shape[0], shape[1], shape[1],
    )  # fmt: skip


@pytest.mark.parametrize("generator", ["quantum", "classical", None])
@pytest.mark.parametrize("discriminator", ["quantum", "classical", "quantum-mlp"])
def test_each_side_is_quantum_or_classical(generator, discriminator):
    gan = made(generator_projection=generator, discriminator_projection=discriminator)
    assert bool(quantum_layers(gan.generator)) == (generator != "classical")
    assert bool(quantum_layers(gan.discriminator)) == (discriminator != "classical")
    assert count_parameters(gan)["total"] == sum(count_parameters(s)["total"] for s in gan.sides.values())


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"generator_stages": 3, "generator_patch": 4}, "generator_stages"),
        ({"generator_hidden": 30}, "generator_hidden"),
        ({"generator_hidden": 24}, "generator_heads"),
        ({"generator_rk_blocks": "1,1,1"}, "generator_rk_blocks"),
        ({"generator_hidden": 32, "qubits": 3}, "qubits"),
        ({"generator_hidden": 32, "generator_qubits": 3}, r"3 qubits do not divide \(generator_qubits\)"),
    ],
)
def test_sizes_that_do_not_fit_name_the_flag(options, flag):
    with pytest.raises(UserError, match=flag):
        made(heads=4 if "24" in str(options) else 2, **{"projection": "quantum", **options})


def test_tokens_grow_as_the_pixel_shuffle_says():
    gan = made(projection="classical", generator_rk_blocks="0", generator_blocks="0")
    seen = []
    gan.generator.leave.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
    gan(torch.randn(2, 8))
    assert seen == [torch.Size([2, 16, 8, 8])]


def test_the_circuits_of_each_network_are_chosen_apart():
    gan = made(
        ansatz="qrkt", discriminator_layers=2, generator_ansatz="orthogonal_butterfly", generator_qubits=8, hidden=8
    )
    layers = {name: quantum_layers(network) for name, network in gan.sides.items()}
    assert {layer.template.name for layer in layers["generator"]} == {"orthogonal_butterfly"}
    assert {layer.template.num_features for layer in layers["generator"]} == {8}
    assert {(layer.template.name, layer.template.num_features) for layer in layers["discriminator"]} == {("qrkt", 4)}
    one = made(ansatz="qrkt", hidden=8).discriminator
    assert count_parameters(gan.discriminator)["quantum"] == 2 * count_parameters(one)["quantum"]


def test_circuits_wider_than_the_tokens_of_a_stage_are_as_wide_as_these():
    wide = {"ansatz": "orthogonal_butterfly", "generator_qubits": 64, "generator_heads": 1, "hidden": 8}
    gan = made(**wide, generator_rk_blocks="1,1")
    stages = [{layer.template.num_features for layer in quantum_layers(stage)} for stage in gan.generator.stages]
    assert stages == [{64}, {16}]
    mlps = made(**wide, generator_projection="quantum-mlp", generator_mlp_ratio=4.0, generator_rk_blocks="1,1")
    assert {layer.template.num_features for layer in quantum_layers(mlps.generator)} == {64}  # an MLP may be wider


def test_a_conditional_gan_draws_the_class_asked_for_and_scores_by_projection():
    torch.manual_seed(0)
    gan, noise = made(conditional=True, projection="classical").eval(), torch.randn(4, 8)
    labels = torch.tensor([0, 1, 2, 3])
    assert torch.equal(gan(noise), gan(noise, labels))  # in turn without any
    assert not torch.allclose(gan(noise, labels), gan(noise, labels.flip(0)))
    scores = gan.discriminator(gan(noise))
    assert scores.shape == (4, 11) and of_class(scores, None) is scores
    head, features = gan.discriminator.head, []
    head.register_forward_hook(lambda module, given, out: features.append(given[0]))
    found = of_class(gan.discriminator(gan(noise)), labels)
    joint = features[0] @ head.weight[0] + head.bias[0] + (features[0] * head.weight[1:5]).sum(-1) + head.bias[1:5]
    torch.testing.assert_close(found, joint.unsqueeze(1))


def test_without_classes_nothing_changes_and_one_class_is_refused():
    torch.manual_seed(0)
    plain = made(projection="classical").state_dict()
    assert not [name for name in plain if "embeddings" in name] and plain["discriminator.head.weight"].shape[0] == 1
    with pytest.raises(UserError, match="conditional"):
        build_model(Config.model_validate({**SMALL, "conditional": True}), DataShape(1, 8, 1))


def test_the_sliced_wasserstein_distance_sees_a_shift_and_nothing_between_equals():
    images = torch.rand(300, 1, 8, 8)
    assert sliced_wasserstein(images, images.flip(0)) == pytest.approx(0, abs=1e-6)
    near, far = (sliced_wasserstein(images, images + shift) for shift in (0.1, 0.2))
    assert far == pytest.approx(2 * near, rel=1e-4) and near > 0.05
    assert sliced_wasserstein(images, torch.rand(200, 1, 8, 8)) < near / 2
    features = torch.randn(400, 4)
    assert fid(features, features) == pytest.approx(0, abs=1e-3) and fid(features, features + 1) > 3


def test_a_reference_classifier_of_colours_is_kept_in_half_precision_with_the_figures_of_what_is_kept(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(metrics, "STEPS", 3)
    images, labels = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10
    split, middle = Indexed(images, labels, lambda kept: kept), (0.5,) * 3
    names = tuple(map(str, range(10)))
    data = Data("own", DataShape(3, 8, 10), names, middle, middle, {"train": split, "test": split})
    file = tmp_path / "classifier.safetensors"
    model, found = metrics.reference_classifier(data, Console(file=io.StringIO()), file)
    kept = load_file(file)
    assert {v.dtype for v in kept.values() if v.ndim > 1} == {torch.float16}
    assert {v.dtype for v in kept.values() if v.ndim == 1} == {torch.float32}
    again = metrics.confident(model.extract(metrics.pixels(data, "test")[0])[1])
    assert again == found["quality"]["confident_of_test"]
    torch.testing.assert_close(model.head.weight.half(), kept["head.weight"], rtol=0, atol=0)
