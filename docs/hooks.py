"""What MkDocs runs on each page: references of Sphinx in docstrings become plain code."""

import re


def on_page_content(html: str, **_: object) -> str:
    return re.sub(r":(?:class|func|meth|mod|attr|exc|data):<code>(?:~(?:\w+\.)*)?", "<code>", html)
