"""Every Python example of the pages for one's own programs runs; those of one section share their names."""

import re
from pathlib import Path

import pytest

from qrkt_hw import circuits

pytestmark = pytest.mark.acceptance
DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("library.md", "primitives.md", "index.md", "concepts.md", "circuits.md", "from-pennylane.md",
         "from-qiskit-machine-learning.md", "../README.md")  # fmt: skip


def sections() -> dict[tuple[str, str], list[tuple[int, str]]]:
    """The Python blocks of every section of a page, each with the line it starts on."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            before = text[: block.start()]
            title = re.findall(r"^##? (.*)$", before, re.MULTILINE)[-1]
            found.setdefault((page, title), []).append((before.count("\n") + 1, block[1]))
    return found


@pytest.mark.parametrize("section", sections(), ids=" ".join)
def test_the_examples_of_a_section_run(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    monkeypatch.setattr(circuits, "_factories", dict(circuits._factories))  # or register an ansatz
    names: dict = {"__name__": "example"}
    for line, text in sections()[section]:
        exec(compile("\n" * line + text, str(DOCS / section[0]), "exec"), names)
