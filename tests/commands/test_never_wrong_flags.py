"""No flag is ignored: what would have no effect, or be only half taken, is refused by its name."""

from pathlib import Path

import pytest

from qrkt_hw.commands.options import merge
from qrkt_hw.experiments import presets
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import KEYS, Config, unused
from tests.command_line import qrkt, refused

IMAGES = {
    "dataset": "digits", "channels": 1, "image_size": 8, "class_names": list("0123456789"), "mean": [0.3], "std": [0.3]
}  # fmt: skip
TEXTS = {
    "dataset": "imdb", "channels": 0, "image_size": 0, "class_names": ["neg", "pos"], "mean": [], "std": [],
    "vocabulary": ["a", "b", "c"], "length": 8,
}  # fmt: skip

# a command line, and the flag that its one sentence must name
TRAIN = {
    "--latent 32": "--latent", "--loss hinge": "--loss", "--diffaugment none": "--diffaugment",
    "--critic-steps 2": "--critic-steps", "--discriminator-rk rk4": "--discriminator-rk",
    "--token-dropout 0.1": "--token-dropout", "--text-length 64": "--text-length", "--vocabulary 500": "--vocabulary",
    "--unique-words": "--unique-words", "--word-pairs": "--word-pairs", "--embedding-scale 2": "--embedding-scale",
    "--dataset imdb --image-size 32": "--image-size", "--dataset imdb --patch 2": "--patch",
    "--dataset imdb --augment flip": "--augment", "--image-size 16": "--image-size", "--data-dir .": "--data-dir",
    "--download": "--download", "--dataset folder:x --download": "--download",
    "--dataset folder:/x --data-dir y": "--data-dir",
    "--field-norms 2 --rk-blocks 0 --encoder-blocks 1": "--field-norms",
    "--rk rk4 --rk-blocks 0 --encoder-blocks 1": "--rk:",
    "--no-share-stages --rk-blocks 0 --encoder-blocks 1": "--share-stages",
    "--cross-attention output": "--cross-attention",
    "--pool-maps 2": "--pool-maps", "--heads 2 --rk-blocks 0": "--heads", "--mlp 8 --rk-blocks 0": "--mlp",
    "--projection quantum-mlp --rk-blocks 0": "--projection", "--ansatz qrkt --rk-blocks 0": "--ansatz",
    "--projection classical --ansatz qrkt": "--ansatz", "--projection classical --qubits 2": "--qubits",
    "--projection classical --layers 2": "--layers", "--projection classical --mlp-qubits 2": "--mlp-qubits",
    "--projection classical --initial-angles conditioned": "--initial-angles",
    "--projection classical --input-scale": "--input-scale",
    "--projection classical --no-output-scale": "--output-scale",
    "--projection classical --output-bias": "--output-bias", "--projection classical --backend aer_cpu": "--backend",
    "--projection classical --shots 10": "--shots", "--projection classical --gradient spsa": "--gradient",
    "--projection classical --strict-backend": "--strict-backend",
    "--projection quantum-attention --mlp-qubits 2": "--mlp-qubits",
    "--projection quantum-mlp --mlp-qubits 2 --qubits 2": "--qubits",
    "--projection quantum-attention --mlp-ansatz qrkt": "--mlp-ansatz",
    "--projection quantum-attention --mlp-layers 2": "--mlp-layers",
    "--projection quantum-mlp --attention-ansatz qrkt": "--attention-ansatz",
    "--projection quantum-mlp --mlp-layers 2 --layers 2": "--layers",
    "--ansatz qrkt --attention-ansatz brickwork --mlp-ansatz brickwork": "--ansatz",
    "--projection quantum-mlp --ansatz qrkt --mlp-ansatz brickwork": "--ansatz",
    "--mlp-ansatz nothing": "--mlp-ansatz", "--attention-ansatz nothing": "--attention-ansatz",
    "--model gan --label-smoothing 0.1": "--label-smoothing", "--model gan --encoder-blocks 1": "--encoder-blocks",
    "--model gan --rk-blocks 1": "--rk-blocks", "--model gan --decoder-blocks 1": "--decoder-blocks",
    "--model gan --loss hinge --penalty 1": "--penalty", "--model gan --penalty-target 2": "--penalty-target",
    "--model gan --penalty 0 --penalty-every 2": "--penalty-every",
    "--model gan --generator-rk-blocks 0 --generator-rk rk1": "--generator-rk",
    "--model gan --generator-rk-blocks 0 --generator-heads 2": "--generator-heads",
    "--model gan --generator-rk-blocks 0 --generator-projection classical": "--generator-projection",
    "--model gan --discriminator-rk-blocks 0 --discriminator-projection classical": "--discriminator-projection",
    "--model gan --generator-rk rk1 --discriminator-rk rk1 --rk rk4": "--rk:",
    "--backend fake_torino --no-pack --guard 1": "--spacing",
    "--backend fake_torino --no-pack --min-fidelity 1": "--min-fidelity",
    "--backend fake_torino --spacing 1 --guard 1": "--spacing",
    "--backend fake_torino --mitigation trex": "--mitigation",
    "--backend fake_torino --shots 0 --mitigation zne": "--mitigation",
    "--mitigation mthree": "--mitigation", "--mode session": "--mode", "--max-time 5": "--max-time",
    "--max-cost 1": "--max-cost", "--max-qpu-seconds 1": "--max-qpu-seconds", "--shots 10": "--shots",
    "--resubmit": "--resubmit", "--replan": "--replan", "--resume {images} --out x": "--out",
    "--hidden 8 --hidden 16": "--hidden", "--input-scale --no-input-scale": "--input-scale",
    "--limit 0": "--limit", "--limit -3": "--limit", "--epochs 0": "--epochs", "--threads 100000": "--threads",
    "--workers 100000": "--workers", "--seed 100000000000000000000": "--seed", "--hidden -3": "--hidden",
}  # fmt: skip
OTHERS = {
    "infer {images} --limit 0": "--limit", "infer {images} --limit -1": "--limit",
    "infer {images} --split train": "--split",
    "infer {images} --image a.png --limit 5": "--limit", "infer {images} --image a.png --split test": "--split",
    "infer {images} --image a.png --ablate sine": "--ablate", "infer {images} --image a.png --text b": "--text",
    "infer {images} --image a.png --data-dir .": "--data-dir",
    "infer {images} --image a.png --value-errors": "--value-errors",
    "infer {texts} --text a --limit 5": "--limit", "infer {texts} --text a --split test": "--split",
    "infer {texts} --text a --ablate sine": "--ablate", "infer {texts} --image a.png": "--image",
    "infer {images} --text a": "--text", "infer {images} --split test --split validation": "--split",
    "infer {images} --data-dir .": "--data-dir", "infer {images} --report": "--value-errors",
    "infer {images} --dry-run": "--dry-run", "infer {images} --max-cost 1": "--max-cost",
    "infer {images} --max-qpu-seconds 1": "--max-qpu-seconds", "infer {images} --restart": "--restart",
    "infer {images} --backend fake_torino --shots 0 --dry-run": "--dry-run",  # exact values: nothing is sampled
    "infer {images} --resubmit": "--resubmit", "infer {images} --replan": "--replan",
    "infer {images} --dry-run --value-errors": "--value-errors", "infer {images} --dry-run --restart": "--restart",
    "infer {images} --resume --restart": "--restart", "infer {images} --resume --limit 3": "--resume",
    "infer {images} --gradient spsa": "--gradient", "infer {images} --shots 10": "--shots",
    "infer {classical} --backend fake_torino": "--backend", "infer {classical} --shots 10": "--shots",
    "infer {classical} --ablate sine": "--ablate", "infer {gan}": "GAN",
    "generate {gan} --gradient spsa": "--gradient", "generate {gan} --columns 4 --out x": "--columns",
    "generate {gan} --interpolate --columns 1": "--columns", "generate {gan} --interpolate --samples 10": "--samples",
    "generate {gan} --samples 0": "--samples", "generate {gan} --samples 1000000000": "--samples",
    "generate {gan} --columns 100000000": "--columns", "generate {gan} --seed 100000000000000000000": "--seed",
    "generate {gan} --seed 1e20": "--seed", "generate {gan} --seed -1": "--seed",
    "generate {gan} --plot x.jpg": "--plot",
    "generate {plain_gan} --backend aer_cpu": "--backend",
    "evaluate {gan} --data-dir .": "--data-dir", "evaluate {gan} --samples 0": "--samples",
    "evaluate {gan} --samples 1000000000": "--samples", "evaluate {gan} --seed 100000000000000000000": "--seed",
    "baseline {gan} --trials 2": "--trials", "twin {classical}": "no circuits", "twin {images} --trials 0": "--trials",
    "compare {images} {images}": "twice", "compare {images} {images}/../images": "twice",
    "tune --search hidden=8,16 --hidden 8": "hidden", "tune --search hidden=8 --search hidden=16": "hidden",
    "tune --search latent=8,16": "--latent", "tune --search hidden=-3,4": "hidden",
    "tune --search projection=classical --search qubits=1,2": "--qubits",
    "tune --search seed=1,2 --model gan": "--model",
    "tune --search seed=1,2 --backend nope": "--backend", "tune --search seed=1,2 --trials 0": "--trials",
    "circuits analyze qrkt --qubits 2,4 --qubits 6": "--qubits",
    "circuits analyze qrkt --layers 1 --layers 2": "--layers",
    "circuits analyze qrkt --qubits 0": "--qubits", "circuits show qrkt --qubits 3 --qubits 4": "--qubits",
    "circuits show qrkt --layers 0": "--layers",
    "resources --preset digits --preset best-mnist": "--compare", "resources {images} --preset digits": "--compare",
    "resources --qubits 3": "--qubits", "resources --preset digits --layers 2": "--layers",
    "resources --schema --preset digits": "--preset", "resources --preset digits --shots 3": "--shots",
    "resources --preset digits --plan open": "--plan", "resources --preset digits --samples 3": "--samples",
    "resources --preset digits --training-steps 3": "--training-steps",
    "resources --preset digits --optimization-level 1": "--optimization-level",
    "resources --preset digits --plot x.png": "--plot", "resources --preset digits --plot x.pdf": "--plot",
    "resources --preset digits --backend fake_torino --plan open --format json": "--plan",
    "resources --compare --preset digits --backend fake_torino --training-steps 2": "--training-steps",
    "resources --preset digits --backend fake_torino --backend fake_fez --plot x.png": "--plot",
    "resources --compare --preset digits --preset best-mnist --backend fake_torino --plot x.png": "--plot",
    "backends list --remote --backends-file x.yaml": "--backends-file", "backends check aer_cpu --shots -1": "--shots",
    "backends check aer_cpu --shots 1 --shots 2": "--shots", "jobs adopt {images} --job x": "--number",
}  # fmt: skip
LINES = {**{f"train {line}": flag for line, flag in TRAIN.items()}, **OTHERS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs without weights: what is refused is refused before any are read."""
    root = tmp_path_factory.mktemp("runs")
    made = {
        "images": (Config(), IMAGES),
        "classical": (Config(projection="classical"), IMAGES),
        "texts": (Config(dataset="imdb", model="text"), TEXTS),
        "gan": (Config(model="gan"), IMAGES),
        "plain_gan": (Config(model="gan", projection="classical"), IMAGES),
    }
    return {name: RunFolder.create(options, data, root / name).path for name, (options, data) in made.items()}


@pytest.mark.parametrize("line", LINES)
def test_a_flag_without_effect_is_refused_by_its_name(line, runs, tmp_path):
    refused(qrkt(*line.format(**runs).split(), cwd=tmp_path), LINES[line])
    assert not list(tmp_path.iterdir())


def test_a_default_that_is_spelled_out_is_no_mistake():
    for key, (_, _, field, _) in KEYS.items():
        if field.default is not None:
            assert merge(None, None, {key: field.default}) == Config(), key
    assert merge(None, None, {"latent": 64, "token_dropout": 0.0}) == Config()


@pytest.mark.parametrize("name", presets.names())
def test_no_preset_sets_an_option_that_its_model_does_not_read(name):
    options = merge(name, None, {})
    given = {**presets.load(name)}
    given.pop("qubits", None), given.pop("ansatz", None), given.pop("layers", None)  # a classical variant keeps them
    assert unused(options, given) is None


def test_no_kept_run_is_refused():
    for config in sorted((Path(__file__).parents[2] / "results").glob("*/seed-*/config.yaml")):
        RunFolder(config.parent).options()


def test_an_option_that_may_be_repeated_still_may(runs, tmp_path):
    done = qrkt("infer", runs["images"], "--image", "a.png", "--image", "b.png", cwd=tmp_path)
    refused(done, "a.png" if (tmp_path / "b.png").exists() else ".png")
    assert "given 2 times" not in done.stderr
