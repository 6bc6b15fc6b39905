"""What the package asks for and what it contains: no release that computes wrongly, no binary in the sources."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qrkt_hw
from qrkt_hw.commands import doctor
from qrkt_hw.errors import EXTRAS, MissingPackage, extras, missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
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


def test_every_module_of_an_extra_is_installed_by_it():
    """The sentence on a missing module names the extra that brings it, itself or by a package that it asks for."""
    distributions = metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        own = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"][extra]}
        for module in modules:
            names = {canonicalize_name(one) for one in distributions[module]}
            needed = {canonicalize_name(Requirement(r).name) for one in own for r in _requires(one)}
            assert names & (own | needed), (module, extra)


def _requires(name):
    return [] if name == "qrkt-hw" else metadata.requires(name) or []


def test_what_is_not_installed_is_a_sentence_that_names_the_extra():
    for extra, modules in EXTRAS.items():
        said = missing(ModuleNotFoundError(name=f"{modules[0]}.part"))
        assert isinstance(said, ImportError) and f"pip install 'qrkt-hw[{extra}]'" in str(said)
    assert missing(ModuleNotFoundError(name="numpy")) is None and missing(ImportError("torch", name="torch")) is None
    with pytest.raises(MissingPackage, match=r"safetensors is not installed.*qrkt-hw\[train\]"), extras():
        raise ModuleNotFoundError(name="safetensors")
    findings = doctor.requirements({"qiskit": "2.5.2"}, ["qiskit>=2.5.2", 'optuna>=4.5; extra == "tune"'])
    assert [(f.state, f.subject) for f in findings] == [("ok", "versions"), ("warning", "extra tune")]


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == qrkt_hw.__version__ == cited["version"] and cited["license"] == PROJECT["license"]


def test_workflows_and_forms_are_yaml_and_their_commands_are_there():
    files = [*(ROOT / ".github").rglob("*.yml")]
    assert {file.name for file in files} >= {"ci.yml", "nightly.yml", "wheels.yml", "bug.yml", "wish.yml"}
    for file in files:
        content = yaml.safe_load(file.read_text())
        for name in re.findall(r"(?:python|bash) ([.\w/-]+\.py|\.ci/run)", file.read_text()):
            assert (ROOT / name).is_file(), name
        assert content
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "RELEASING.md", "CITATION.cff"):
        for path in re.findall(r"`((?:tests|qrkt_hw|\.github|\.ci)/[\w./-]+)`", (ROOT / name).read_text()):
            assert (ROOT / path).exists(), path
