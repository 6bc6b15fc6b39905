"""The site builds without a warning, no link of it or of the README is broken, and the README keeps its promises."""

import functools
import http.server
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

from qrkt_hw.commands import group
from tests.acceptance.browser import needs_axe, serious, sideways, started

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MISSING = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]
EXECUTED = {  # pages whose Python blocks a test runs
    "README.md", "index.md", "concepts.md", "circuits.md", "from-pennylane.md", "from-qiskit-machine-learning.md",
    "library.md", "primitives.md",  # test_library_page.py
    "runs.md", "tutorial.md",  # test_runs_page.py
    "laboratory.md",  # test_bench.py
    "scale.md",  # test_distributed.py
}  # fmt: skip


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.targets: list[str] = []
        self.unnamed = 0  # pictures without a text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            if name in ("href", "src"):
                self.targets.append(value or "")
        self.unnamed += tag == "img" and not dict(attrs).get("alt")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if MISSING:
        pytest.skip(f'needs {", ".join(MISSING)}; pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_strictly_and_no_link_is_broken(site):
    pages = {file: Page(file.read_text()) for file in site.rglob("*.html") if file.name != "404.html"}
    assert len(pages) >= 25
    for file, page in pages.items():
        assert not page.unnamed, file
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme in ("https", "http", "mailto", "data"):
                continue
            place = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            place = place / "index.html" if place.is_dir() else place
            assert place.exists(), (file, target)
            assert place.suffix != ".html" or unquote(parts.fragment) in pages[place].anchors, (file, target)
    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    for word in ("price", "resume"):
        assert any(word in entry["title"].lower() for entry in found), word


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served, without a network."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def chromium():
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def names(site):
    """The pages of the site."""
    return sorted(file.parent.relative_to(site).as_posix() for file in site.rglob("index.html"))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_in_a_browser(names, address, chromium, width):
    """No page scrolls sideways or writes an error to the console; the search finds."""
    page, wrong = chromium.new_page(viewport={"width": width, "height": 900}), list[str]()
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith((address, "data:")) else wrong.append(sent.url))
    for name in names:
        page.goto(f"{address}{name}/", wait_until="load")
        assert sideways(page) <= 0, name
        assert not wrong, (name, wrong)
    for word in ("price", "resume"):
        page.goto(f"{address}?q={word}", wait_until="load")
        page.wait_for_selector(".md-search-result__item", state="attached", timeout=30_000)
    page.close()
    print(f"\n{len(names)} pages at {width} pixels")


@pytest.mark.slow
@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_in_a_browser_are_accessible_by_axe_core(names, address, chromium, scheme):
    page = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    found = {}
    for name in names:
        page.goto(f"{address}{name}/", wait_until="load")
        if bad := serious(page):
            found[name] = bad
    page.close()
    assert not found, json.dumps(found, indent=1)


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)).strip().lower().replace(" ", "-")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "RELEASING.md"])
def test_links_of_the_repository_pages(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()):
        parts = urlsplit(target)
        if parts.scheme:
            continue
        file = ROOT / parts.path
        assert file.exists(), target
        if parts.fragment:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert parts.fragment in map(slug, titles), target


def test_every_command_is_on_the_page_of_commands():
    page = (DOCS / "commands.md").read_text()
    for name in group.list_commands(None):
        assert f"| `{name}" in page, name


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(re.findall(r"^\*\*\d\. ", text, re.M)) == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist_and_its_examples_run(page):
    """Its commands are parsed, not run: some take an account, or long. Its Python is run by the test of the page."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S)
    executed = page.name in EXECUTED or page.parent.name == "notebooks"  # test_notebooks.py
    assert executed or all(kind != "python" for kind, _ in blocks)
    for text in (text for kind, text in blocks if kind == "bash"):
        for line in text.replace("\\\n", "").splitlines():
            if not line.startswith("qrkt-hw"):
                continue
            _, name, *words = shlex.split(line, comments=True)
            command = group.get_command(None, name)
            while isinstance(command, click.Group):
                command = command.get_command(None, words.pop(0))
            assert command is not None, line
            command.make_parser(click.Context(command)).parse_args(words)
