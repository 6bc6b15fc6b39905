"""A device held for a whole inference or training: journal, budget, resume. Simulators need none of it."""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel

from qrkt_hw.backends import Backend, BackendWarning, from_options
from qrkt_hw.backends.device.budget import Budget
from qrkt_hw.backends.device.journal import Activity, Journal
from qrkt_hw.errors import UserError, flag
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import BackendConfig, Config

EVERY = 20.0  # seconds between two lines on what is waited for


class Waiting:
    """Tells of rounds to nobody, and of long waits to the console."""

    def __init__(self, console: Console | None) -> None:
        self.console, self.last = console, time.monotonic()

    def __call__(self, text: str) -> None:
        """A round begins."""

    def update(self, text: str) -> None:
        """What is waited for now."""
        if self.console is not None and time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            self.console.print(f"waiting for {text}", highlight=False, markup=False, soft_wrap=True)


def keeps_journal(backend: Backend) -> bool:
    """Whether work on the backend costs money, so that it is journalled."""
    return backend.kind == "IBM Quantum"


def open_backend(options: BackendConfig, seed: int, console: Console) -> Backend:
    """The backend of these options for a command, which reads ``./backends.yaml``.

    The use of that file is announced, and a fallback where nobody misses it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BackendWarning)
        backend = from_options(options, seed, working=True)
    if backend.working_entry:
        console.print(f"backend {options.name} is from backends.yaml of this folder", highlight=False, markup=False)
    announce(backend, console)
    return backend


def refuse_billed(run: RunFolder, options: Config, console: Console) -> None:
    """Refuse to train anew, unasked, on the device of a run.

    Raises:
        UserError: the run's backend bills its time.
    """
    if keeps_journal(open_backend(options.backend, options.training.seed, console)):
        raise UserError(
            f"run: {run.path} was trained on {options.backend.name!r}, a device that bills its time, and twins would "
            "be trained there; take a run that was trained on exact"
        )


def announce(backend: Backend, console: Console) -> None:
    """Print what the user must know of a backend, framed."""
    if backend.notice is not None:
        title = "WARNING: another backend" if backend.fell_back_from else f"{backend.name}: please note"
        console.print(Panel(backend.notice, title=title, border_style="bold red"))


def unfinished(run: RunFolder, kind: str) -> Activity | None:
    """What was begun on a device and not ended; read without keeping others from writing."""
    if not run.journal.is_file():
        return None
    with Journal(run.journal, write=False) as journal:
        return journal.unfinished(kind)


def same(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a journal's arguments are those asked for now; where a backend's entry stands does not matter."""
    return _plain(kept) == _plain(asked)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    found = json.loads(json.dumps(arguments, default=str))
    return {key: value for key, value in found.items() if value not in (None, []) and key not in _NOT_ASKED}


def check_resumed(run: RunFolder, kind: str, asked: dict[str, Any]) -> None:
    """Refuse flags that are not those of what was stopped: a run's journal never decides what is paid.

    Raises:
        UserError: nothing was stopped, or its flags were others.
    """
    activity = unfinished(run, kind)
    if activity is None:
        raise UserError(f"--resume: no {_NAMES[kind]} of {run.path} on a device was stopped half-way")
    if not same(activity.arguments, asked):
        raise UserError(
            f"--resume goes on with what its flags say, as it is billed on {activity.device}; the {_NAMES[kind]} that "
            f"was stopped was asked for by: {command(kind, run.path, activity.arguments)}"
        )


def _terms(backend: Any) -> dict[str, Any]:
    """What of a device's entry decides the bill."""
    return {"shots": backend.shots, "mode": backend.entry.mode, "instance": backend.entry.instance}


def command(kind: str, run: Any, arguments: dict[str, Any]) -> str:
    """What goes on with an unfinished activity, as it is typed; values are quoted for a shell."""
    if kind == "train":
        words = ["train", "--resume", str(run), "--backend", str(arguments.get("backend"))]
    else:
        words = [kind, str(run), "--resume"]
        for key, value in arguments.items():
            if key == "terms":
                continue
            named = flag({"images": "image", "texts": "text"}.get(key, key))
            if value is False:
                words.append(f"--no-{named[2:]}")
            for one in value if isinstance(value, list) else [value]:
                words += [] if one is None or one is False else [named] if one is True else [named, str(one)]
    typed = " ".join(["qrkt-hw", *(shlex.quote(word) for word in words)])
    return "".join(c if c.isprintable() else "?" for c in typed)  # a journal may hold anything


