"""Run the backend against the service with several versions of the client.

``python -m tests.ibm_service.versions 0.50.0 0.51.0`` installs each into a folder of its own, without its dependencies
(those that are installed serve), and prints what it saw. Exit status 1 where one fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from tests.ibm_service.process import ROOT, Loopback

CHECK = """
import numpy as np, qiskit_ibm_runtime, pathlib
from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
template = circuits.build("brickwork", 4, 1)
values = np.random.default_rng(0).normal(size=(40, len(template.parameters)))
exact = resolve("exact").run([Call(template, values)])[0]
seen = []
for mode in ("job", "batch", "session"):
    for extra in ({}, {"twirl_gates": True, "twirl_measure": True, "dynamical_decoupling": True}):
        backend = resolve("ibm_fez", shots=4096, device={"mode": mode, "submissions_per_minute": 100, **extra})
        seen.append(np.abs(backend.run([Call(template, values)])[0] - exact).max())
print(qiskit_ibm_runtime.__version__, pathlib.Path(qiskit_ibm_runtime.__file__).parent.parent,
      "largest error in six ways to run: %.3f (five sigma: %.3f)" % (max(seen), 5 / 64))
print([round(float(s), 3) for s in seen])
assert max(seen) < 5 / 64
"""


def main(versions: list[str]) -> int:
    """How many versions failed."""
    failed = 0
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
            subprocess.run([*install, f"qiskit-ibm-runtime=={version}"], check=True, stderr=subprocess.DEVNULL)
            before = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = folder
            try:
                with Loopback() as service:
                    environment = {**os.environ, **service.environment(), "OMP_NUM_THREADS": "1"}
                    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, env=environment, timeout=300)
            finally:
                os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
            failed += done.returncode != 0
            print(f"qiskit-ibm-runtime {version}: {'works' if done.returncode == 0 else 'FAILS'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
