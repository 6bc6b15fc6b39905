"""The command line: one file per command. Modules load when their command is used, so that help is instant."""

import errno
import io
import logging
import os
import re
import signal
import sys
import warnings
from contextlib import suppress
from typing import Any, NoReturn

import click

from qrkt_hw.commands.interface import OLD_NAMES, PROGRAM, LazyGroup, echo, printable
from qrkt_hw.errors import RunWarning, UserError, independent, missing, rank_and_count, speaking_flags

COMMANDS = {
    "train": "Train a model; leaves a run folder.",
    "launch": "Batch script for a training on a cluster.",
    "infer": "Accuracy of a run, or classes of your images.",
    "generate": "Images from the generator of a GAN.",
    "evaluate": "FID, KID, precision and recall of a GAN's images.",
    "export": "Circuits or weights of a run for other programs.",
    "runs": "List runs: name, preset, seed, accuracy, state.",
    "compare": "Several runs in one table and one picture.",
    "report": "One HTML page on a run: curves, mistakes, circuits, chip, price, bill.",
    "baseline": "Size-, parameter-matched and structured classical baselines of a run.",
    "bench": "Is a circuit any good? A suite of tasks beside other circuits and baselines.",
    "tune": "Search over any options; resumable, shared by machines.",
    "circuits": "List, show and analyze the circuit templates.",
    "fit-to": "Circuits, shots and mitigation for a budget of QPU seconds.",
    "resources": "What a model costs on a device, and its classical simulability.",
    "presets": "List and show the presets.",
    "backends": "List the backends and try one.",
    "jobs": "Jobs that a run sent to a device: list, show, cancel, adopt, export, check.",
    "doctor": "What is wrong with this installation, and what fixes it.",
    "about": "Versions and devices, for a bug report.",
    "completion": "Completion of commands, options and names in a shell.",
}
ALONE = ("export", "compare", "report", "bench", "fit-to", "jobs")  # that write, or bill


@click.group(
    cls=LazyGroup,
    commands=COMMANDS,
    elsewhere={
        "about": "doctor",
        "completion": "doctor",
        "circuits": "resources",
        "compare": "runs",
        "export": "runs",
        "presets": "runs",
        "report": "runs",
        "evaluate": "generate",
        "launch": "train",
        "baseline": "tune",
        "bench": "tune",
        "fit-to": "tune",
        "backends": "doctor",
    },
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: OLD_NAMES.get(word, word),
    },
)
@click.version_option(package_name="qrkt-hw", prog_name="qrkt-hw")
@click.pass_context
def group(context: click.Context) -> None:
    """Quantum transformers with Runge-Kutta blocks, from training to hardware."""
    if os.environ.get("NO_COLOR"):
        context.color = False
    if rank_and_count()[1] > 1 and context.invoked_subcommand in ALONE:
        raise UserError(
            f"{context.invoked_subcommand} runs in one process; start it without torchrun and srun (train, infer, "
            "generate, evaluate, baseline and tune run on several)"
        )
    if context.invoked_subcommand == "tune":
        independent()  # each process trains trials of its own
    from qrkt_hw.backends.entries import working_folder

    context.with_resource(working_folder())
    logging.getLogger("qiskit_ibm_runtime").setLevel(logging.ERROR)  # its warnings on instances go to no log of ours


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit status 2."""
    warnings.showwarning = _show
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    with speaking_flags():
        status, message = _told(arguments)
    _end(arguments is None, status, " ".join(message.split()))


def _told(arguments: list[str] | None) -> tuple[int, str]:
    """Exit status of a command, and what to say of its end."""
    status, message = 2, ""
    try:
        status = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError as error:
        message = str(error)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
    except click.ClickException as error:
        message = error.format_message()
    except (click.Abort, KeyboardInterrupt):
        status, message = 130, "stopped"
    except BrokenPipeError:  # the reader has what it wanted
        status = 0
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        message = _of_the_machine(error)
        if not message:
            raise
    return status, message


def _run(arguments: list[str] | None) -> int:
    """Run a command; its exit status. Unlike click's ``main`` every error arrives as it was raised."""
    if "_QRKT_HW_COMPLETE" in os.environ:  # the shell asks for completions
        return group.main(prog_name="qrkt-hw", standalone_mode=False) or 0
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with group.make_context("qrkt-hw", list(words), obj=PROGRAM if arguments is None else None) as context:
            return group.invoke(context) or 0
    except click.exceptions.Exit as end:
        return end.exit_code


def _end(program: bool, status: int, message: str) -> NoReturn:
    """Say the last word and exit with this status, also where nobody reads or Ctrl-C comes once more."""
    if program:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is the interpreter's own end
    with suppress(OSError):
        if message:
            echo(f"qrkt-hw: {message}", err=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            # Python flushes once more when it ends, and would print a warning and take a status of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def _of_the_machine(error: OSError | MemoryError | RuntimeError | ImportError) -> str:
    """One sentence on memory, files or processes that the machine does not give; empty for any other error."""
    text = str(error)
    if isinstance(error, ImportError) and (found := missing(error)) is not None:
        return str(found)
    if isinstance(error, OSError):
        if isinstance(error.filename, (str, bytes)):
            return f"{os.fsdecode(error.filename)}: {error.strerror}"
        return f"output cannot be written: {error.strerror}" if error.errno in _FULL else ""
    if isinstance(error, MemoryError) or any(word in text for word in _NO_MEMORY):
        asked = re.search(r"allocate (?:memory: you tried to allocate )?([\d.,]+ ?\w+)", text)
        size = f" ({asked.group(1)} at once)" if asked else ""
        return (
            f"out of memory{size}: take fewer samples at a time (--batch-size, --limit, --samples), "
            "fewer --qubits, a smaller model, or a machine with more memory"
        )
    if "shared memory" in text or "DataLoader worker" in text:
        return "--workers: processes cannot share memory here (is /dev/shm there, and free?); take --workers 0"
    return ""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_NO_MEMORY = (
    "can't allocate memory", "out of memory", "bad_alloc", "Storage size calculation overflowed",
    "failed to map segment", "Cannot allocate memory",
)  # fmt: skip


def _show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    """A warning about a run in one line; others as before."""
    if issubclass(category, RunWarning):
        click.echo("warning: " + printable(" ".join(str(message).split())), err=True)
    else:
        _others(message, category, *rest, **more)


_others = warnings.showwarning
