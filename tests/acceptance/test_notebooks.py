"""Every notebook of the site runs from an empty folder, offline, and its page shows the cells that run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "notebook_pages.py"
FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))
QUICK = ("layer", "run")  # a few seconds each

of_pages = importlib.util.spec_from_file_location("notebook_pages", PROGRAM)
pages = importlib.util.module_from_spec(of_pages)
of_pages.loader.exec_module(pages)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_a_notebook_runs(name, tmp_path):
    done = subprocess.run([sys.executable, PROGRAM, "--check", name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = len(list(FOLDER.glob(f"{name}-*.png")))
    assert done.stdout == f"{name}: {shown} pictures\n" and shown >= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_its_notebook(name):
    page, cells = (FOLDER / f"{name}.md").read_text(), pages.cells((FOLDER / f"{name}.py").read_text())
    kinds = [kind for kind, _ in cells]
    assert kinds[0] == "markdown" and 4 <= len(kinds) - kinds.count("markdown") <= 10
    at = 0
    for kind, source in cells:
        shown = source if kind == "markdown" else f"```{'bash' if kind == 'shell' else kind}\n{source}\n```"
        at = page.index(shown, at) + len(shown)
    assert max(map(len, re.sub(r"```text\n.*?```", "", page, flags=re.S).splitlines())) <= 120
    for file in re.findall(r"\]\((.*?\.png)\)", page):
        assert (FOLDER / file).stat().st_size < 120_000 and Image.open(FOLDER / file).width <= 1200


def test_the_sources_are_notebooks_of_jupytext():
    jupytext = pytest.importorskip("jupytext", reason='pip install -e ".[docs]"')
    for name in NAMES:
        text = (FOLDER / f"{name}.py").read_text()
        kinds = [cell.cell_type for cell in jupytext.reads(text, fmt="py:percent").cells]
        assert kinds == ["markdown" if kind == "markdown" else "code" for kind, _ in pages.cells(text)], name
