"""Flags, YAML keys, defaults, help and validation come from one set of models."""

import subprocess
import sys

import click
import pytest
import yaml
from click.testing import CliRunner

from qrkt_hw.commands.options import merge
from qrkt_hw.commands.train import train
from qrkt_hw.errors import UserError, flag
from qrkt_hw.experiments import tuning
from qrkt_hw.runs.config import KEYS, Config
from tests.command_line import qrkt, refused


def test_every_field_is_a_flag_with_its_default_in_the_help():
    text = " ".join(CliRunner().invoke(train, ["--help-all"], terminal_width=300).output.split())
    for name, (_, _, field, _) in KEYS.items():
        assert flag(name) in text, name
        assert field.description, name
        if field.default is not None:
            shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            assert f"[default: {shown}]" in text, name
    options = {o for p in train.params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}
    assert options - {flag(n) for n in KEYS} == {
        "--preset", "--config", "--out", "--resume", "--resubmit", "--replan", "--max-qpu-seconds", "--max-cost",
        "--trust-ansatz", "--from", "--name", "--quiet", "--help-all", "--json",
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


@pytest.mark.parametrize(
    ("content", "said"),
    [("data: foo\ndataset: digits", "data is 'foo'"), ("data:", "data is None"), ("training: [1]", "training is list"),
     ("model:", "model is None"), ("hidden: 8\nhidden: 16", "'hidden' stands twice"),
     ("model: {hidden: 8}\nmodel: {heads: 2}", "'model' stands twice"),
     ("guard: 1\nspacing: 2", "spacing is given twice"),
     ("model: {hidden: 8, hidden: 16}", "'hidden' stands twice")],
)  # fmt: skip
def test_a_section_that_is_none_and_a_key_that_stands_twice_are_named(content, said, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"c\.yaml") as refusal:
        merge(None, file, {"dataset": "mnist", "epochs": 2})
    assert said in str(refusal.value)


def test_a_key_that_has_no_effect_is_named_where_it_stands(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: gan")
    with pytest.raises(UserError, match=r"^preset best-mnist: rk_blocks"):
        merge("best-mnist", file, {})
    file.write_text("rk_blocks: 2")
    with pytest.raises(UserError, match=r"c\.yaml: rk_blocks"):
        merge("digits", file, {"model": "gan"})


def test_an_anchor_of_yaml_may_be_used(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {hidden: &width 8, mlp: *width}")
    assert merge(None, file, {}) == Config(hidden=8, mlp=8)


def test_names_of_versions_before_are_read_as_todays(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("guard: 1\nquality: 0.7\nbackend: fake_torino")
    assert merge(None, file, {}) == Config(spacing=1, min_fidelity=0.7, backend="fake_torino")
    assert tuning.parse("guard=0,1").key == "spacing"
    for line, now in {"train --guard 9": "--spacing", "evaluate --judge": "--reference-classifier"}.items():
        refused(qrkt(*line.split(), cwd=tmp_path), now)
    refused(qrkt("infer", "nope", "--text", "--judge", cwd=tmp_path), "nope")  # a value is no flag


def test_a_search_over_a_key_of_another_model_is_no_crash():
    tuning.check_space(Config(), [tuning.parse("latent=64")])
    with pytest.raises(UserError, match="latent"):
        tuning.check_space(Config(), [tuning.parse("latent=64,32")])


HELP = """
import sys
from click.testing import CliRunner
from qrkt_hw.commands import COMMANDS, group
def show(command, words):
    out = CliRunner().invoke(group, [*words, "--help"]).output
    assert out.startswith("Usage: "), out
    for name in getattr(command, "commands", None) or ():
        show(command.commands[name], [*words, name])
show(None, [])
for name in COMMANDS:
    show(group.get_command(None, name), [name])
print([name for name in ("torch", "qiskit", "numpy", "rich") if name in sys.modules])
"""


def test_help_needs_neither_torch_nor_qiskit():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stdout + done.stderr


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
    shown = qrkt("circuits", "show", "qrkt", "--qubits", 3, "--plot", "a.png", cwd=tmp_path)
    assert "3 qubits, 3 inputs, 3 weights" in shown.stdout and (tmp_path / "a.png").stat().st_size > 1000
    both = qrkt("circuits", "show", "qrkt", "--qasm", "--draw", "b.png", cwd=tmp_path)
    assert both.stdout.startswith("OPENQASM 3") and "drawn" not in both.stdout and (tmp_path / "b.png").exists()


def test_presets_and_about(tmp_path):
    assert "digits" in qrkt("presets", "list", cwd=tmp_path).stdout
    assert "dataset: digits" in qrkt("presets", "show", "digits", cwd=tmp_path).stdout
    about = qrkt("about", cwd=tmp_path).stdout
    assert "torch" in about and "qiskit" in about
    assert str(tmp_path.home()) not in about
