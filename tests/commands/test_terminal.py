"""Help, names and suggestions of the command line, at the width of a terminal."""

from __future__ import annotations

import io
import re

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.commands import COMMANDS, group
from qrkt_hw.commands.infer import _layers
from qrkt_hw.commands.interface import SHORT, Command
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import in_words, nearest, spelled, unknown
from qrkt_hw.experiments import presets
from qrkt_hw.experiments.devices import _Bar
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config, flattened
from qrkt_hw.training.loop import METRICS, TrainingProgress
from tests.command_line import qrkt, refused
from tests.commands.test_never_wrong_flags import IMAGES


def every_command() -> dict[str, click.Command]:
    """The words after ``qrkt-hw`` -> command, groups left out."""
    found = {}
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        inner = getattr(command, "commands", None)
        found.update({f"{name} {one}": inner[one] for one in inner} if inner else {name: command})
    return found


@pytest.mark.parametrize("words", every_command())
def test_help_fits_the_terminal_and_has_examples(words):
    command = every_command()[words]
    assert isinstance(command, Command)
    for flag in ("--help", "--help-all") if command.first else ("--help",):
        for width in (80, 120):
            done = CliRunner().invoke(group, [*words.split(), flag], terminal_width=width, prog_name="qrkt-hw")
            assert done.exit_code == 0
            assert max(map(len, done.output.splitlines())) <= width, done.output
            assert f"Examples:\n  qrkt-hw {words}" in done.output and "--quiet" in done.output
    short = CliRunner().invoke(group, [*words.split(), "--help"], prog_name="qrkt-hw").output
    own = [param for param in command.params if isinstance(param, click.Option) and param.opts[0] not in GENERAL]
    assert len(command.first) == (10 if command.first else 0) and (command.first or len(own) <= 14)
    for name in command.first or [param.opts[0] for param in own]:
        assert name in short
    for param in own:
        assert set(param.opts[1:]) <= {SHORT.get(param.opts[0][2:])}, param.opts


GENERAL = ("--quiet", "--help-all", "--help")


def test_short_forms_are_the_long_ones(tmp_path):
    shown = qrkt("circuits", "show", "qrkt", "-n", 3, "-l", 2, cwd=tmp_path)
    assert shown.stdout == qrkt("circuits", "show", "qrkt", "--qubits", 3, "--layers", 2, cwd=tmp_path).stdout
    refused(qrkt("train", "-e", 3, "--epochs", 4, cwd=tmp_path), "--epochs: given 2 times")


# what is typed, and what must be said
SLIPS = {
    "trian": "no command 'trian'; did you mean train?",
    "jobs lst": "no command 'lst'; did you mean list?",
    "train --lr 3": "no option '--lr'; did you mean --learning-rate?",
    "train --epoch 3": "no option '--epoch'; did you mean --epochs?",
    "train --data-set digits": "did you mean --dataset?",
    "train --num-qubits 3": "did you mean --qubits?",
    "train --batch 3": "did you mean --batch-size?",
    "train --wd 3": "did you mean --weight-decay?",
    "train --preset bset-mnist": "--preset: no preset 'bset-mnist'; did you mean best-mnist? qrkt-hw presets list",
    "train --preset zzz": "no preset 'zzz'; qrkt-hw presets list shows the",
    "train --dataset minst": "--dataset: no data set 'minst'; did you mean mnist?",
    "train --dataset zzz": "there are digits, mnist, cifar10",
    "train --backend aer-cp": "--backend: no backend 'aer-cp'; did you mean aer_cpu?",
    "circuits show brickwrk": "no ansatz 'brickwrk'; did you mean brickwork?",
    "bench --tasks digit": "--tasks: no task 'digit'; did you mean digits?",
    "train --qubits six": "--qubits: 'six' is no whole number of at least 1 and at most 384; give one, or leave it out",
    "resources -n 0": "--qubits: 0 is no whole number of at least 1 and at most 1000; give one, or leave it out",
    "train --learning-rate nan": "--learning-rate: nan is no finite number above 0; give one",
    "train --dropout 1": "--dropout: 1.0 is no number of at least 0 and below 1; give one",
    "train --field-norms 3": "--field-norms: 3 is no whole number of at least 0 and at most 2; give one",
    "jobs show --number last": "--number: 'last' is no whole number; give one, or leave it out",
}  # fmt: skip


