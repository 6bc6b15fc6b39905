"""Flags, YAML keys, defaults, help and validation come from one set of models."""

import click
import pytest
import yaml
from click.testing import CliRunner

from qrkt_hw.commands.options import merge
from qrkt_hw.commands.train import train
from qrkt_hw.errors import UserError, flag
from qrkt_hw.runs.config import KEYS, Config
from tests.command_line import qrkt


def test_every_field_is_a_flag_with_its_default_in_the_help():
    text = " ".join(CliRunner().invoke(train, ["--help"], terminal_width=300).output.split())
    for name, (_, _, field, _) in KEYS.items():
        assert flag(name) in text, name
        assert field.description, name
        if field.default is not None:
            shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            assert f"[default: {shown}]" in text, name
    options = {o for p in train.params if isinstance(p, click.Option) for o in p.opts}
    assert options - {flag(n) for n in KEYS} == {
        "--preset", "--config", "--out", "--resume", "--resubmit", "--replan", "--max-qpu-seconds", "--max-cost",
        "--trust-ansatz",
    }  # fmt: skip


def test_flags_beat_the_file_and_the_file_beats_the_preset(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("hidden: 8\nheads: 2\n")
    merged = merge("digits", file, {"hidden": 4, "seed": None})
    assert (merged.model.hidden, merged.model.heads, merged.training.seed) == (4, 2, Config().training.seed)


def test_flat_and_nested_files_are_the_same_and_a_key_stands_in_its_section_once(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {kind: text, hidden: 8}\nbackend: {name: aer_cpu, shots: 5}\ndataset: imdb\n")
    assert merge(None, file, {}) == Config(model="text", hidden=8, backend="aer_cpu", shots=5, dataset="imdb")
    for wrong in ("model: {epochs: 3}", "model: {nope: 3}", "hidden: 8\nmodel: {hidden: 8}", "latent: 5",
                  "model: {kind: gan, rk_blocks: 2}", "model: {kind: vit, latent: 3}", "data: 5"):  # fmt: skip
        file.write_text(wrong)
        with pytest.raises(UserError, match=r"c\.yaml"):
            merge(None, file, {})


def test_no_options_are_the_defaults_and_survive_yaml():
    assert merge(None, None, {}) == Config()
    assert Config.model_validate(yaml.safe_load(yaml.safe_dump(Config().model_dump(mode="json")))) == Config()


@pytest.mark.parametrize(
    "content", ["hidden: yes", "hidden: 1.5", "hidden: [1]", "hidden: null", "rk: rk9", "learning_rate: .inf",
                "seed: -1", "share_stages: maybe", "dropout: .nan", "1: 2", "epochs: {a: 1}"],
)  # fmt: skip
def test_a_wrong_value_in_a_file_names_the_file(content, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"c\.yaml"):
        merge(None, file, {})


def test_listing_and_showing(tmp_path):
    from qrkt_hw.circuits import names

    listed = qrkt("circuits", "list", cwd=tmp_path).stdout
    assert all(name in listed for name in names())
    shown = qrkt("circuits", "show", "qrkt", "--qubits", 3, "--draw", "a.png", cwd=tmp_path)
    assert "3 qubits, 3 inputs, 3 weights" in shown.stdout and (tmp_path / "a.png").stat().st_size > 1000
    both = qrkt("circuits", "show", "qrkt", "--qasm", "--draw", "b.png", cwd=tmp_path)
    assert both.stdout.startswith("OPENQASM 3") and "drawn" not in both.stdout and (tmp_path / "b.png").exists()


def test_presets_and_about(tmp_path):
    assert "digits" in qrkt("presets", "list", cwd=tmp_path).stdout
    assert "dataset: digits" in qrkt("presets", "show", "digits", cwd=tmp_path).stdout
    about = qrkt("about", cwd=tmp_path).stdout
    assert "torch" in about and "qiskit" in about
    assert str(tmp_path.home()) not in about
