"""Every Python example of docs/library.md runs; those of one section share their names, sections do not."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance
PAGE = Path(__file__).parents[2] / "docs" / "library.md"


def sections() -> dict[str, list[tuple[int, str]]]:
    """The Python blocks of every section, each with the line it starts on."""
    found: dict[str, list[tuple[int, str]]] = {}
    text = PAGE.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: block.start()]
        title = re.findall(r"^## (.*)$", before, re.MULTILINE)[-1]
        found.setdefault(title, []).append((before.count("\n") + 1, block[1]))
    return found


@pytest.mark.parametrize("title", sections())
def test_the_examples_of_a_section_run(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    names: dict = {"__name__": "example"}
    for line, text in sections()[title]:
        exec(compile("\n" * line + text, str(PAGE), "exec"), names)
