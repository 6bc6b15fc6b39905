"""`qrkt-hw train` reaches its first step soon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


LEAN = """
import sys
from qrkt_hw.commands.quick_start import import_lightning
import_lightning()
import qrkt_hw.training.fit
heavy = ("torchvision", "scipy.signal", "matplotlib", "torch_fidelity")
print([name for name in heavy if name in sys.modules])
from torchvision.datasets import MNIST  # still there for whoever needs it
import scipy.signal, matplotlib
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.acceptance
def test_training_imports_no_package_that_it_does_not_use() -> None:
    assert run(LEAN).splitlines()[-1] == "[]"


@pytest.mark.acceptance
def test_the_program_trains_so_and_a_library_user_keeps_a_whole_torchmetrics(tmp_path: Path) -> None:
    train = f"['train', '--epochs', '1', '--limit', '64', '--out', {str(tmp_path / 'run')!r}]"
    ending = "import torchmetrics.utilities.imports as i; print(bool(i._TORCHVISION_AVAILABLE))"
    as_program = f"import sys; sys.argv = ['qrkt-hw', *{train}]\nfrom qrkt_hw.commands import main\n" + _caught(
        "main()"
    )
    assert run(as_program + ending).splitlines()[-1] == "False"
    assert (tmp_path / "run" / "plots" / "curves.png").is_file()
    assert run("import qrkt_hw.training.fit\n" + ending).splitlines()[-1] == "True"


@pytest.mark.acceptance
@pytest.mark.slow
def test_the_first_step_is_done_within_six_seconds_on_a_warm_disk() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "start_up.py")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("first step done"), done.stdout
    assert float(last.removeprefix("first step done").split()[0]) < 6, done.stdout


def _caught(call: str) -> str:
    return f"try:\n    {call}\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
