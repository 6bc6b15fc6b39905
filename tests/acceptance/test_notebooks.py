"""Every notebook of the site runs from an empty folder, offline, and its page shows the cells that run."""

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "notebook_pages.py"
FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))
SHORTER = {"layer": ("range(150)", "range(15)"), "run": ("epochs=12", "epochs=1")}  # every cell of these, in seconds

of_pages = importlib.util.spec_from_file_location("notebook_pages", PROGRAM)
pages = importlib.util.module_from_spec(of_pages)
of_pages.loader.exec_module(pages)


def shown(name: str) -> str:
    count = len(list(FOLDER.glob(f"{name}-*.png")))
    assert count >= 2
    return f"{name}: {count} pictures\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, tmp_path):
    done = subprocess.run([sys.executable, PROGRAM, "--check", name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown(name)


@pytest.mark.parametrize("name", SHORTER)
def test_a_notebook_runs_with_a_shorter_training(name, tmp_path, monkeypatch, capsys):
    long, short = SHORTER[name]
    text = (FOLDER / f"{name}.py").read_text()
    assert text.count(long) == 1
    (tmp_path / f"{name}.py").write_text(text.replace(long, short))
    monkeypatch.setattr(pages, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["notebook_pages.py", "--check", name])
    for variable in ("COLUMNS", "PATH"):  # which the program sets for the cells
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
    with warnings.catch_warnings():
        pages.main()
    assert capsys.readouterr().out == shown(name)


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
