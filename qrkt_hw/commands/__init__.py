"""The command line: one file per command. Modules load when their command is used, so that help is instant."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import click

from qrkt_hw.commands.lazy import LazyGroup
from qrkt_hw.commands.quick_start import PROGRAM
from qrkt_hw.errors import RunWarning

COMMANDS = {
    "train": ("qrkt_hw.commands.train:train", "Train a model; leaves a run folder."),
    "infer": ("qrkt_hw.commands.infer:infer", "Accuracy of a run, or classes of your images."),
    "generate": ("qrkt_hw.commands.generate:generate", "Draw images with a GAN."),
    "evaluate": ("qrkt_hw.commands.evaluate:evaluate", "FID, KID, precision and recall of a GAN's images."),
    "compare": ("qrkt_hw.commands.compare:compare", "Several runs in one table and one picture."),
    "twin": ("qrkt_hw.commands.twin:twin", "Train the classical twins of a run and compare."),
    "tune": ("qrkt_hw.commands.tune:tune", "Search over any options; resumable, shared by machines."),
    "circuits": ("qrkt_hw.commands.circuits:circuits", "List, show and analyze the circuit templates."),
    "resources": ("qrkt_hw.commands.resources:resources", "What a model costs on a device, and whether it is quantum."),
    "presets": ("qrkt_hw.commands.presets:presets", "List and show the presets."),
    "backends": ("qrkt_hw.commands.backends:backends", "List the backends and try one."),
    "jobs": ("qrkt_hw.commands.jobs:jobs", "Jobs that a run sent to a device: list, show, cancel, adopt."),
    "doctor": ("qrkt_hw.commands.doctor:doctor", "What is wrong with this installation, and what mends it."),
    "about": ("qrkt_hw.commands.about:about", "Versions and devices, for a bug report."),
}


@click.group(cls=LazyGroup, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qrkt-hw", prog_name="qrkt-hw")
def group() -> None:
    """Quantum transformers with Runge-Kutta blocks, from training to hardware."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit status 2."""
    from qrkt_hw.errors import UserError

    warnings.showwarning = _show
    obj = PROGRAM if arguments is None else None
    try:
        sys.exit(group.main(args=arguments, prog_name="qrkt-hw", standalone_mode=False, obj=obj) or 0)
    except UserError as error:
        message = str(error)
    except click.ClickException as error:
        message = error.format_message()
    except (click.Abort, KeyboardInterrupt):
        click.echo("qrkt-hw: stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    click.echo("qrkt-hw: " + " ".join(message.split()), err=True)
    sys.exit(2)


def _show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    """A warning about a run in one line; others as before."""
    if issubclass(category, RunWarning):
        click.echo("warning: " + " ".join(str(message).split()), err=True)
    else:
        _others(message, category, *rest, **more)


_others = warnings.showwarning
