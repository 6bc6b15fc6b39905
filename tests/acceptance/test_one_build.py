"""Each command builds the model once."""

import pytest

from qrkt_hw.models import metrics
from qrkt_hw.models.factory import quantum_layers
from qrkt_hw.models.transformer import Transformer
from tests.command_line import qrkt, trained

pytestmark = pytest.mark.acceptance
SMALL = ["--hidden", 4, "--heads", 1, "--mlp", 4, "--rk", "rk1", "--epochs", 1, "--limit", 4]
AWAY = ["--backend", "aer_cpu", "--shots", 4]
GAN = ["--model", "gan", "--latent", 4, "--generator-hidden", 16, "--generator-stages", 1, "--generator-patch", 8,
       "--patch", 8, "--discriminator-rk-blocks", 1, "--loss", "hinge"]  # fmt: skip


@pytest.fixture
def built(monkeypatch):
    """The quantum models that were built, one after another."""
    found, plain = [], Transformer.__init__

    def counted(self, *parts, **named):
        plain(self, *parts, **named)
        found.append(self)

    monkeypatch.setattr(Transformer, "__init__", counted)
    return lambda: [model for model in found if quantum_layers(model)]


@pytest.mark.parametrize("more", [[*AWAY, "--patch", 8], ["--patch", 8], [*AWAY, *GAN]], ids=["away", "exact", "gan"])
def test_train_builds_once(more, built, tmp_path):
    done = qrkt("train", *SMALL, *more, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("in an epoch" in done.stderr) == ("--backend" in more)
    assert len(built()) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("trained"), *SMALL, "--patch", 8)


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("gan"), *SMALL, *GAN, out="gan")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--count", 2],
        ["generate", "--count", 1, *AWAY],
        ["evaluate", "--samples", 100, "--judge", "classifier.safetensors"],
    ],
    ids=lambda words: "-".join(map(str, words[:4])),
)
def test_commands_on_a_gan_build_once(arguments, gan, built, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "STEPS", 2)
    done = qrkt(arguments[0], gan, *arguments[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(built()) == 1


def test_a_comparison_builds_none(run, built, tmp_path):
    done = qrkt("compare", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not built()


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "RUN"],
        ["infer", "RUN", "--limit", 2, *AWAY],
        ["infer", "RUN", "--limit", 2, "--backend", "fake_manila", "--shots", 4, "--dry-run"],
        ["resources", "RUN"],
        ["resources", "RUN", "--backend", "fake_manila"],
    ],
    ids=lambda words: "-".join(map(str, words)),
)
def test_commands_on_a_run_build_once(arguments, run, built, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing is remembered
    done = qrkt(*(run if word == "RUN" else word for word in arguments), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(built()) == 1
