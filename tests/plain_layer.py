"""A quantum layer of an installation without extras: ``python tests/plain_layer.py``, in any folder but the checkout.

Exit status 0 where the layer and the command line work and every extra that is missing is named.
"""

import subprocess
import sys
from importlib.util import find_spec

import torch

import qrkt_hw
from qrkt_hw.errors import EXTRAS, UserError

absent = [extra for extra, modules in EXTRAS.items() if find_spec(modules[0]) is None]

layer = qrkt_hw.QuantumLayer(4, qubits=4, ansatz="brickwork", layers=2)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), layer, torch.nn.Linear(4, 1))
model(torch.randn(8, 3)).square().mean().backward()
assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
for line in (["--version"], ["circuits", "show", "qrkt"], ["resources", "--ansatz", "qrkt"], ["presets", "list"]):
    subprocess.run([sys.executable, "-m", "qrkt_hw", *line], check=True, stdout=subprocess.DEVNULL)
# what needs an extra says so, in Python and on the command line
needed = {"train": (["train"], lambda: qrkt_hw.train), "ibm": (["backends", "check", "fake_torino"], None)}
for extra in set(needed) & set(absent):
    line, wanted = needed[extra]
    done = subprocess.run([sys.executable, "-m", "qrkt_hw", *line], capture_output=True, text=True)
    assert done.returncode == 2 and f"pip install 'qrkt-hw[{extra}]'" in done.stderr, done.stderr
    try:
        if wanted is not None:
            wanted()
            raise AssertionError(f"{extra} is not missed")
    except UserError as error:
        assert f"pip install 'qrkt-hw[{extra}]'" in str(error)
print(f"a layer runs; extras that are not installed: {', '.join(absent) or 'none'}")
