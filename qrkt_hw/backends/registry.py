"""Backends by name, and the one door to them: journal, budget, progress, and what the user must know."""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from qrkt_hw.backends.base import Backend, Gradient
from qrkt_hw.backends.device.budget import Budget
from qrkt_hw.backends.entries import (
    RENAMED,
    WORKING,
    AerEntry,
    Entry,
    ExactEntry,
    FakeEntry,
    IBMEntry,
    config_file,
    layers,
)  # fmt: skip
from qrkt_hw.errors import UserError, flag

# options of devices
COPY_KEYS = ("pack", "spacing", "min_fidelity", "mitigation")  # and those that a fake backend has too
DEVICE_KEYS = (
    *COPY_KEYS, *RENAMED,
    "mode", "instance", "max_time", "dynamical_decoupling", "twirl_gates", "twirl_measure", "rep_delay",
)  # fmt: skip
EVERY = 20.0  # seconds between two lines on what is waited for
SENT = ("submitting", "submitted", "done", "held")
NAMES = {"infer": "inference", "train": "training", "generate": "image generation"}
NOT_ASKED = ("backends_file", "terms")  # where a backend's entry stands; what it said


class BackendWarning(UserWarning):
    """The backend that was asked for cannot be used; its fallback takes its place."""


def get(name: str) -> Backend:
    """The backend of that name as its entry says; the same object for the same name.

    The shipped entries count, and those of the user's config folder. :func:`resolve` takes a file by its name.

    Raises:
        UserError: no such backend, or one that cannot be used here.
    """
    return _shared(name, config_file())


@lru_cache(maxsize=16)
def _shared(name: str, config: Path) -> Backend:
    return resolve(name)


def resolve(
    name: str,
    *,
    shots: int | None = None,
    gradient: Gradient | None = None,
    strict: bool = False,
    file: Path | None = None,
    seed: int | None = None,
    device: dict[str, Any] | None = None,
) -> Backend:
    """A new backend by its entry.

    Args:
        name: in ``backends.yaml``, or any ``fake_NAME`` of the IBM runtime.
        shots: instead of the entry's; 0 for exact values.
        gradient: instead of the entry's.
        strict: refuse where the fallback would have to serve.
        file: another ``backends.yaml`` over all others.
        seed: of the samples where the entry has none.
        device: keys of the entry of a device, of IBM or a snapshot, instead of its own.

    Raises:
        UserError: no such backend, a broken file, or a backend that cannot be used here.
    """
    found = layers(file)
    known = {key: entry for key, (entry, _) in found.items()}
    entry = _entry(name, known)
    entry = _with(name, entry, device or {})
    asked, problem = name, unavailable(entry)
    first = problem
    while problem is not None:
        following = getattr(entry, "fallback", None)
        if strict or following is None:
            why = " (--strict-backend: no fallback)" if strict and following is not None else ""
            raise UserError(f"--backend: {name} cannot be used here: {problem}{why}")
        name, entry = following, _entry(following, known)
        problem = unavailable(entry)
    backend = _made(name, entry, shots, gradient, seed)
    backend.max_seconds = getattr(entry, "max_seconds", None)
    backend.working_entry = any(found[key][1] == str(WORKING) for key in (asked, name) if key in found)
    if name != asked:
        backend.fell_back_from = asked
        backend.notice = (
            f"{asked} cannot be used here: {first}. Running on {name} instead; qrkt-hw doctor says what mends it."
        )
        warnings.warn(backend.notice, BackendWarning, stacklevel=2)
    return backend


def from_options(options: Any, seed: int | None = None) -> Backend:
    """The backend of the ``backend`` section of a configuration.

    Raises:
        UserError: see :func:`resolve`.
    """
    return resolve(
        options.name,
        shots=options.shots,
        gradient=options.gradient,
        strict=options.strict_backend,
        file=options.backends_file,
        seed=seed,
        device={key: getattr(options, key) for key in DEVICE_KEYS if getattr(options, key, None) is not None},
    )


