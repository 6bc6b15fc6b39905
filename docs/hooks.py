"""What MkDocs runs on each page: Sphinx references become plain code, and the theme's search gets a name."""

import re


def on_page_content(html: str, **_: object) -> str:
    return re.sub(r":(?:class|func|meth|mod|attr|exc|data):<code>(?:~(?:\w+\.)*)?", "<code>", html)


def on_post_page(output: str, **_: object) -> str:
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
