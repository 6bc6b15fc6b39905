"""The one door to a backend: its journal, its budget, its progress, and what the user must know of it."""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from qrkt_hw.backends.base import Backend
from qrkt_hw.backends.device.budget import Budget
from qrkt_hw.backends.device.journal import Activity, Journal
from qrkt_hw.backends.registry import BackendWarning, from_options, resolve
from qrkt_hw.errors import UserError
from qrkt_hw.options.validation import flag

EVERY = 20.0  # seconds between two lines on what is waited for
SENT = ("submitting", "submitted", "done", "held")
NAMES = {"infer": "inference", "train": "training", "generate": "image generation"}
NOT_ASKED = ("backends_file", "terms")  # where a backend's entry stands; what it said


class Waiting:
    """Tells the console of long waits, and nobody of circuit batches."""

    def __init__(self, console: Any) -> None:
        self.console, self.last = console, time.monotonic()

    def __call__(self, text: str) -> None:
        """A circuit batch begins."""

    def update(self, text: str) -> None:
        """What is waited for now."""
        if self.console is not None and time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            _print(self.console, f"waiting for {text}")


def make(options: Any, seed: int | None = None, console: Any = None) -> Backend:
    """The backend of options or of a name; what its user must know is printed to the console, else warned of.

    Raises:
        UserError: see :func:`qrkt_hw.backends.resolve`.
    """
    with warnings.catch_warnings():
        if console is not None:
            warnings.simplefilter("ignore", BackendWarning)
        backend = resolve(options, seed=seed) if isinstance(options, str) else from_options(options, seed)
    if console is not None and backend.working_entry:
        _print(console, f"backend {backend.fell_back_from or backend.name} is from backends.yaml of this folder")
    announce(backend, console)
    return backend


def announce(backend: Backend, console: Any) -> None:
    """Print what the user must know of a backend, framed."""
    if console is not None and backend.notice is not None:
        from rich.panel import Panel

        title = "WARNING: another backend" if backend.fell_back_from else f"{backend.name}: please note"
        console.print(Panel(backend.notice, title=title, border_style="bold red"))


@contextmanager
def open(
    options: Any,
    *,
    run: Any = None,
    kind: str = "run",
    arguments: dict[str, Any] | None = None,
    budget: Budget | None = None,
    progress: Any = None,
    console: Any = None,
    seed: int | None = None,
    resume: bool = False,
    restart: bool = False,
    resubmit: bool = False,
    replan: bool = False,
) -> Iterator[Backend]:
    """A backend, held while circuits run on it; a billed device with the journal of the run.

    Args:
        options: where the circuits run: backend options, a name, or a backend that is made already.
        run: the run folder; its ``journal.sqlite`` is used. None keeps the journal in memory.
        kind: ``infer``, ``train`` or ``generate``.
        arguments: kept in the journal, so that a resume is known to be of the same.
        budget: limits of QPU time and money; None takes the backend's own.
        progress: is told what is being waited for; None tells the console of long waits.
        console: is told of the backend, and how to resume; None warns instead.
        seed: of the samples.
        resume: go on with the unfinished activity of that kind; of a training, begin one where there is none.
        restart: leave an unfinished activity as it is and begin another.
        resubmit: send again what is held.
        replan: let go of the pinned plan.

    Raises:
        UserError: another process is at it, an unfinished activity is in the way, a resume with other flags, a budget
            that is spent or does not apply, or flags of devices for a simulator.
    """
    given = {"restart": restart, "resubmit": resubmit, "replan": replan}
    named = next((key for key, value in given.items() if value), None)
    if resume and restart:
        raise UserError("--restart begins anew and --resume goes on; leave one of them out")
    if (resubmit or replan) and not resume:
        raise UserError(f"--{named} goes with --resume")
    if resume and kind != "train":
        _check_resumed(run, kind, arguments or {})
    backend = options if isinstance(options, Backend) else make(options, seed, console)
    if named is not None and not backend.bills:
        raise UserError(f"--{named}: backend {backend.name!r} is a simulator, which sends no jobs; leave it out")
    budget = backend.budget(budget)
    progress = progress or Waiting(console)
    with Journal(run.journal) if backend.bills and run is not None else nullcontext() as journal:
        if journal is None:
            with backend.open(budget=budget, progress=progress):
                yield backend
        else:
            activity = _activity(journal, run, backend, kind, arguments or {}, resume, restart)
            extra: Any = {"activity": activity, "resubmit": resubmit, "replan": replan}
            try:
                with backend.open(journal=journal, budget=budget, progress=progress, **extra):
                    yield backend
            except (KeyboardInterrupt, UserError) as stop:
                told = kind == "train" and isinstance(stop, KeyboardInterrupt)  # the training says so itself
                if console is not None and journal.submissions(activity, SENT) and not told:
                    _print(console, f"resume with: {command(kind, run.path, arguments or {})}")
                raise
            journal.finish(activity)
    announce(backend, console)


def _activity(
    journal: Journal, run: Any, backend: Any, kind: str, arguments: dict[str, Any], resume: bool, restart: bool
) -> Activity:
    """The unfinished activity that is resumed, or a new one."""
    activity = journal.unfinished(kind)
    if activity is not None and not resume:
        sent = journal.submissions(activity, SENT)
        if sent and not restart:
            raise UserError(
                f"run: on {activity.device} an unfinished {NAMES[kind]} of {run.path} has {len(sent)} jobs; "
                "the same command with --resume goes on with it without paying again, --restart begins anew"
            )
        journal.finish(activity)
        activity = None
    # what of the device's entry decides the bill
    terms = {"shots": backend.shots, "mode": backend.entry.mode, "instance": backend.entry.instance}
    if activity is None:
        return journal.start(kind, backend.place.name, {**arguments, "terms": terms})
    if activity.arguments.get("terms", terms) != terms:
        raise UserError(
            f"--resume: {backend.name!r} would run with {terms}, and was begun with {activity.arguments['terms']}; "
            "name the same --backends-file, or begin anew with --restart"
        )
    return activity


def same(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a journal's arguments are those asked for now; where a backend's entry stands does not matter."""
    return _plain(kept) == _plain(asked)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    found = json.loads(json.dumps(arguments, default=str))
    return {key: value for key, value in found.items() if value not in (None, []) and key not in NOT_ASKED}


def _check_resumed(run: Any, kind: str, asked: dict[str, Any]) -> None:
    """Refuse flags that are not those of what was stopped: a run's journal never decides what is paid."""
    activity = None
    if run is not None and run.journal.is_file():
        with Journal(run.journal, write=False) as journal:
            activity = journal.unfinished(kind)
    if activity is None:
        raise UserError(f"--resume: no {NAMES[kind]} of {run.path} on a device was stopped half-way")
    if not same(activity.arguments, asked):
        raise UserError(
            f"--resume goes on with what its flags say, as it is billed on {activity.device}; the {NAMES[kind]} that "
            f"was stopped was asked for by: {command(kind, run.path, activity.arguments)}"
        )


def command(kind: str, run: Any, arguments: dict[str, Any]) -> str:
    """What resumes an unfinished activity, as it is typed; values are quoted for a shell."""
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


def _print(console: Any, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)  # a path may hold brackets