def bills(options: Any) -> bool:
    """Whether the ``backend`` section of a configuration names a device that bills its time; asks no network."""
    entries = {key: entry for key, (entry, _) in layers(options.backends_file).items()}
    return isinstance(_entry(options.name, entries), IBMEntry)


def _made(name: str, entry: Entry, shots: int | None, gradient: Gradient | None, seed: int | None) -> Backend:
    """The backend of an entry that can be used here."""
    how: Gradient = gradient or entry.gradient
    if isinstance(entry, ExactEntry):
        from qrkt_hw.backends.exact import ExactBackend

        if shots:
            raise UserError(f"--shots: backend {name!r} gives exact values; aer_cpu and the fake devices sample")
        backend: Backend = ExactBackend(name, entry.device, how)
        backend.perturbation = entry.perturbation
        return backend
    if isinstance(entry, IBMEntry):
        from qrkt_hw.backends.ibm.backend import make as make_ibm

        return make_ibm(name, entry, shots, gradient)
    count = entry.shots if shots is None else (shots or None)
    common = {"shots": count, "seed": entry.seed if entry.seed is not None else seed, "gradient": how,
              "optimization_level": entry.optimization_level, "perturbation": entry.perturbation}  # fmt: skip
    if isinstance(entry, FakeEntry) or entry.noise != "none":
        from qrkt_hw.backends.fake import FakeBackend

        if isinstance(entry, FakeEntry):
            copies = {key: getattr(entry, key) for key in COPY_KEYS}
            return FakeBackend(name, entry.name, method=entry.method, noise=entry.noise, **copies, **common)  # type: ignore[arg-type]
        return FakeBackend(name, entry.noise, method="density_matrix", pack=False, **common)  # type: ignore[arg-type]
    from qrkt_hw.backends.aer import AerBackend

    return AerBackend(name, device=entry.device, method=entry.method, **common)  # type: ignore[arg-type]


def _with(name: str, entry: Entry, keys: dict[str, Any]) -> Entry:
    """The entry with keys of a device in place of its own."""
    for key in keys:
        shared = RENAMED.get(key, key) in COPY_KEYS
        if not isinstance(entry, (IBMEntry, FakeEntry) if shared else IBMEntry):
            kind = "devices" if shared else "devices of IBM Quantum"
            found = "a simulator" if not isinstance(entry, FakeEntry) else "a fake backend"
            raise UserError(f"--{key.replace('_', '-')} applies only to {kind}; backend {name!r} is {found}")
    return entry.model_copy(update={RENAMED.get(key, key): value for key, value in keys.items()})


def unavailable(entry: Entry) -> str | None:
    """Why an entry cannot be used here; None where it can. Asks no network."""
    if isinstance(entry, ExactEntry) and entry.device == "cuda":
        import torch

        return None if torch.cuda.is_available() else "torch sees no CUDA GPU"
    if isinstance(entry, AerEntry):
        try:
            from qiskit_aer import AerSimulator
        except ImportError as error:
            return f"qiskit-aer cannot be imported ({error})"
        if entry.device == "gpu" and "GPU" not in AerSimulator().available_devices():
            return "Aer sees no GPU (it takes qiskit-aer-gpu, its CUDA libraries and an NVIDIA GPU)"
        if entry.device == "gpu" and entry.noise != "none":
            return "noise is simulated on the CPU only"
    if isinstance(entry, IBMEntry):
        from qrkt_hw.backends.ibm.account import unavailable as missing

        return missing(entry.name)
    return None


class Description(NamedTuple):
    """How a backend is shown in a listing: the largest circuit it takes (None: memory decides), whether it can be used
    here, and why not or what else is to be said."""

    name: str
    kind: str
    qubits: int | None
    shots: int | None
    available: bool
    remark: str


