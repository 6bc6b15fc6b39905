"""Elements of an HTML page that loads nothing: text, tables, pictures, and charts as SVG in the page's two themes."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qrkt_hw.plots.images import picture

# colours of charts that the style gives others on a dark page
THEMED = re.compile("#(2b6cb0|dd6b20|718096|e53e3e|cbd5e0|b0b0b0|2f855a|805ad5|b83280|d69e2e|319795|ffffff)")


def prose(text: object) -> str:
    """Text as HTML; what stands between backticks is code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(str(text)))


def paragraphs(*texts: str) -> str:
    return "".join(f"<p>{prose(text)}</p>\n" for text in texts)


def unfilled(why: str) -> str:
    """What stands in the place of a part."""
    return f'<div class="missing">{paragraphs(why)}</div>\n'


def folded(summary: str, body: str) -> str:
    return f"<details><summary>{prose(summary)}</summary>\n{body}</details>\n"


def boxed(label: str, body: str) -> str:
    """Something wide, in a box that scrolls by itself, also by the keyboard."""
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{escape(label)}">{body}</div>\n'


def rows_of(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], text: bool = False) -> str:
    """A table with a caption; the first cell of a row names it, and a row of one cell is a heading."""
    head = "".join(f'<th scope="col">{prose(name)}</th>' for name in header)
    body = ""
    for first, *rest in rows:
        if not rest:
            body += f'<tr><th scope="colgroup" colspan="{len(header)}">{prose(first)}</th></tr>\n'
        else:
            cells = "".join(f"<td>{prose(cell)}</td>" for cell in rest)
            body += f'<tr><th scope="row">{prose(first)}</th>{cells}</tr>\n'
    kind = ' class="text"' if text else ""
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    return boxed(title, f"<table{kind}><caption>{prose(title)}</caption>{head}<tbody>\n{body}</tbody></table>")


def as_html(section: Any) -> str:
    """A section of the report of ``qrkt-hw resources``."""
    header = [re.sub("-\n", "", name).replace("\n", " ") for name in section.header]
    rows = [[cell.replace("\n", " ") for cell in row] for row in section.rows]
    return (rows_of(section.title, header, rows) if rows else "") + paragraphs(*section.notes)


def png(image: Any, alt: str, kind: str = "", width: int | None = None) -> str:
    """A PIL image, or the bytes of a PNG, as an element."""
    data = image
    if not isinstance(image, bytes):
        file = io.BytesIO()
        image.save(file, "PNG")
        data = file.getvalue()
    how = (f' class="{kind}"' if kind else "") + (f' width="{width}"' if width else "")
    return f'<img{how} src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="{escape(alt)}">'


def chart(alt: str, plot: Callable[..., Path], *given: Any, **how: Any) -> str:
    """What a function of :mod:`qrkt_hw.plots.charts` draws into the path it takes last, as SVG in the page's themes."""
    with TemporaryDirectory() as place:
        text = plot(*given, Path(place) / "chart.svg", **how).read_text(encoding="utf-8")
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)
    own = f"c{hashlib.sha256((alt + text).encode()).hexdigest()[:10]}-"  # anchors of two charts differ
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}", text).replace("xlink:href", "href")
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text)
    text = re.sub("<[^>]*>", _restyled, re.sub(r"\s*\n\s*", " ", text))
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def _restyled(found: re.Match[str]) -> str:
    """A tag with the page's colours and letters, and places in hundredths of a point."""
    text = THEMED.sub(lambda colour: f"var(--x{colour[1]}, #{colour[1]})", found[0]).replace("#000000", "currentColor")
    text = re.sub(r"'?DejaVu Sans'?(, [^;\"]*sans-serif)?", "system-ui, sans-serif", text)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", text)


def drawn(caption: str, svg: str, wide: bool = False) -> str:
    said = prose(caption[:1].upper() + caption[1:])
    return f"<figure>{boxed(caption, svg) if wide else svg}<figcaption>{said}</figcaption></figure>\n"


def percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.2f} %"


def between(value: float, ends: Sequence[float]) -> str:
    return f"{percent(value)} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"


def seconds_of(value: float) -> str:
    return f"{value:,.1f} s" if value < 600 else f"{value / 60:,.0f} min"


def matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix as a table; a cell is as dark as its share of the class."""
    body = ""
    for row, name in enumerate(names):
        whole = int(counts[row].sum())
        cells = "".join(
            f'<td{" class=right" if row == column else ""} style="--v:{n / max(1, whole):.3f}">{n or ""}</td>'
            for column, n in enumerate(counts[row].tolist())
        )
        right = percent(counts[row, row] / whole if whole else None)
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{right}</td></tr>\n'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in [*names, "right"])
    title = "Counts of true classes (rows) and predicted ones (columns)"
    head = f'<thead><tr><th scope="col">true</th>{head}</tr></thead>'
    return boxed(title, f'<table class="confusion"><caption>{title}</caption>{head}<tbody>\n{body}</tbody></table>')


def picture_of(counts: np.ndarray) -> str:
    """The same of many classes, as a picture."""
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    image = picture((255 * (1 - shares**0.5)).astype(np.uint8)[..., None])
    alt = f"Confusion of {len(counts)} classes: true ones down, predicted ones along; darker is more"
    return drawn(alt, png(image, alt, "", 500))


def most_frequent(counts: np.ndarray, names: Sequence[str]) -> str:
    """The classes that are most often taken for each other."""
    off = counts - np.diag(np.diag(counts))
    order = np.argsort(-off, axis=None, kind="stable")[:10]
    found = [(names[k // len(names)], names[k % len(names)], f"{off.flat[k]:,}") for k in order if off.flat[k]]
    return folded("Most frequent mistakes", rows_of("Most frequent mistakes", ("true", "predicted", "count"), found))


def document(**parts: str) -> str:
    """The whole page: the skeleton ``page.html`` with ``title, about, nav, main, footer, version``."""
    skeleton = resources.files("qrkt_hw.plots").joinpath("page.html").read_text(encoding="utf-8")
    return Template(skeleton).substitute(parts)
