"""``qrkt-hw about``."""

from __future__ import annotations

import click


@click.command()
def about() -> None:
    """Versions and devices, for a bug report."""
    from qrkt_hw.runs.environment import environment

    found = environment()
    packages = found.pop("packages")
    for key, value in {**found, **packages}.items():
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        click.echo(f"{key:24} {value}")