def listing(file: Path | None = None) -> list[Description]:
    """Every entry, as a table shows it."""
    found = []
    for name, (entry, where) in layers(file).items():
        problem, qubits = unavailable(entry), None
        if isinstance(entry, FakeEntry):
            from qrkt_hw.backends.device.transpile import fake_device

            try:
                qubits = fake_device(entry.name).num_qubits
            except UserError as error:
                problem = str(error)
        remarks = [problem] if problem else []
        if problem and getattr(entry, "fallback", None):
            remarks.append(f"falls back to {entry.fallback}")  # type: ignore[union-attr]
        if "shipped" not in where:
            remarks.append(f"from {where}")
        shots = getattr(entry, "shots", None)
        found.append(Description(name, _kind(entry), qubits, shots, problem is None, "; ".join(remarks)))
    return found


def _kind(entry: Entry) -> str:
    if isinstance(entry, AerEntry):
        noisy = f"Aer with noise of {entry.noise}"
        return f"Aer ({entry.device}, {entry.method})" if entry.noise == "none" else noisy
    if isinstance(entry, ExactEntry):
        return f"exact simulator ({entry.device})"
    return "fake backend" if isinstance(entry, FakeEntry) else "IBM Quantum"


def _entry(name: str, known: dict[str, Entry]) -> Entry:
    if name in known:
        return known[name]
    if name.startswith("fake_"):
        from qrkt_hw.backends.device.transpile import fake_names

        if name in fake_names():
            return FakeEntry(provider="fake", name=name)
        raise UserError(f"--backend: no fake backend {name!r}; there are {', '.join(fake_names())}")
    if name.startswith("ibm_"):
        return IBMEntry(provider="ibm", name=name) if name != "ibm_" else IBMEntry(provider="ibm", name="least_busy")
    raise UserError(
        f"--backend: no backend {name!r}; there are {', '.join(known)}, and every fake_NAME of the IBM runtime"
    )


# the door ------------------------------------------------------------------------------------------------------------
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


def check(
    backend: Backend,
    *,
    run: Any = None,
    kind: str = "run",
    arguments: dict[str, Any] | None = None,
    budget: Budget | None = None,
    **how: bool,
) -> Budget | None:
    """Refuse what :func:`open` refuses, before anything is loaded; the budget that counts."""
    _check_resumed(run, kind, arguments or {}, **how)
    named = next((key for key in ("restart", "resubmit", "replan") if how.get(key)), None)
    if named is not None and not backend.bills:
        raise UserError(f"--{named}: backend {backend.name!r} is a simulator, which sends no jobs; leave it out")
    return Budget.of(backend, budget)


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
    backend = options if isinstance(options, Backend) else None
    how = {"resume": resume, "restart": restart, "resubmit": resubmit, "replan": replan}
    if backend is None:
        _check_resumed(run, kind, arguments or {}, **how)
        backend = make(options, seed, console)
    budget = check(backend, run=run, kind=kind, arguments=arguments, budget=budget, **how)
    progress = progress or Waiting(console)
    from qrkt_hw.backends.device.journal import Journal

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
    journal: Any, run: Any, backend: Any, kind: str, arguments: dict[str, Any], resume: bool, restart: bool
) -> Any:
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


def _check_resumed(
    run: Any,
    kind: str,
    asked: dict[str, Any],
    resume: bool = False,
    restart: bool = False,
    resubmit: bool = False,
    replan: bool = False,
) -> None:
    """Refuse flags that are not those of what was stopped: a run's journal never decides what is paid."""
    if resume and restart:
        raise UserError("--restart begins anew and --resume goes on; leave one of them out")
    if (resubmit or replan) and not resume:
        raise UserError(f"--{'resubmit' if resubmit else 'replan'} goes with --resume")
    if not resume or kind == "train":
        return
    activity = None
    if run is not None and run.journal.is_file():
        from qrkt_hw.backends.device.journal import Journal

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
