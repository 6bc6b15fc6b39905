"""Smoke test of the lowest versions that pyproject.toml admits: ``python tests/lowest.py [FOLDER]``.

Makes a fresh environment in FOLDER (default: a temporary one, removed at the end), installs the lowest release of every
direct dependency, those of the extras too, and does a little of everything: help, doctor, training, inference,
resources, fast tests.
Downloads about 3 GB and takes 7 GB of disk and some minutes. Exit status 0 where everything worked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TESTS = [
    "tests/simulator/test_native.py",
    "tests/nn/test_attention.py",
    "tests/compiler",
    "tests/simulator/test_analysis.py",
    "tests/runs",
]


def main(folder: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "UV_NO_CACHE": "1"}
    environment.pop("PYTHONPATH", None)

    def run(*command: object, cwd: Path = folder) -> None:
        print("$", *command, flush=True)
        subprocess.run([str(c) for c in command], cwd=cwd, env=environment, check=True)

    # a copy of what git tracks: an editable install leaves its build beside the sources
    source = folder / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        if (ROOT / name).is_file() and not name.startswith("results/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())

    venv.create(folder / "venv", with_pip=True)
    python, qrkt = folder / "venv/bin/python", folder / "venv/bin/qrkt-hw"
    run(python, "-m", "pip", "install", "-q", "uv")
    pins = folder / "lowest.txt"
    run(
        python, "-m", "uv", "pip", "compile", "-q", "--resolution", "lowest-direct", "--extra", "all", "--python",
        python, "--no-header", "--no-annotate", "-o", pins, source / "pyproject.toml",
    )  # fmt: skip
    run(python, "-m", "uv", "pip", "install", "-q", "--python", python, "-r", pins, "pytest", "pytest-timeout")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "-e", source)

    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][name] for name in ("train", "aer", "ibm", "gan", "text", "tune"))
    wanted = {Requirement(text).name for texts in (project["dependencies"], *extras) for text in texts}
    print(*(line for line in pins.read_text().splitlines() if line.split("==")[0] in wanted), flush=True)
    run(python, "-W", "error::DeprecationWarning:qrkt_hw", "-c", "import qrkt_hw; qrkt_hw.QuantumLayer, qrkt_hw.load")
    run(qrkt, "--help")
    run(qrkt, "doctor")
    run(qrkt, "train", "--epochs", 1, "--limit", 64, "--out", "run")
    run(qrkt, "infer", "run", "--limit", 20)
    run(qrkt, "infer", "run", "--limit", 2, "--backend", "aer_cpu")
    run(qrkt, "resources", "run")
    run(qrkt, "train", "--model", "gan", "--epochs", 1, "--limit", 64, "--out", "gan")
    run(qrkt, "generate", "gan")
    run(python, "-m", "pytest", "-p", "no:cacheprovider", *TESTS, cwd=source)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
