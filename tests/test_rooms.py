"""The house's rule: a room imports only rooms below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    "commands", "experiments", "training", "resources", "models", "nn", "data", "plots", "runs", "backends",
    "simulator", "circuits", "compiler", "options",
]  # fmt: skip
FILES = sorted([*(ROOT / "qrkt_hw").glob("*/**/*.py"), *(ROOT / "circuits").rglob("*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "circuits" if parts[0] == "circuits" else parts[1]


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    parts = [name.split(".") for name in names]
    assert not any(p[0] == "circuits" for p in parts), f"{path}: import qrkt_hw.circuits, never circuits"
    return {p[1] for p in parts if p[0] == "qrkt_hw" and len(p) > 1} & set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_rooms_below(path):
    own = ROOMS.index(room_of(path))
    upwards = {room for room in imported_rooms(path) if ROOMS.index(room) < own}
    assert not upwards, f"{path} imports upwards: {upwards}"
