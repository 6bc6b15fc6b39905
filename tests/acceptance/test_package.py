"""The wheel holds everything; the checkout has the names the user asked for; help is instant."""

import ast
import math
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

import qrkt_hw
from qrkt_hw.errors import EXTRAS

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).parents[2]
PRETRAINED = [
    "best-cifar10", "best-cifar10-4-qubits", "best-imdb", "best-mnist", "best-mnist-4-qubits", "best-mnist-device",
    "digits-device",
]  # fmt: skip


def python(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=240, env={**os.environ, **environment},
    )  # fmt: skip


def test_help_in_under_half_a_second(tmp_path):
    python("-m", "qrkt_hw", "--help", cwd=tmp_path)  # compile and warm the disk
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert python("-m", "qrkt_hw", "--help", cwd=tmp_path).returncode == 0
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5


def test_the_root_holds_the_names_asked_for():
    for name in ("qrkt_hw", "circuits", "tests"):
        assert (ROOT / name).is_dir() and not (ROOT / name).is_symlink()
    for name in ("backends.yaml", "cli.py", "pyproject.toml"):
        assert (ROOT / name).is_file() and not (ROOT / name).is_symlink()
    helped = python("cli.py", "--help", cwd=ROOT)
    assert helped.returncode == 0 and "train" in helped.stdout


def test_circuits_cannot_be_imported_twice():
    result = python("-c", "import circuits", cwd=ROOT)
    assert result.returncode == 1 and "qrkt_hw.circuits" in result.stderr


