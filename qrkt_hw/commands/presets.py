"""``qrkt-hw presets list`` and ``show``."""

import click

from qrkt_hw.commands.interface import Group, echo


@click.group(cls=Group)
def presets() -> None:
    """List and show the presets."""


@presets.command("list")
def list_() -> None:
    """Every preset with its first comment line."""
    from qrkt_hw.experiments import presets as shipped

    for name in shipped.names():
        echo(f"{name:28} {shipped.text(name).splitlines()[0].lstrip('# ')}")


@presets.command()
@click.argument("name")
def show(name: str) -> None:
    """The preset's YAML."""
    from qrkt_hw.experiments import presets as shipped

    click.echo(shipped.text(name), nl=False)
