"""Every block of docs/runs.md and of the tutorial runs, from top to bottom in one folder."""

import re
import shlex
from pathlib import Path

import pytest

from tests.command_line import qrkt

pytestmark = pytest.mark.acceptance
DOCS = Path(__file__).parents[2] / "docs"


def run_page(page, folder):
    """Run the blocks of a page; gives what its commands printed."""
    blocks = re.findall(r"```(bash|python)\n(.*?)```", page, re.S)
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    printed = ""
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "page", "exec"), names)
            continue
        for line in text.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            assert words[0] == "qrkt-hw"
            done = qrkt(*words[1:], cwd=folder)
            assert done.returncode == 0, (line, done.stderr)
            printed += f"$ {line}\n{done.stdout}{done.stderr}"
            if words[1] == "runs" and "--json" not in words:
                assert max(map(len, done.stdout.splitlines())) <= 80
    return printed


@pytest.mark.slow
def test_the_page_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run_page((DOCS / "runs.md").read_text(), tmp_path)
    assert "from epoch 3 on with the learning rates of 4 epochs" in printed
    assert "starts from" in printed and "inverted: its background is light" in printed


@pytest.mark.slow
def test_the_tutorial_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "tutorial.md").read_text().split("## Run on IBM")[0]  # needs an account
    printed = run_page(page, tmp_path)
    for block in re.findall(r"```text\n(.*?)```", page.split("## Train")[1], re.S):
        for line in block.splitlines():
            line = re.sub(r"\([^()]* s\)|about [\d.]+ us.*|\.\.\.$", "", line).strip()  # times differ
            assert line in printed, line