@pytest.mark.parametrize("line", SLIPS)
def test_a_slip_is_answered_with_what_was_meant(line, tmp_path):
    refused(qrkt(*line.split(), cwd=tmp_path), SLIPS[line])


def test_case_hyphens_and_underscores_of_names_do_not_matter(tmp_path):
    best = qrkt("presets", "show", "best-mnist", cwd=tmp_path).stdout
    assert qrkt("presets", "show", "Best_MNIST", cwd=tmp_path).stdout == best
    assert "qrkt: 4 qubits" in qrkt("circuits", "show", "QRKT", cwd=tmp_path).stdout
    # refused for another reason: the name is known
    for line in ("train --dataset MNIST --patch 5", "train --gradient Parameter-Shift --heads 3",
                 "train --ansatz Rx-Ring --heads 3", "train --backend AER-CPU --heads 3",
                 "train --model gan --generator-ansatz Rx-Ring --patch 5"):  # fmt: skip
        assert "did you mean" not in (said := qrkt(*line.split(), cwd=tmp_path).stderr) and "Invalid" not in said


def test_old_names_of_flags_stay(tmp_path):
    shown = qrkt("circuits", "show", "qrkt", "--draw", "a.png", "--quiet", cwd=tmp_path)
    assert shown.returncode == 0 and (tmp_path / "a.png").is_file()
    for line in ("resources --preset digits --images 3", "resources --preset digits --limit 3"):
        refused(qrkt(*line.split(), cwd=tmp_path), "--samples: without a device")
    refused(qrkt("generate", "--grid", "a.txt", cwd=tmp_path), "--plot: a.txt must end in .png")
    refused(qrkt("generate", "--count", 3, "--interpolate", cwd=tmp_path), "--samples: 3 is no multiple")


def test_names_and_what_is_near_them():
    assert spelled("Fake_Torino", ["fake_torino", "fake_fez"]) == "fake_torino"
    assert spelled("a-b", ["a_b", "ab"]) == "a-b"  # it may be either
    assert spelled("a_b", ["a_b", "ab"]) == "a_b"
    assert nearest("kingston", ["fake_kingston", "fake_torino"]) == ["fake_kingston"]
    assert unknown("x", "q", ["a", "b"], "or a file") == "no x 'q'; there are a, b, or a file"


HIGHER_ORDER = {
    "attention": "higher-order",
    "ansatz": "higher_order",
    "projection": "quantum-mlp",
    "mlp_ansatz": "qrkt",
}


