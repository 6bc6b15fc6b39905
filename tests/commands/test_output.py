"""Main output of every command: its width, the keys of ``--json``, and ``--quiet``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from qrkt_hw.commands import group
from tests.command_line import qrkt, trained
from tests.commands.test_terminal import every_command

TINY = ["--limit", 40, "--epochs", 1, "--hidden", 4, "--heads", 2, "--mlp", 4, "--qubits", 2, "--rk-blocks", 1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    trained(folder, *TINY, out="run")
    return folder


# a command line -> the keys of its JSON, or of the entries of its array
SCHEMAS = {
    "presets list": {"name", "about"},
    "presets show digits": {"dataset"},
    "circuits list": {"name", "weights", "topology", "source"},
    "circuits show qrkt": {"name", "qubits", "inputs", "weights", "observables", "depth", "two_qubit_gates", "topology",
                           "source"},
    "circuits analyze qrkt -n 2 --pairs 20 --samples 5": {"template", "pairs", "samples", "seed", "rows"},
    "backends list": {"backends", "fake_backends"},
    "backends check exact": {"seen", "ideal", "difference", "finding", "seconds", "kind", "name", "shots"},
    "about": {"qrkt-hw", "python", "platform", "processor", "cores", "torch_threads", "gpus", "packages"},
    "runs .": {"name", "preset", "seed", "accuracy", "state"},
    "infer run": {"split", "count", "accuracy", "f1", "auroc", "loss", "backend", "seconds"},
    "compare run": {"rows", "files"},
    "report run --limit 5 -b fake_lima": {"file", "bytes", "parts"},
    "export run --format qpy": {"run", "format", "out", "what"},
    "resources run": {"subject", "logical", "devices", "costs", "verdicts", "parameters", "shots", "prices"},
}  # fmt: skip


@pytest.mark.parametrize("line", SCHEMAS)
def test_json_has_the_keys_it_always_has(line, home):
    done = qrkt(*line.split(), "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = set.intersection(*(set(one) for one in found)) if isinstance(found, list) else set(found)
    assert SCHEMAS[line] <= keys, sorted(keys)


def test_training_tells_what_may_follow_and_json_tells_all(home, capsys):
    done = qrkt("train", *TINY, "--out", "told", cwd=home)
    follows = [line for line in done.stderr.splitlines() if line.startswith("next: qrkt-hw ")]
    assert [line.split()[2] for line in follows] == ["infer", "infer", "resources", "baseline"]
    assert max(map(len, follows)) <= 80
    done = qrkt("train", *TINY, "--out", "a-run-folder-whose-name-is-rather-long", cwd=home)
    assert max(map(len, done.stderr[done.stderr.index("next:") :].splitlines())) <= 80
    found = json.loads(qrkt("train", *TINY, "--out", "counted", "--json", "--quiet", cwd=home).stdout)
    assert found["run"] == "counted" and {"test", "parameters", "best_epoch", "train_seconds"} <= set(found)


def test_every_command_but_those_that_print_scripts_has_json():
    flags = {words: {flag for one in command.params for flag in one.opts} for words, command in every_command().items()}
    without = [words for words, known in flags.items() if "--json" not in known]
    assert without == ["launch", "completion"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("line", [line for line in SCHEMAS if not line.startswith(("presets show", "backends check"))])
def test_the_output_fits_the_terminal(line, width, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    done = qrkt(*line.split(), cwd=home)
    assert done.returncode == 0, done.stderr
    wide = [row for row in done.stdout.splitlines() if len(row) > width]
    assert not wide, "\n".join(wide)
    assert "\x1b" not in done.stdout  # no colour where nobody sees it


def test_no_color_is_heard(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in CliRunner().invoke(group, ["presets", "list"], color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in CliRunner().invoke(group, ["presets", "list"], color=True).output


def test_quiet_prints_results_only(home):
    loud, quiet = qrkt("infer", "run", cwd=home), qrkt("infer", "run", "-q", cwd=home)
    assert len(loud.stderr.splitlines()) >= 2 and quiet.stderr == ""
    assert loud.stdout.splitlines()[0] == "run run" and len(quiet.stdout.splitlines()) == 1
    wrong = qrkt("infer", "nope", "-q", cwd=home)
    assert wrong.returncode == 2
    assert wrong.stderr == "qrkt-hw: run: no folder nope; qrkt-hw runs lists the runs under runs/\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_names(shell, tmp_path):
    script = qrkt("completion", shell, cwd=tmp_path).stdout
    assert "_QRKT_HW_COMPLETE" in script and "qrkt-hw" in script
    program = [sys.executable, "-c", "from qrkt_hw.commands import main; main()"]
    words = {"tra": "train", "train --learn": "--learning-rate", "train --preset bes": "best-mnist"}
    for end, wanted in words.items() if shell == "bash" else ():
        line = f"qrkt-hw {end}"
        asked = {"_QRKT_HW_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, **asked}, timeout=60)
        assert f"plain,{wanted}\n" in done.stdout, done.stderr