def limit(backend: Backend, max_seconds: float | None, max_cost: float | None) -> Budget | None:
    """The budget of a training: the flags', else the backend's own; None without a limit.

    Raises:
        UserError: a limit for a backend that bills nothing.
    """
    flags = max_seconds is not None or max_cost is not None
    if flags and not keeps_journal(backend):
        name = "--max-qpu-seconds" if max_seconds is not None else "--max-cost"
        raise UserError(f"{name} applies only to billed devices; backend {backend.name!r} is a simulator")
    allowed = getattr(backend, "max_seconds", None)
    if not flags and allowed is None:
        return None
    return Budget.of(backend.name, allowed, max_seconds, max_cost)


@contextmanager
def held(
    run: RunFolder,
    backend: Backend,
    kind: str,
    arguments: dict[str, Any],
    *,
    resume: bool = False,
    restart: bool = False,
    resubmit: bool = False,
    replan: bool = False,
    budget: Any = None,
    progress: Any = None,
) -> Iterator[Backend]:
    """The backend with what a run of many rounds needs; on a device with the run's journal.

    Args:
        run: the run; its ``journal.sqlite`` is used.
        backend: where the circuits run.
        kind: ``infer``, ``train`` or ``generate``.
        arguments: kept, so that a resume is known to be of the same.
        resume: go on with the unfinished activity of that kind; one is begun where there is none.
        restart: leave an unfinished activity as it is and begin another.
        resubmit: send again what is held.
        replan: let go of the pinned plan.
        budget: limits of QPU time.
        progress: is told what is being waited for.

    Raises:
        UserError: another process is at it, an unfinished activity is in the way, or flags of devices for a simulator.
    """
    if not keeps_journal(backend):
        if resubmit or replan:
            given = "resubmit" if resubmit else "replan"
            raise UserError(f"--{given}: backend {backend.name!r} is a simulator, which sends no jobs; leave it out")
        with backend.open(budget=budget, progress=progress):
            yield backend
        return
    with Journal(run.journal) as journal:
        activity = journal.unfinished(kind)
        if activity is not None and not resume:
            sent = journal.submissions(activity, ["submitting", "submitted", "done", "held"])
            if sent and not restart:
                raise UserError(
                    f"run: on {activity.device} an unfinished {_NAMES[kind]} of {run.path} has {len(sent)} jobs; "
                    "the same command with --resume goes on with it without paying again, --restart begins anew"
                )
            journal.finish(activity)
            activity = None
        terms, place = _terms(backend), backend.place  # type: ignore[attr-defined]
        if activity is None:
            activity = journal.start(kind, place.name, {**arguments, "terms": terms})
        elif activity.arguments.get("terms", terms) != terms:
            raise UserError(
                f"--resume: {backend.name!r} would run with {terms}, and was begun with {activity.arguments['terms']}; "
                "name the same --backends-file, or begin anew with --restart"
            )
        extra = {"activity": activity, "resubmit": resubmit, "replan": replan}
        try:
            with backend.open(journal=journal, budget=budget, progress=progress, **extra):
                yield backend
        except (KeyboardInterrupt, UserError) as stop:
            console = getattr(progress, "console", None)
            told = kind == "train" and isinstance(stop, KeyboardInterrupt)  # the trainer says so itself
            sent = journal.submissions(activity, ["submitting", "submitted", "done", "held"])
            if console is not None and sent and not told:
                how = command(kind, run.path, arguments)
                console.print(f"go on with: {how}", highlight=False, markup=False, soft_wrap=True)
            raise
        journal.finish(activity)


_NAMES = {"infer": "inference", "train": "training", "generate": "image generation"}
_NOT_ASKED = ("backends_file", "terms")  # where a backend's entry stands; what it said
