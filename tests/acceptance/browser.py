"""A headless Chromium for the tests of pages, and axe-core on a page that is open there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(os.environ.get("QRKT_HW_AXE") or "-"), ROOT / "node_modules" / "axe-core" / "axe.min.js"
AXE = next(filter(Path.is_file, SCRIPTS), None)
needs_axe = pytest.mark.skipif(AXE is None, reason="needs axe-core: npm install axe-core, or QRKT_HW_AXE=axe.min.js")


@contextmanager
def started() -> Iterator[Any]:
    """Chromium, driven by Playwright; the test is skipped where one of both is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser's driver: pip install playwright")
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium on the PATH")
    with playwright.sync_playwright() as driver:
        shell = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        yield shell
        shell.close()


def sideways(view: Any) -> int:
    """By how many pixels an open page can be scrolled sideways."""
    return view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def serious(view: Any) -> list[tuple[str, list[str]]]:
    """The serious and critical findings of axe-core on an open page: the rule, and three elements that break it."""
    assert AXE is not None
    view.evaluate(AXE.read_text(encoding="utf-8"))
    found = view.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    bad = [one for one in found if one["impact"] in ("serious", "critical")]
    return [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in bad]