def unpacked(folder: Path, **environment: str) -> Path:
    """The wheel, installed into a folder of its own; the packages it needs come from this environment."""
    line = ["-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    built = python(*line, "--no-build-isolation", cwd=folder, **environment)
    if built.returncode:  # an environment without setuptools builds in isolation
        built = python(*line, cwd=folder, **environment)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel as it is built where no compiler works, with the native kernels that are installed here."""
    site = unpacked(tmp_path_factory.mktemp("wheel"), CC="false")
    native = Path("qrkt_hw") / "simulator" / "native"
    for kernels in (ROOT / native).glob("_kernels*"):
        shutil.copy(kernels, site / native)
    return site


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_wheel_holds_native_kernels_that_load(tmp_path):
    site = unpacked(tmp_path)
    asked = "from qrkt_hw.simulator import native; print(native.__file__, native.library() is not None)"
    done = python("-c", asked, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.stdout.startswith(str(site)) and done.stdout.endswith(" True\n"), done.stderr


def test_the_wheel_holds_every_module_and_data_file(installed):
    wanted = {
        p.relative_to(ROOT) for p in (ROOT / "qrkt_hw").rglob("*") if p.suffix in (".py", ".yaml", ".typed", ".html")
    }
    wanted |= {Path("qrkt_hw") / p.relative_to(ROOT) for p in (ROOT / "circuits").rglob("*.py")}
    missing = {str(p) for p in wanted if not (installed / p).is_file()}
    assert not missing
    assert (installed / "qrkt_hw" / "backends.yaml").read_text() == (ROOT / "backends.yaml").read_text()
    weights = installed / "qrkt_hw" / "experiments" / "pretrained"
    files = [path for path in weights.rglob("*") if path.is_file()]
    assert {(path.parent.name, path.name) for path in files} == {
        (name, file)
        for name in PRETRAINED
        for file in ("config.yaml", "data.json", "model.safetensors", "results.json")
    }
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for path in files:
        assert path.read_bytes() == (ROOT / "results" / path.parent.name / "seed-0" / path.name).read_bytes()


def test_the_wheel_holds_nothing_else(installed):
    folders = {path.name for path in installed.iterdir()}
    assert folders == {"qrkt_hw", f"qrkt_hw-{qrkt_hw.__version__}.dist-info"}
    kinds = {path.suffix for path in (installed / "qrkt_hw").rglob("*") if path.is_file()}
    assert kinds <= {".py", ".html", ".yaml", ".typed", ".json", ".safetensors", ".c", ".h", ".so", ".pyd"}
    (info,) = installed.glob("*.dist-info")
    told = (info / "METADATA").read_text()
    for extra in ("train", "ibm", "aer", "gan", "text", "tune", "docs", "test", "all"):
        assert f"Provides-Extra: {extra}" in told
    assert sum(path.stat().st_size for path in installed.rglob("*") if path.is_file()) < 6_000_000
    assert list(info.rglob("LICENSE"))


# without the modules that no plain layer needs, and that need not be there: a layer, and command lines with the exit
# status and the words of each
PLAIN = """
import contextlib, io, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import torch, qrkt_hw
layer = qrkt_hw.QuantumLayer(4, qubits=4)
layer(torch.randn(3, 4)).sum().backward()
for name in ("train", "load", "create_model"):
    try:
        getattr(qrkt_hw, name)
        raise AssertionError(name)
    except qrkt_hw.UserError as error:
        assert "pip install 'qrkt-hw[train]'" in str(error), error
from qrkt_hw.commands import main
for line, extra in {lines}.items():
    sys.argv, said = ["qrkt-hw", *line.split()], io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        assert end.code == (2 if extra else 0), (line, end.code, said.getvalue())
    assert f"pip install 'qrkt-hw{{extra}}'" in said.getvalue() if extra else not said.getvalue(), said.getvalue()
"""
LINES = {
    "resources --ansatz qrkt": "", "circuits list": "", "train --epochs 1": "[train]",
    "resources --ansatz qrkt --backend fake_torino": "[ibm]",
}  # fmt: skip


def test_a_layer_needs_no_extra(installed, tmp_path):
    names = {module for modules in EXTRAS.values() for module in modules}
    done = python("-c", PLAIN.format(names=names, lines=LINES), cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr


def test_the_wheel_works_from_any_folder(installed, tmp_path):
    script = (
        "import qrkt_hw, qrkt_hw.circuits as c, sys\n"
        "from qrkt_hw.experiments import presets\n"
        "from qrkt_hw import backends, QuantumLayer\n"
        "print(qrkt_hw.__file__, len(c.names()), presets.names(), backends.get('exact').name)\n"
        "model = qrkt_hw.create_model('best-mnist', pretrained=True)\n"
        "print(model.predict(__import__('numpy').zeros((28, 28), 'uint8')), qrkt_hw.list_models(pretrained=True))\n"
    )
    result = python("-c", script, cwd=tmp_path, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(installed)) and "digits" in result.stdout
    assert str(PRETRAINED) in result.stdout


def test_the_source_distribution_holds_real_files(tmp_path):
    pytest.importorskip("setuptools")
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    built = python("-c", script, tmp_path, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        members = packed.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    names = {member.name.partition("/")[2] for member in members if member.size}
    assert {"qrkt_hw/backends.yaml", "qrkt_hw/circuits/__init__.py"} <= names
    assert "qrkt_hw/experiments/pretrained/best-imdb/model.safetensors" in names


def test_the_version_is_stated_once():
    from importlib.metadata import version

    assert version("qrkt-hw") == qrkt_hw.__version__


POSIX = ("fcntl", "resource")  # that Windows lacks
WITHOUT_POSIX = f"""
import importlib, pkgutil, sys
for name in {POSIX}:
    sys.modules[name] = None
import qrkt_hw
for found in pkgutil.walk_packages(qrkt_hw.__path__, "qrkt_hw."):
    if not found.name.endswith(("__main__", "_kernels")):  # the program, and a library of C
        importlib.import_module(found.name)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_without_those_of_posix(tmp_path):
    done = python("-c", WITHOUT_POSIX, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_no_module_imports_one_of_posix_that_it_cannot_be_without(monkeypatch):
    for file in [*(ROOT / "qrkt_hw").rglob("*.py"), *(ROOT / "circuits").rglob("*.py")]:
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(statement, (ast.Import, ast.ImportFrom)):
                continue  # in a function, or tried
            named = [name.name for name in statement.names] if isinstance(statement, ast.Import) else [statement.module]
            assert not {*POSIX, "grp", "pwd", "pty", "termios", "tty"} & set(named), file
    from qrkt_hw.training.loop import peak_memory

    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(peak_memory())
