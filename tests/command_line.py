"""The command line in this process: what a subprocess would do, without importing torch again and again."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from qrkt_hw.commands import main


def qrkt(*arguments: object, cwd: Path) -> SimpleNamespace:
    """Run ``qrkt-hw arguments...`` in ``cwd``; gives ``returncode``, ``stdout``, ``stderr``."""
    out, err, here = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
    finally:
        os.chdir(here)
    return SimpleNamespace(returncode=stop.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())


def refused(result: SimpleNamespace, *words: str) -> None:
    """The result is a refusal: status 2, one sentence on standard error that holds ``words``, no traceback."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    complaint = [line for line in result.stderr.splitlines() if line.startswith("qrkt-hw: ")]
    assert len(complaint) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in complaint[0], complaint[0]


def trained(folder: Path, *options: object, out: str = "run") -> Path:
    """A run that ``qrkt-hw train`` leaves in the folder."""
    done = qrkt("train", *options, "--out", out, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / out
