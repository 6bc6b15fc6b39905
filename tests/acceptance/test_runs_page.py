"""Every block of docs/runs.md runs, from top to bottom in one folder, and what it prints fits 80 columns."""

import re
import shlex
from pathlib import Path

import click
import pytest

from qrkt_hw.commands import group
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


@pytest.mark.parametrize("page", ["free-plan", "backends"])
def test_commands_and_options_of_a_page_exist(page):
    """Without running them: they take an account, or long."""
    blocks = re.findall(r"```bash\n(.*?)```", (PAGE.parent / f"{page}.md").read_text(), re.S)
    lines = [line for text in blocks for line in text.replace("\\\n", "").splitlines() if line.startswith("qrkt-hw")]
    assert len(lines) >= 4
    for line in lines:
        _, name, *words = shlex.split(line, comments=True)
        command = group.get_command(None, name)
        while isinstance(command, click.Group):
            command = command.get_command(None, words.pop(0))
        assert command is not None, line
        command.make_parser(click.Context(command)).parse_args(words)
