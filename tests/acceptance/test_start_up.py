"""`qrkt-hw train` reaches its first step soon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


HEAVY = ("lightning", "pytorch_lightning", "torchmetrics", "torchvision", "scipy.signal", "matplotlib", "tensorboard",
         "torch_fidelity")  # fmt: skip
COMPILED = f"""
import sys
from qrkt_hw.commands.interface import import_fabric
import_fabric()
import qrkt_hw.training.fit
print([name for name in {HEAVY} if name in sys.modules])
import torch
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], fused=True)
weight.sum().backward()
optimizer.step()
print("torch._dynamo.eval_frame" in sys.modules)
import torch._dynamo.config as config
print(config is sys.modules["torch._dynamo.config"], torch._dynamo is sys.modules["torch._dynamo"])
print(torch.compile(lambda x: 2 * x, backend="eager")(weight).tolist())
optimizer.step()
from torchvision.datasets import MNIST  # still there for whoever needs it
import scipy.signal, matplotlib
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.acceptance
def test_training_imports_no_package_that_it_does_not_use_and_whoever_asks_for_one_gets_it() -> None:
    lean, *lines = run(COMPILED).splitlines()
    assert lean == "[]"
    assert lines[:2] == ["False", "True True"] and lines[2].startswith("[") and len(lines) == 3


@pytest.mark.acceptance
def test_inference_loads_no_optimizer_of_placements_and_a_library_user_keeps_the_compiler() -> None:
    program = """
import sys, qrkt_hw.experiments.inference, qrkt_hw.resources.forecast, qrkt_hw.backends.device.packing
print([name for name in ("scipy.optimize", "scipy.sparse.csgraph") if name in sys.modules])
import qrkt_hw.training.fit
print('torch._dynamo.eval_frame' in sys.modules)
"""
    assert run(program) == "[]\nTrue\n"


@pytest.mark.acceptance
def test_the_connector_comes_without_scipy_special_which_whoever_asks_for_it_gets() -> None:
    program = """
import sys
from qrkt_hw.commands.interface import import_connector
import_connector()
import qrkt_hw.experiments.devices
print("scipy.special" in sys.modules)
from qiskit_machine_learning.neural_networks import effective_dimension
from scipy.special import gamma
print(round(effective_dimension.logsumexp([0.0, 0.0]), 3), gamma(5.0))
"""
    assert run(program) == "False\n0.693 24.0\n"


@pytest.mark.acceptance
def test_the_program_trains_without_the_compiler(tmp_path: Path) -> None:
    train = f"['train', '--epochs', '1', '--limit', '64', '--out', {str(tmp_path / 'run')!r}]"
    loaded = "print('torch._dynamo.eval_frame' in sys.modules)"
    call = "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    program = f"import sys; sys.argv = ['qrkt-hw', *{train}]\nfrom qrkt_hw.commands import main\n{call}{loaded}"
    assert run(program).splitlines()[-1] == "False"
    assert (tmp_path / "run" / "plots" / "curves.png").is_file()


@pytest.mark.acceptance
@pytest.mark.slow
def test_the_first_step_and_an_inference_come_soon_after_torch_and_qiskit() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "start_up.py")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    step, infer = done.stdout.splitlines()[-2:]
    assert step.startswith("first step beyond it") and infer.startswith("infer beyond it"), done.stdout
    assert float(step.split()[-1]) <= 1.0 and float(infer.split()[-1]) <= 0.7, done.stdout
