"""A thread that ends gives back all that the native kernels kept for it."""

import subprocess
import sys

import pytest

from qrkt_hw.simulator import native

SCRIPT = """
import gc, threading
import psutil, torch
from qrkt_hw import circuits
from qrkt_hw.simulator import Simulator

torch.set_num_threads(1)
template = circuits.build("reuploading", 14, 1)
simulate = Simulator(template, torch.complex64, "adjoint")

def use():
    x = torch.randn(3, 1, template.num_inputs, requires_grad=True)
    w = torch.randn(1, template.num_weights, requires_grad=True)
    simulate(x, w).sum().backward()

def used_by_threads(count):
    for _ in range(count):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    gc.collect()
    return psutil.Process().memory_info().rss

before = used_by_threads(10)
print((used_by_threads(60) - before) / 2**20)
"""


@pytest.mark.skipif(native.library() is None, reason="the native kernels were not built")
def test_sixty_short_threads_leave_no_workspace_behind():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40, f"{done.stdout} MiB"  # each workspace takes 5 MiB
