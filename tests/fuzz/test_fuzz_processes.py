"""Spoilt files in whole processes, which leave standard error as a user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from qrkt_hw.errors import UserError
from tests.acceptance.killing_jobs import forked
from tests.fuzz.conftest import START, report, same, spoilt
from tests.fuzz.subjects import SUBJECTS, Broken, judged, last_line, tidy

INPUTS = 20


@pytest.mark.timeout(0)
@pytest.mark.skipif(bool(START), reason="a range of inputs is read in this process")
@pytest.mark.parametrize("fresh", [6, pytest.param(INPUTS, marks=pytest.mark.slow)])
def test_spoilt_files_are_refused_or_read_rightly_by_the_program_itself(fresh, made, tmp_path):
    """By so many programs started anew; by processes forked from one that has imported everything for the rest."""
    (infer,) = (s for s in SUBJECTS if s.name == "infer")
    sound = made(infer)[1]

    def run(number: int) -> tuple[str, str]:
        folder = tmp_path / str(number)
        _, label = spoilt(1_000_000 + number, [infer], made, folder)
        asked = ["infer", "run", "--image", "one.png", "--json"]
        try:
            if number < fresh:
                command = [sys.executable, "-m", "qrkt_hw", *asked]
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
                record = judged(done.returncode, done.stdout, done.stderr)
            else:
                status, text = forked(asked, folder)
                record = judged(status, text, text).splitlines()[-1]
        except UserError:
            return label, "refused"
        except (Broken, subprocess.TimeoutExpired) as error:
            return label, last_line(error)
        return label, "right" if same(tidy(json.loads(record)), sound) else f"WRONG RESULT: {record}"

    with ThreadPoolExecutor(2) as pool:
        report(dict(pool.map(run, range(INPUTS))))
