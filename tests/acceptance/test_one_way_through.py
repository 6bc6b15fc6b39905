"""One way through: which files a training step passes, and that every quantum projection is a TorchConnector."""

import sys
from pathlib import Path

import pytest
import torch
from qiskit_machine_learning.connectors import TorchConnector
from torch import nn

import qrkt_hw
from qrkt_hw.backends import resolve
from qrkt_hw.data.base import DataShape
from qrkt_hw.experiments import presets
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.nn.attention import Attention, CrossAttention
from qrkt_hw.nn.blocks import FeedForward, TransformerField
from qrkt_hw.nn.quantum import QuantumLayer, QuantumProjection
from qrkt_hw.runs.config import Config
from qrkt_hw.runs.sections import SIDES, TEXT_SETS

pytestmark = pytest.mark.acceptance
ROOT = Path(qrkt_hw.__file__).parent


def files_of(run) -> set[str]:
    """The project's files whose Python runs meanwhile, as ``nn/quantum.py``."""
    seen: set[str] = set()

    def look(frame, event, argument) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return {str(Path(file).relative_to(ROOT)) for file in seen if file.startswith(f"{ROOT}/")}


def default_model():
    """The default model on its data's shape after one step, and a function that takes another."""
    torch.manual_seed(0)
    model = build_model(Config(), DataShape(1, 8, 10)).train()
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))

    def step() -> None:
        nn.functional.cross_entropy(model(images), labels).backward()

    step()
    return model, step


def test_a_training_step_asks_no_backend_and_no_report():
    _, step = default_model()
    passed = files_of(step)
    assert "nn/quantum.py" in passed
    assert not {file for file in passed if file.startswith(("backends/", "resources/", "options/", "runs/"))}


def test_a_field_evaluation_passes_at_most_nine_files_forwards_and_backwards():
    model, _ = default_model()
    field = model.blocks[0].fields[0]
    assert isinstance(field, TransformerField)
    y = torch.randn(8, 4, 32, requires_grad=True)

    def evaluate() -> None:
        with torch.autograd.set_multithreading_enabled(False):  # the profiler sees one thread
            field(y).sum().backward()

    passed = files_of(evaluate)
    assert {file for file in passed if file.startswith("nn/")} == {"nn/blocks.py", "nn/attention.py", "nn/quantum.py"}
    assert len(passed) <= 9, sorted(passed)


def test_attention_and_quantum_projection_stand_in_two_files():
    model, _ = default_model()
    attention = model.blocks[0].fields[0].attention
    passed = files_of(lambda: attention(torch.randn(8, 4, 32)))
    assert {file for file in passed if file.startswith(("nn/", "models/"))} == {"nn/attention.py", "nn/quantum.py"}


def shape_of(options: Config) -> DataShape:
    """The shape of the options' data, without loading them."""
    name = options.data.dataset
    if name in TEXT_SETS:
        return DataShape(0, 0, 2, vocabulary=1000, length=32)
    channels, classes = 1 if name in ("digits", "mnist") else 3, 1000 if name == "imagenet" else 10
    return DataShape(channels, options.data.image_size or SIDES[name], classes)


def projections(model: nn.Module) -> list[nn.Module]:
    """What stands where a transformer has the projections of attention and the middle of its feed-forward."""
    found: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, Attention):
            found += [module.output] if module.classical else [module.query, module.key, module.value, module.output]
        elif isinstance(module, CrossAttention):
            found += module.maps.values()
        elif isinstance(module, FeedForward):
            found.append(module.projection)
    return found


@pytest.mark.parametrize("backend", ["exact", "aer_cpu", "fake_torino"])
@pytest.mark.parametrize("preset", presets.names())
def test_every_quantum_projection_of_every_preset_is_a_torch_connector_on_every_backend(preset, backend):
    options = Config(**presets.load(preset))
    model = build_model(options, shape_of(options), resolve(backend))
    quantum = [p for p in projections(model) if not isinstance(p, nn.Linear | nn.Identity)]
    for projection in quantum:
        assert isinstance(projection, QuantumProjection)
        assert isinstance(projection.layer, QuantumLayer) and isinstance(projection.layer, TorchConnector)
    assert [p.layer for p in quantum] == quantum_layers(model)  # no circuit stands anywhere else
    assert bool(quantum) == options.has_circuits
    if options.model.kind == "gan" and options.has_circuits:
        kinds = [options.gan.generator_projection, options.gan.discriminator_projection]
        for side, kind in zip((model.generator, model.discriminator), kinds, strict=True):
            assert bool(quantum_layers(side)) == ((kind or options.gan.projection) != "classical")
