"""What reaches the terminal, and how a command ends: help, readers that leave, full disks, signals, memory."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.commands import group, main
from qrkt_hw.commands.interface import printable
from qrkt_hw.errors import UserError, speaking_flags
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config
from tests.command_line import qrkt, refused
from tests.commands.test_never_wrong_flags import IMAGES

GROUPS = [[], ["circuits"], ["presets"], ["backends"], ["jobs"]]


def shell(command: str, **more) -> subprocess.CompletedProcess:
    given = {"capture_output": True, "text": True, "timeout": 120, "env": {**os.environ, "COLUMNS": "80"}, **more}
    return subprocess.run(["bash", "-c", command.replace("qrkt-hw", f"{sys.executable} -m qrkt_hw")], **given)


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_a_bare_group_prints_the_help_that_help_prints(words, tmp_path):
    asked = qrkt(*words, "--help", cwd=tmp_path)
    bare = qrkt(*words, cwd=tmp_path)
    assert asked.returncode == 0 and bare.returncode in (0, 2)  # click until 8.1, and since
    assert bare.stdout + bare.stderr == asked.stdout
    lines = asked.stdout.splitlines()
    assert len(lines) > 5 and max(map(len, lines)) <= 80 and "..." not in asked.stdout.replace("[ARGS]...", "")
    assert CliRunner().invoke(group, words, prog_name="qrkt-hw").output.split() == asked.stdout.split()


def test_a_bare_program_prints_its_help():
    done, asked = shell("qrkt-hw"), shell("qrkt-hw --help")
    assert done.stderr == asked.stdout and done.returncode == 2 and not done.stdout


def test_every_command_refuses_an_option_given_twice():
    def commands(one, words=()):
        for name in one.list_commands(None) if isinstance(one, click.Group) else []:
            yield from commands(one.get_command(None, name), (*words, name))
        if not isinstance(one, click.Group):
            yield words, one

    for words, command in commands(group):
        for option in command.params:
            if not isinstance(option, click.Option) or option.multiple or option.is_flag:
                continue
            with speaking_flags():
                found = CliRunner().invoke(command, [option.opts[0], "1", option.opts[0], "2"])
                assert option.opts[0] in str(found.exception) and "given 2 times" in str(found.exception), (
                    words,
                    option,
                )


@pytest.mark.parametrize(
    "line",
    ["presets list", "circuits show qrkt --layers 200 --qasm", "circuits list", "--help"],
)
def test_a_reader_that_leaves_ends_every_command_alike(line):
    done = shell(f"qrkt-hw {line} | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("0\n", ""), line
    done = shell(f"qrkt-hw {line} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("0\n", ""), line


@pytest.mark.parametrize("line", ["presets list", "--help", "circuits list"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_output_is_one_sentence(line):
    done = shell(f"qrkt-hw {line} > /dev/full")
    assert done.returncode == 2 and done.stderr == "qrkt-hw: output cannot be written: No space left on device\n"


def test_an_interrupt_at_the_very_end_changes_nothing():
    program = (
        "import atexit, os, signal, sys; sys.argv = ['qrkt-hw', 'presets', 'list']\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "from qrkt_hw.commands import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr


def test_an_interrupt_is_one_word():
    started = subprocess.Popen(
        [sys.executable, "-m", "qrkt_hw", "circuits", "analyze", "qrkt", "--qubits", "8", "--samples", "40000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background programs ignore it
    )  # fmt: skip
    maps, until = Path(f"/proc/{started.pid}/maps"), time.monotonic() + 15
    while time.monotonic() < until and not (maps.exists() and "_kernels" in maps.read_text()):
        time.sleep(0.1)  # until it computes: what imports other packages may swallow the interrupt
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    # a shell calls both 130; the second is Python's where the interrupt has passed code that was run from C
    assert started.returncode in (130, -signal.SIGINT) and said == "qrkt-hw: stopped\n"


RAISED = {
    "MemoryError()": "out of memory",
    "RuntimeError(\"[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to "
    'allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)")': "4398046511104 bytes",
    'RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")': "2.00 GiB",
    'RuntimeError("Caught RuntimeError in DataLoader worker process 0. unable to open shared memory object")':
        "--workers 0",
    'PermissionError(13, "Permission denied", "/locked/model.safetensors")':
        "/locked/model.safetensors: Permission denied",
    'ImportError("libtorch_cpu.so: failed to map segment from shared object")': "out of memory",
}  # fmt: skip


@pytest.mark.parametrize("raised", RAISED)
def test_what_the_machine_does_not_give_is_one_sentence(raised, tmp_path, monkeypatch):
    from qrkt_hw.experiments import presets

    def names():
        raise eval(raised)

    monkeypatch.setattr(presets, "names", names)
    refused(qrkt("presets", "list", cwd=tmp_path), RAISED[raised])


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    from qrkt_hw.experiments import presets

    monkeypatch.setattr(presets, "names", lambda: [][0])
    with pytest.raises(IndexError):
        main(["presets", "list"])


@pytest.mark.slow
def test_too_much_memory_is_one_sentence(tmp_path):
    limit = "ulimit -v 9000000; "  # KiB: torch and Qiskit fit, the weights do not
    done = shell(f"{limit} qrkt-hw train --limit 500 --batch-size 500 --hidden 16384 --mlp 16384 --out {tmp_path}/run")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("qrkt-hw: out of memory")


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp"


def test_control_characters_are_written_out():
    assert printable(f"a\tb\n{EVIL}") == "a\tb\n\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202egnp"
    assert printable("ünï cødé 数 ±") == "ünï cødé 数 ±"
    assert printable("bad\udcff") == "bad\\udcff"


def test_no_control_character_of_a_file_reaches_the_terminal(tmp_path):
    """Names and remarks of a journal, a configuration and a data set are the words of whoever made the folder."""
    data = {**IMAGES, "class_names": [EVIL] * 10}
    folder = RunFolder.create(Config(), data, tmp_path / f"run{EVIL.replace('/', '')}")
    with Journal(folder.journal) as journal:
        activity = journal.start("infer", "ibm_fez", {"backend": EVIL})
        one = journal.intend(activity, "query", ["key"], 1, 1.0)
        with suppress(UserError):  # it refuses to read what it wrote; the file holds it all the same
            journal.mark(one, "held", job=EVIL, remark=EVIL)
    said = []
    for line in (["jobs", "list"], ["jobs", "show"], ["jobs", "list", "--json"], ["infer"], ["compare"], ["generate"]):
        done = qrkt(*line, folder.path, cwd=tmp_path)
        said.append(done.stdout + done.stderr)
    assert "owned" in said[1]
    for text in said:
        assert not any(mark in text for mark in ("\x1b", "\x07", "\x9b", "\u202e")), text


# a command line, and what must not be imported when it is refused
EARLY = {
    "train --hidden -3": ("lightning_fabric", "torch", "qiskit"),
    "train --rk rk9": ("lightning_fabric", "torch", "qiskit"),
    "train --preset nope": ("lightning_fabric", "torch", "qiskit"),
    "train --config nope.yaml": ("lightning_fabric", "torch", "qiskit"),
    "train --dataset nope": ("lightning_fabric", "torch", "qiskit"),
    "train --backend nope": ("lightning_fabric", "torch", "qiskit"),
    "train --heads 3": ("lightning_fabric", "torch", "qiskit"),
    "train --patch 3": ("lightning_fabric", "torch", "qiskit"),
    "train --latent 3": ("lightning_fabric", "torch", "qiskit"),
    "train --resume nope": ("lightning_fabric", "torch", "qiskit"),
    "train --ansatz nope": ("lightning_fabric", "torch"),
    "train --ansatz nope.py:f": ("lightning_fabric", "torch"),
    "infer nope": ("lightning_fabric", "torch", "qiskit"),
    "generate nope": ("lightning_fabric", "torch", "qiskit"),
    "evaluate nope": ("lightning_fabric", "torch", "qiskit"),
    "compare nope": ("lightning_fabric", "torch", "qiskit"),
    "twin nope": ("lightning_fabric", "torch", "qiskit"),
    "jobs list nope": ("lightning_fabric", "torch", "qiskit"),
    "resources --preset digits --plot x.pdf": ("lightning_fabric", "torch", "qiskit"),
    "tune --search hidden=8,16 --preset nope": ("lightning_fabric", "torch", "qiskit"),
    "tune --search hidden=-1,16": ("lightning_fabric", "torch", "qiskit"),
}


REFUSED = """
import contextlib, io, json, sys, time
from qrkt_hw.commands import main
for line in json.loads(sys.argv.pop()):
    sys.argv, said, status = ["qrkt-hw", *line.split()], io.StringIO(), None
    with contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            status = end.code
    loaded = sorted({"lightning_fabric", "torch", "qiskit"} & set(sys.modules))
    print(json.dumps([line, [status, said.getvalue(), loaded, time.process_time()]]))
"""


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """Exit status and standard error of every line, what was imported and the CPU seconds of all by then; the lines
    that may import more come last."""
    lines = json.dumps(sorted(EARLY, key=lambda line: -len(EARLY[line])))
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, lines], capture_output=True, text=True, timeout=120,
        cwd=tmp_path_factory.mktemp("early"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("line", EARLY)
def test_wrong_values_are_refused_before_anything_slow_is_imported(line, early):
    status, said, loaded, seconds = early[line]
    assert status == 2 and said.startswith("qrkt-hw: "), said
    assert not set(loaded) & set(EARLY[line]), loaded
    assert seconds < 15  # about two for all of them; importing Fabric alone takes 4 to 9
