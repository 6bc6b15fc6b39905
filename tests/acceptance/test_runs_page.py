"""Every block of docs/runs.md runs, from top to bottom in one folder, and what it prints fits 80 columns."""

import re
import shlex
from pathlib import Path

import pytest

from tests.command_line import qrkt

pytestmark = pytest.mark.acceptance
PAGE = Path(__file__).parents[2] / "docs" / "runs.md"


@pytest.mark.slow
def test_the_page_of_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) >= 9
    names: dict[str, object] = {}
    printed = ""
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), names)
            continue
        for line in text.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            assert words[0] == "qrkt-hw"
            done = qrkt(*words[1:], cwd=tmp_path)
            assert done.returncode == 0, (line, done.stderr)
            printed += f"$ {line}\n{done.stdout}{done.stderr}"
            if words[1] == "runs" and "--json" not in words:
                assert max(map(len, done.stdout.splitlines())) <= 80
    assert "from epoch 3 on with the learning rates of 4 epochs" in printed
    assert "starts from" in printed and "inverted: its background is light" in printed
