"""The shape of the project: few files, none long, one door to native code, layers that the linter knows."""

import re
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).parents[2]
FILES = [f for f in (ROOT / "qrkt_hw").rglob("*") if f.suffix in {".py", ".c", ".h"} and "circuits" not in f.parts[-2:]]
FILES += list((ROOT / "circuits").glob("*.py"))


def test_few_python_files_and_none_is_long():
    # 135, and four for the page of a run (plots/page.py and images.py, experiments/report*.py): no file had room for it
    assert len([f for f in FILES if f.suffix == ".py"]) <= 139
    assert {str(f): n for f in FILES if (n := len(f.read_text().splitlines())) > 500} == {}


def test_native_code_is_entered_through_one_folder():
    """Only the simulator's native folder uses ctypes; layers and models do not know that kernels exist."""
    inside = ROOT / "qrkt_hw" / "simulator" / "native"
    assert [f for f in FILES if re.search(r"\bctypes\b", f.read_text()) and inside not in f.parents] == []
    above = [f for f in FILES if f.parts[-2] in ("nn", "models")]
    assert above and [f for f in above if re.search("native|kernel(?!_size|_inception)", f.read_text())] == []


def test_the_linter_knows_every_package():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}
    found = {f.name for f in (ROOT / "qrkt_hw").iterdir() if (f / "__init__.py").is_file()}
    found |= {f.stem for f in (ROOT / "qrkt_hw").glob("*.py") if not f.stem.startswith("__")}
    assert layers == found
    assert {c["type"] for c in contracts} == {"layers", "acyclic_siblings"}
