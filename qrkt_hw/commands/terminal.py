"""Text on the terminal, whatever file or service it came from, without control characters."""

from __future__ import annotations

import math
import re

import click

# C0 without tab and newline, DEL, C1, the controls that turn the writing direction, and bytes that are no UTF-8
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with its control characters written out, as in ``\\x1b``."""
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def echo(text: str = "", err: bool = False) -> None:
    """Print a line whose control characters are written out."""
    click.echo(printable(text), err=err)


def defined(value: float | None) -> str:
    """A figure with four digits, or that it is undefined: None in JSON, NaN in Python."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.4f}"
