"""`qrkt-hw train` reaches its first step soon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


HEAVY = ("lightning", "pytorch_lightning", "torchmetrics", "torchvision", "scipy.signal", "matplotlib", "tensorboard",
         "torch_fidelity")  # fmt: skip
LEAN = f"""
import sys
from qrkt_hw.commands.train import import_fabric
import_fabric()
import qrkt_hw.training.fit
print([name for name in {HEAVY} if name in sys.modules])
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
