import pytest

from tests.command_line import qrkt
from tests.runs.trained import GAN, MINE, SMALL


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with ``mine.py`` and trained runs: ``mine`` and ``gan`` with its circuits, ``plain`` with ours."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mine.py").write_text(MINE)
    for name, options in {"mine": ["--ansatz", "mine.py:f"], "plain": []}.items():
        assert qrkt("train", *SMALL, *options, "--out", name, cwd=folder).returncode == 0
    assert qrkt("train", *GAN, "--ansatz", "mine.py:f", "--out", "gan", cwd=folder).returncode == 0
    (folder / "mine.py").unlink()
    return folder
