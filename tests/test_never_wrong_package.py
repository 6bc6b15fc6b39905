"""What the package asks for and what it contains: no release that computes wrongly, no binary in the sources."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from qrkt_hw.commands import doctor

ROOT = Path(__file__).parents[1]
WANTED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
# the first that is right, then those that are not, and why
RELEASES = {
    "qiskit": ("2.5.2", ["2.2.0", "2.3.1", "2.4.1", "2.5.0", "2.5.1"]),  # simplifies parameter expressions wrongly
    "lightning-fabric": ("2.6.1", ["2.5.6", "2.6.0", "2.6.2", "2.6.3"]),  # malicious releases of its sister
    "torch": ("2.10.0", ["2.6.0", "2.9.1"]),  # CVE-2026-24747, in the unpickler that reads checkpoints
    "torchvision": ("0.25.0", ["0.24.1"]),  # goes with that torch
    "pillow": ("12.1.1", ["11.3.0", "12.1.0"]),  # CVE-2026-25990
    "torch-fidelity": ("0.4.0", ["0.3.0"]),  # has no precision and recall
    "pydantic": ("2.13.0", ["2.12.5"]),  # qiskit-ibm-runtime asks for it
    "click": ("8.2.0", ["8.1.8"]),  # NoArgsIsHelpError
}


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_that_is_wrong_is_neither_installed_nor_passed_by_doctor(name):
    first, wrong = RELEASES[name]
    text = next(text for text in WANTED if Requirement(text).name == name)
    assert Requirement(text).specifier.contains(first)
    assert [f.state for f in doctor.requirements({name: first}, [text])] == ["ok"]
    for version in wrong:
        assert not Requirement(text).specifier.contains(version), f"{text} admits {version}"
        (finding,) = doctor.requirements({name: version}, [text])
        assert finding.state == "problem" and version in finding.text
        assert finding.remedy == f"pip install '{text}'"


def test_git_tracks_no_binary_outside_results_and_docs():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = [name.decode() for name in listed.stdout.split(b"\0") if name]
    assert "pyproject.toml" in names
    sources = [ROOT / name for name in names if not name.startswith(("results/", "docs/"))]
    assert not [path for path in sources if path.is_file() and b"\0" in path.read_bytes()]
