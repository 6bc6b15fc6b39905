"""``qrkt-hw about``."""

import click

from qrkt_hw.commands.interface import Command, echo


@click.command(cls=Command)
def about() -> None:
    """Versions and devices, for a bug report."""
    from qrkt_hw.runs.folder import environment

    found = environment()
    packages = found.pop("packages")
    for key, value in {**found, **packages}.items():
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        echo(f"{key:24} {value}")