def test_what_is_missing_or_wrong_is_named_with_the_way_out(tmp_path):
    for line, *said in (
        ("presets show", "Missing argument 'NAME', as in: qrkt-hw presets show best-mnist"),
        ("export", "Missing option '--format'; choose from qasm3, qpy, hf, as in: qrkt-hw export runs/NAME --format"),
        ("train --preset", "'--preset' requires an argument; qrkt-hw train --help-all shows all"),
        ("train --heads 3", "--heads: hidden size 32", "take 1, 2, 4, 8, 16 or 32, or another --hidden"),
        ("train --patch 3", "--patch: images of 8 pixels", "take 1, 2, 4 or 8"),
        ("train --config a.yaml", "a.yaml: unknown key 'epoch'; did you mean epochs?"),
        ("circuits show a.qasm --qubits 2", "a.qasm cannot be read as OpenQASM 3: line 4:"),
        ("circuits show b.qasm --qubits 2", "b.qasm cannot be read as OpenQASM 3: it is OpenQASM 2, which has no"),
        ("circuits show c.py", "--ansatz: 'c.py' names no function; take c.py:FUNCTION"),
        ("circuits show c.py:f", "--ansatz: 'c.py' has no function 'f'; it has g, h"),
        ("infer nothing", "run: no folder nothing; qrkt-hw runs lists the runs under runs/"),
    ):
        (tmp_path / "a.yaml").write_text("epoch: 3\n")
        (tmp_path / "b.qasm").write_text('OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[2];\n')
        (tmp_path / "c.py").write_text("from os import getcwd\ndef g(n, l): ...\ndef h(n, l): ...\nk = 3\n")
        (tmp_path / "a.qasm").write_text('OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nry(x_0 q[0];\n')
        found = qrkt(*line.split(), cwd=tmp_path)
        refused(found, *said)
        assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("preset", "more"),
    [(name, {}) for name in ("digits", "digits-hardware", "thesis-cifar10-qrk1", "qrkt-gan-digits")]
    + [("digits", HIGHER_ORDER)],
)
def test_every_quantum_layer_has_a_name_in_words(preset, more):
    options = Config(**{**flattened(presets.load(preset)), **more})
    model = build_model(options, DataShape(3 if "cifar" in preset else 1, 32 if "cifar" in preset else 8, 10))
    words = in_words(layer.network.tag for layer in quantum_layers(model))
    assert len(set(words.values())) == len(words) > 4
    assert all(re.fullmatch(r"[a-z0-9 ]*block \d+( rk stage \d+)? (cross )?(query|key|value|output|attention|MLP)", w)
               for w in words.values()), words  # fmt: skip
    assert in_words(["mine.0"]) == {"mine.0": "mine.0"}
    figures = {"values": 1_000_000, "mean_error": 0.1, "max_error": 0.2, "unmitigated_mean_error": 0.3}
    lines = _layers({"layers": [{"layer": name, **figures} for name in words], "backend_details": {}})
    assert [line[2:].partition("  ")[0] for line in lines[1:-1]] == list(words.values())
    assert max(map(len, lines)) <= 80


BIG = 999_999_999  # the largest count that is written out


def test_the_cost_table_fits_80_columns():
    from qrkt_hw.resources.tables import _aligned, _count, _time

    header = ["submitted as", "circuit\nbatches", "circuits", "executions", "QPU\ntime", "short\nform", "USD\npremium"]
    worst = ["  estimator", "9,999", *map(_count, (BIG, 1e30)), _time(9e9), _time(9e9), _count(BIG)]
    assert max(map(len, _aligned(header, [["train 1 parameter_shift"], worst]))) <= 80


@pytest.mark.parametrize(("job", "devices"), [("d4x8c0q9nvk000803a2g", 1), ("d4x8c0q9nvk000803a2g", 2), ("7" * 36, 2)])
def test_the_table_of_jobs_keeps_every_id(tmp_path, job, devices, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = RunFolder.create(Config(), IMAGES, tmp_path / "run")
    with Journal(folder.journal) as journal:
        activity = journal.start("infer", "ibm_fez", {"backend": "ibm_fez"})
        for number in range(2):
            one = journal.intend(activity, ("ibm_fez", "ibm_kingston")[number % devices], ["key"], 10_000_000, 1234.5)
            journal.mark(one, "held", job=job, remark="the answer was lost " * 3)
    shown = qrkt("jobs", "list", "run", cwd=tmp_path).stdout
    assert shown.count(job) == 2 and shown.count("10,000,000") == 2 and shown.count("1234.5") == 2, shown
    table = shown.split("#1: ")[0].rstrip("#\n")
    assert max(map(len, table.splitlines())) <= 80
    assert "ibm_kingston" in shown or devices == 1


@pytest.mark.parametrize("width", [80, 120])
def test_progress_shows_every_figure_at_the_width(width):
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=True, color_system=None)
    metrics = "loss 0.981  val acc 0.847  val AUROC 0.9865"
    assert len(metrics) == METRICS
    with TrainingProgress(console, 300, 3, 0) as bar:
        for _ in range(3):
            bar.step()
        bar.end_epoch(1, metrics)
    with _Bar(console, 1200) as bar:
        bar("15 circuits")
        bar.update("ibm_fez (133 qubits): job d4x8c0q9nvk000803a2g queued, position 1234, 31200 s")
    said = " ".join(re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", written.getvalue()).split())
    assert " ".join(metrics.split()) in said and "epoch 2/300" in said and "batch 1/1200" in said and "left" in said
    assert all(word in said for word in ("d4x8c0q9nvk000803a2g", "position", "1234,")) and "…" not in said
