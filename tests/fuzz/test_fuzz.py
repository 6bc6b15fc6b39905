"""Every file that is read, spoilt in every way: refused in one sentence, or the right result; never a traceback, a
hang, an abort, or another number.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.fuzz.conftest import START, STOP, outcome_of, removed, report, spoilt
from tests.fuzz.subjects import SUBJECTS


@pytest.mark.timeout(0)
def test_spoilt_files_are_refused_or_read_rightly(made, tmp_path):
    outcomes = {}
    for number in range(int(START or 0), int(STOP)):
        subject, label = spoilt(number, SUBJECTS, made, tmp_path / "copy")
        started = time.perf_counter()
        outcomes[label] = outcome_of(subject, made(subject)[1], tmp_path / "copy")
        if os.environ.get("QRKT_HW_FUZZ_LOG"):
            with Path(os.environ["QRKT_HW_FUZZ_LOG"]).open("a") as log:
                log.write(f"{time.perf_counter() - started:6.2f} {label} -> {outcomes[label]}\n")
        removed(tmp_path / "copy")
    report(outcomes)
