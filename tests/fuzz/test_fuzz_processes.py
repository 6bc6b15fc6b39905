"""Spoilt files in whole processes, which leave standard error as a user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qrkt_hw.errors import UserError
from tests.fuzz.conftest import START, report, same, spoilt
from tests.fuzz.subjects import SUBJECTS, Broken, judged, last_line, tidy

INPUTS = 20
# A process with everything imported and nothing computed becomes one process for each folder: an import takes longer
# than an inference. The child ends as the program does.
SERVER = """
import importlib, os, pkgutil, signal, sys
import qrkt_hw
from qrkt_hw.commands import main
for module in pkgutil.walk_packages(qrkt_hw.__path__, "qrkt_hw."):
    if "__main__" not in module.name and "_kernels" not in module.name:
        importlib.import_module(module.name)
for folder in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}.{name}", os.O_CREAT | os.O_WRONLY), number)
        sys.argv[:] = ["qrkt-hw", "infer", "run", "--image", "one.png", "--json"]
        main()
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def served(folders: list[Path]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of ``infer`` in each folder, where the first is read by a fresh program."""
    command = [sys.executable, "-m", "qrkt_hw", "infer", "run", "--image", "one.png", "--json"]
    first = subprocess.run(command, cwd=folders[0], capture_output=True, text=True, timeout=200)
    command = [sys.executable, "-c", SERVER, *map(str, folders[1:])]
    codes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    texts = [[Path(f"{folder}.{name}").read_text() for name in ("out", "err")] for folder in folders[1:]]
    others = [(int(code), out, err) for code, (out, err) in zip(codes, texts, strict=True)]
    return [(first.returncode, first.stdout, first.stderr), *others]


@pytest.mark.timeout(0)
@pytest.mark.skipif(bool(START), reason="a range of inputs is read in this process")
def test_spoilt_files_are_refused_or_read_rightly_by_the_program_itself(made, tmp_path):
    (infer,) = (s for s in SUBJECTS if s.name == "infer")
    sound = made(infer)[1]
    folders = [tmp_path / str(number) for number in range(INPUTS)]
    labels = [spoilt(1_000_000 + k, [infer], made, folder)[1] for k, folder in enumerate(folders)]
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(served, (folders[: INPUTS // 2], folders[INPUTS // 2 :])))

    def outcome(code: int, out: str, err: str) -> str:
        try:
            record = judged(code, out, err)
        except UserError:
            return "refused"
        except Broken as error:
            return last_line(error)
        return "right" if same(tidy(json.loads(record)), sound) else f"WRONG RESULT: {record}"

    report(dict(zip(labels, (outcome(*one) for half in halves for one in half), strict=True)))
