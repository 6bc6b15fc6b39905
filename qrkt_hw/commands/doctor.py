"""``qrkt-hw doctor``."""

from __future__ import annotations

import sys

import click

from qrkt_hw.commands.lazy import Command


@click.command(cls=Command)
def doctor() -> None:
    """What is installed, what does not fit together, and the command that mends each problem.

    Exit status 1 where something is broken; a missing GPU or account is a remark, not a fault.
    """
    from qrkt_hw.runs.doctor import examine

    findings = examine()
    marks = {"ok": ("ok", "green"), "remark": ("--", "yellow"), "problem": ("!!", "red")}
    for finding in findings:
        mark, colour = marks[finding.state]
        click.echo(f"{click.style(mark, fg=colour, bold=True)}  {finding.subject:22} {finding.text}")
        if finding.remedy:
            click.echo(f"    {'':22} -> {finding.remedy}")
    problems = sum(f.state == "problem" for f in findings)
    click.echo(f"{problems} problem{'s' if problems != 1 else ''} found" if problems else "nothing is broken")
    if problems:
        sys.exit(1)
