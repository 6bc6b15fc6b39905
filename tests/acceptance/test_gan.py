"""A GAN trains, is killed and goes on bit for bit, draws, and is measured."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from qrkt_hw import circuits
from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.models.transformer import of_class
from qrkt_hw.runs.config import Config
from qrkt_hw.training.gan import penalty
from tests.acceptance.killing_jobs import forked
from tests.command_line import qrkt, refused
from tests.training.test_losses import slope_of

pytestmark = pytest.mark.acceptance
TRAIN = ["train", "--model", "gan", "--epochs", "3", "--limit", "96", "--batch-size", "32", "--latent", "8"]
TRAIN += ["--generator-hidden", "32", "--generator-patch", "2", "--hidden", "8", "--heads", "2", "--mlp", "8"]
TRAIN += [
    "--patch",
    "4",
    "--rk",
    "rk1",
    "--discriminator-rk-blocks",
    "1",
    "--critic-steps",
    "2",
    "--penalty-every",
    "2",
]
CLASSICAL = ["--projection", "classical"]


def changed(*options: str) -> list[str]:
    """TRAIN with other values for some of its options: an option is given once."""
    pairs = {**dict(zip(TRAIN[1::2], TRAIN[2::2], strict=True)), **dict(zip(options[::2], options[1::2], strict=True))}
    if pairs.get("--loss") == "hinge":
        del pairs["--penalty-every"]
    return ["train", *(word for pair in pairs.items() for word in pair)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan")
    finished = qrkt(*TRAIN, "--out", "run", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder / "run"


def kept(run: Path) -> dict[str, bytes]:
    """Every file that must not depend on interruptions."""
    return {p.name: p.read_bytes() for p in [run / "model.safetensors", *sorted((run / "samples").glob("epoch-*"))]}


def test_a_run_shows_how_it_learned(trained):
    assert len(list((trained / "samples").glob("epoch-*.png"))) == 3
    with Image.open(trained / "samples" / "training.gif") as animation:
        assert animation.n_frames == 3
    results = json.loads((trained / "results.json").read_text())
    assert results["parameters"]["quantum"] > 0
    assert results["parameters"]["total"] == sum(s["total"] for s in results["parameters_of"].values())
    rows = (trained / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,generator_loss,discriminator_loss,penalty") and len(rows) == 4


@pytest.mark.parametrize(
    "moment", ["gan-second-epoch", pytest.param("checkpoint-half-written", marks=pytest.mark.slow)]
)
def test_killed_and_resumed_draws_the_same_images_bit_for_bit(moment, trained, tmp_path):
    status, said = forked([*TRAIN, "--out", "run"], tmp_path, moment)
    assert status == -9, said
    assert not (tmp_path / "run" / "results.json").exists()
    assert qrkt("train", "--resume", "run", cwd=tmp_path).returncode == 0
    assert kept(tmp_path / "run") == kept(trained)
    for run, place in ((trained, "a.png"), (tmp_path / "run", "b.png")):
        assert qrkt("generate", run, "--count", "9", "--grid", place, cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_generate_draws_the_same_for_a_seed_and_one_file_an_image(trained, tmp_path):
    done = qrkt("generate", trained, "--count", "5", "--seed", "3", "--out", "images", "--grid", "g.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "images").iterdir())
    assert [f.name for f in files] == [f"{k:05d}.png" for k in range(5)]
    with Image.open(files[0]) as image:
        assert image.size == (8, 8) and image.mode == "L"
    assert qrkt("generate", trained, "--count", "5", "--seed", "3", "--grid", "h.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "g.png").read_bytes() == (tmp_path / "h.png").read_bytes()
    assert qrkt("generate", trained, "--count", "16", "--interpolate", cwd=tmp_path).returncode == 0
    assert (trained / "samples" / "seed-0.png").is_file()


def test_generate_takes_a_backend(trained, tmp_path):
    done = qrkt("generate", trained, "--count", "1", "--backend", "aer_cpu", "--shots", "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_evaluate_states_its_protocol(trained, tmp_path, monkeypatch):
    from qrkt_hw.models import metrics

    monkeypatch.setattr(metrics, "STEPS", 60)  # any reference classifier will do here
    done = qrkt(
        "evaluate", trained, "--samples", "150", "--judge", tmp_path / "c.safetensors", "--reference-scores", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["protocol"]["samples"] == 150 and record["protocol"]["split"] == "train"
    assert record["reference_classifier"]["sha256"] in record["protocol"]["extractor"]
    ours, test = record["metrics"]["fid"], record["reference_scores"]["test images"]["fid"]
    assert test < ours  # three epochs draw nothing like a digit
    assert sum(record["reference_classifier"]["shares"]) == pytest.approx(1, abs=1e-3)
    assert (trained / "evaluation" / "nearest.png").is_file()


@pytest.mark.slow
def test_a_run_is_evaluated_where_the_data_have_moved_to(tmp_path, monkeypatch):
    from qrkt_hw.models import metrics
    from tests.data import writing

    monkeypatch.setattr(metrics, "STEPS", 5)
    (tmp_path / "here").mkdir()
    data = writing.mnist(tmp_path / "here")
    small = ["--dataset", "mnist", "--patch", "7", "--epochs", "1", "--limit", "32", "--out", "run", *CLASSICAL]
    assert qrkt(*changed(*small, "--data-dir", data), cwd=tmp_path).returncode == 0
    data.rename(tmp_path / "elsewhere")
    measure = ["evaluate", "run", "--samples", "100", "--judge", "judge.safetensors", "--json"]
    refused(qrkt(*measure, cwd=tmp_path), "--data-dir")
    done = qrkt(*measure, "--data-dir", "elsewhere", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["protocol"]["dataset"] == "mnist"


def test_generate_takes_a_class_truncation_and_a_film(trained, tmp_path):
    refused(qrkt("generate", trained, "--class", "3", cwd=tmp_path), "--class", "--conditional")
    options = ("--epochs", "1", "--generator-ansatz", "orthogonal_butterfly", "--generator-qubits", "8")
    done = qrkt(*changed(*options, "--out", "run"), "--conditional", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused(qrkt("generate", "run", "--class", "cat", cwd=tmp_path), "--class", "cat", "0 to 9")
    refused(qrkt("generate", "run", "--plot", "film.gif", cwd=tmp_path), "--plot", "--interpolate")
    for name, more in (("three", ["--class", "3"]), ("turn", []), ("cut", ["--class", "3", "--truncation", "0.1"])):
        made = qrkt("generate", "run", "--samples", "4", "--plot", f"{name}.png", *more, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in ("three", "turn", "cut")}) == 3
    film = ["generate", "run", "--interpolate", "--columns", "5", "--samples", "10", "--plot", "film.gif"]
    assert qrkt(*film, cwd=tmp_path).returncode == 0
    with Image.open(tmp_path / "film.gif") as animation:
        assert animation.n_frames == 8  # five there, three back


@pytest.mark.parametrize("ansatz", [name for name in circuits.names() if name != "higher_order"])  # over tokens
def test_the_penalty_through_every_ansatz_has_the_gradient_of_finite_differences(ansatz):
    options = Config(
        model="gan", latent=4, generator_hidden=16, generator_patch=2, hidden=4, heads=2, mlp=4, patch=4, rk="rk1",
        discriminator_rk_blocks=1, dtype="complex128", qubits=2, discriminator_ansatz=ansatz, conditional=True,
    )  # fmt: skip
    torch.manual_seed(3)
    discriminator = build_model(options, DataShape(1, 8, 10)).discriminator
    real, labels = torch.rand(2, 1, 8, 8, dtype=torch.float64) * 2 - 1, torch.tensor([1, 7])

    def value():
        return penalty(options.gan, lambda x: of_class(discriminator(x), labels), real, real)

    value().backward()
    layers, largest = quantum_layers(discriminator), 0.0
    assert {layer.template.name for layer in layers} == {ansatz}
    for parameter in [*(layer.weight for layer in layers if layer.weight.numel()), discriminator.head.weight]:
        place = parameter.numel() // 2
        found = parameter.grad.reshape(-1)[place].item()
        assert found == pytest.approx(slope_of(value, parameter, place), rel=1e-5, abs=1e-7)
        largest = max(largest, abs(found))
    assert largest > 1e-3


def test_a_loss_that_differentiates_twice_is_refused_where_circuits_cannot(tmp_path):
    for loss in ("wgangp-eps", "nonsaturating-r1"):
        done = qrkt(*TRAIN, "--backend", "aer_cpu", "--shots", 8, "--loss", loss, "--out", "run", cwd=tmp_path)
        refused(done, "--loss", loss, "hinge")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["wgangp-eps", "hinge"])
def test_each_loss_trains_either_kind(loss, tmp_path):
    for name, side in (
        ("a", ["--generator-projection", "classical"]),
        ("b", ["--discriminator-projection", "classical"]),
    ):
        done = qrkt(*changed("--epochs", "1", "--loss", loss, *side, "--out", name), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        parts = json.loads((tmp_path / name / "results.json").read_text())["parameters_of"]
        assert parts["generator" if name == "a" else "discriminator"]["quantum"] == 0
        assert parts["discriminator" if name == "a" else "generator"]["quantum"] > 0


def test_resources_counts_executions_for_a_drawn_image(trained, tmp_path):
    done = qrkt("resources", trained, "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from qrkt_hw.experiments.loading import load
    from qrkt_hw.models.factory import quantum_layers

    report = json.loads(done.stdout)
    generator = load(trained).generator
    tokens = {32: 4, 8: 16}  # first and second stage, by the width of their tokens
    circuits = sum(layer.groups * tokens[layer.features] for layer in quantum_layers(generator))
    assert sum(r["circuits"] for round_ in report["logical"]["rounds"] for r in round_) == circuits


def test_other_commands_refuse_a_run_of_the_other_kind(trained, tmp_path):
    refused(qrkt("infer", trained, cwd=tmp_path), "generate")
    torch.set_num_threads(1)
    base = ["train", "--epochs", "1", "--limit", "20", "--rk-blocks", "1", "--out", "vit", *CLASSICAL]
    assert qrkt(*base, cwd=tmp_path).returncode == 0
    refused(qrkt("generate", "vit", cwd=tmp_path), "--model gan")
    refused(qrkt("evaluate", "vit", cwd=tmp_path), "--model gan")
    refused(qrkt("compare", "vit", trained, cwd=tmp_path), "gan")


def test_baselines_are_size_matched_or_parameter_matched():
    from qrkt_hw.data.base import DataShape
    from qrkt_hw.experiments.baselines import parameter_counts, parameter_matched
    from qrkt_hw.models.factory import build_model, count_parameters, quantum_layers
    from qrkt_hw.runs.config import Config

    shape = DataShape(1, 8, 10)
    options = Config.model_validate({"model": "gan", "hidden": 16, "mlp": 16, "patch": 4, "generator_hidden": 32})
    own = {name: count_parameters(side)["total"] for name, side in build_model(options, shape).sides.items()}
    narrow = parameter_matched(options, shape)
    assert not quantum_layers(build_model(narrow, shape))
    assert not quantum_layers(build_model(options.without_circuits(), shape))
    for side, total in parameter_counts(narrow, shape).items():
        assert abs(total - own[side]) < 0.02 * own[side], side


@pytest.mark.slow
def test_twin_trains_both_baselines_and_measures_all_by_one_protocol(trained, tmp_path, monkeypatch):
    from qrkt_hw.models import metrics

    monkeypatch.setattr(metrics, "STEPS", 60)
    done = qrkt("twin", trained, "--epochs", "1", "--out", "sides", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "sides" / "baselines.json").read_text())
    assert len({json.dumps(side["protocol"]) for side in record["sides"].values()}) == 1
    assert set(record["sides"]) == {"quantum", "size-matched", "parameter-matched", "structured"}
    assert "fid [" in (tmp_path / "sides" / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_digits_preset_draws_every_digit_and_copies_none(seed, tmp_path):
    done = qrkt("train", "--preset", "qrkt-gan-digits", "--seed", seed, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["cpu_seconds"] < 8 * 60  # one thread; a loaded machine's wall time says nothing
    done = qrkt("evaluate", "run", "--samples", "1000", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    quality = record["reference_classifier"]["quality"]
    assert quality["test_accuracy"] >= 0.97
    assert max(quality["confident_of_gaussian"], quality["confident_of_shuffled"]) <= 0.2
    assert record["reference_classifier"]["confident"] >= 0.7
    assert min(record["reference_classifier"]["shares"]) >= 0.04
    assert record["nearest_training_image"]["copies"] == 0
