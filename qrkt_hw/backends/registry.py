"""Backends by name, and the one door to them: journal, budget, progress, and what the user must know."""

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
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.entries import (
    CWD,
    RENAMED,
    SAMPLER_KEYS,
    SERVICE_KEYS,
    SHOTS,
    AerEntry,
    BilledEntry,
    Entry,
    ExactEntry,
    FakeEntry,
    IBMEntry,
    QRMIEntry,
    config_file,
    layers,
    parse_entry,
)
from qrkt_hw.errors import UserError, flag, missing, unknown

# options of devices
COPY_KEYS = ("pack", "spacing", "min_fidelity", "mitigation")  # and those that a fake backend has too
DEVICE_KEYS = (*COPY_KEYS, *RENAMED, "mode", "instance", "max_time", *SAMPLER_KEYS)
EVERY = 20.0  # seconds between two lines on what is waited for
SENT = ("submitting", "submitted", "done", "held")
NAMES = {"infer": "inference", "train": "training", "generate": "image generation"}
NOT_ASKED = ("backends_file", "terms")  # where a backend's entry stands; what it said


class BackendWarning(UserWarning):
    """The backend that was asked for cannot be used; its fallback takes its place."""


def get(name: str) -> Backend:
    """The backend of that name as the shipped entries or those of the user's config folder say; one object for a name.

    Raises UserError: no such backend, or one that cannot be used here.
    """
    return _shared(name, config_file())


@lru_cache(maxsize=16)
def _shared(name: str, config: Path) -> Backend:
    return resolve(name)


def resolve(
    name: str,  # in ``backends.yaml``, or any ``fake_NAME`` of the IBM runtime
    *,
    shots: int | None = None,  # instead of the entry's; 0 for exact values
    gradient: Gradient | None = None,  # instead of the entry's
    strict: bool = False,  # refuse where the fallback would have to serve
    file: Path | str | None = None,  # another ``backends.yaml`` over all others
    seed: int | None = None,  # of the samples where the entry has none
    device: dict[str, Any] | None = None,  # keys of the entry of a device, of IBM or a fake backend, instead of its own
) -> Backend:
    """A new backend by its entry.

    Raises UserError: no such backend, a broken file, a backend that cannot be used here, or mitigation without shots.
    """
    found = layers(file)
    entry = _with(name, _entry(name, found), device or {})
    asked, problem = name, unavailable(entry)
    first = problem
    while problem is not None:
        following = getattr(entry, "fallback", None)
        if strict or following is None:
            why = " (--strict-backend: no fallback)" if strict and following is not None else ""
            raise UserError(f"--backend: {name} cannot be used here: {problem}{why}")
        name, entry = following, _entry(following, found)
        problem = unavailable(entry)
    backend = _made(name, entry, shots, seed)
    if (device or {}).get("mitigation", "none") != "none" and not backend.shots:
        raise UserError(f"--mitigation corrects what is counted, and {name!r} counts nothing; give --shots")
    backend.gradient, backend.perturbation = gradient or entry.gradient, entry.perturbation
    backend.max_seconds = getattr(entry, "max_seconds", None)
    backend.mitigation_set = "mitigation" in entry.model_fields_set
    backend.working_entry = any(key in found and found[key][1] == str(CWD) for key in (asked, name))
    if name != asked:
        why = f"{asked} cannot be used here: {first}."
        backend.fell_back_from = asked
        backend.notice = f"{why} Running on {name} instead; qrkt-hw doctor says what fixes it."
        warnings.warn(backend.notice, BackendWarning, stacklevel=2)
    return backend


def from_options(options: Any, seed: int | None = None) -> Backend:
    device = {key: getattr(options, key) for key in DEVICE_KEYS if getattr(options, key, None) is not None}
    return resolve(options.name, shots=options.shots, gradient=options.gradient, strict=options.strict_backend,
                   file=options.backends_file, seed=seed, device=device)  # fmt: skip


def bills(options: Any) -> bool:
    """Whether the ``backend`` section of a configuration names a device that bills its time; asks no network."""
    return isinstance(_entry(options.name, layers(options.backends_file)), BilledEntry)


def _made(name: str, entry: Entry, shots: int | None, seed: int | None) -> Backend:
    if isinstance(entry, ExactEntry):
        from qrkt_hw.backends.exact import ExactBackend

        if shots:
            raise UserError(f"--shots: backend {name!r} gives exact values; aer_cpu and the fake devices sample")
        return ExactBackend(name, entry.device)
    if isinstance(entry, IBMEntry):
        from qrkt_hw.backends.ibm.backend import IBMBackend

        return IBMBackend(name, entry, shots)
    if isinstance(entry, QRMIEntry):
        from qrkt_hw.backends.qrmi import QRMIBackend

        return QRMIBackend(name, entry, shots)
    count = entry.shots if shots is None else (shots or None)
    seed = entry.seed if entry.seed is not None else seed
    common: dict[str, Any] = {"shots": count, "seed": seed, "optimization_level": entry.optimization_level}
    from qrkt_hw.backends.aer import AerBackend
    from qrkt_hw.backends.fake import FakeBackend

    if isinstance(entry, FakeEntry):
        keys = (*COPY_KEYS, *SERVICE_KEYS, "method", "noise", "coherent", "idle")
        common |= {key: getattr(entry, key) for key in keys}
        return FakeBackend(name, entry.name, **common)
    if entry.noise != "none":
        return FakeBackend(name, entry.noise, method="density_matrix", pack=False, **common)
    return AerBackend(name, device=entry.device, method=entry.method, **common)


def _with(name: str, entry: Entry, keys: dict[str, Any]) -> Entry:
    for key in keys:
        shared, sampler = RENAMED.get(key, key) in (*COPY_KEYS, *SERVICE_KEYS), key in SAMPLER_KEYS
        if not isinstance(entry, (BilledEntry, FakeEntry) if shared else BilledEntry if sampler else IBMEntry):
            kind = "devices" if shared else "devices of IBM Quantum"
            found = {FakeEntry: "a fake backend", QRMIEntry: "a QPU of the cluster"}.get(type(entry), "a simulator")
            raise UserError(f"{flag(key)} applies only to {kind}; backend {name!r} is {found}")
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
            return str(missing(error) or f"qiskit-aer cannot be imported ({error})")
        if entry.device == "gpu" and "GPU" not in AerSimulator().available_devices():
            return "Aer sees no GPU (it takes qiskit-aer-gpu, its CUDA libraries and an NVIDIA GPU)"
        if entry.device == "gpu" and entry.noise != "none":
            return "noise is simulated on the CPU only"
    if isinstance(entry, IBMEntry):
        from qrkt_hw.backends.ibm import account

        return account.unavailable(entry.name)
    if isinstance(entry, QRMIEntry):
        from qrkt_hw.backends import qrmi

        return qrmi.unavailable(entry.name)
    return None


def _retired(entry: Entry) -> str | None:
    """A sentence on a retired device of IBM, which some accounts may still list; None for other entries."""
    if not isinstance(entry, IBMEntry):
        return None
    from qrkt_hw.backends.ibm.account import retired

    return retired(entry.name)


def check_name(name: str, file: Path | None = None) -> None:
    """Check a name, or a list of names, before a run is opened.

    Raises UserError: a device is retired and no account lists it.
    """
    for one in filter(None, map(str.strip, name.split(","))):
        if _retired(_entry(one, layers(file))) is not None:
            resolve(one, file=file)


class Description(NamedTuple):
    """How a backend is shown in a listing."""

    name: str
    kind: str
    qubits: int | None  # of the largest circuit it takes; None: memory decides
    shots: int | None
    available: bool  # here
    remark: str  # why not, or what else is to be said


def listing(file: Path | None = None) -> list[Description]:
    found = []
    for name, (entry, where) in layers(file).items():
        problem, kind, qubits = unavailable(entry), "IBM Quantum", None
        if isinstance(entry, QRMIEntry):
            kind = "QPU of the cluster (QRMI)"
        if isinstance(entry, ExactEntry):
            kind = f"exact simulator ({entry.device})"
        elif isinstance(entry, AerEntry):
            noisy = entry.noise != "none"
            kind = f"Aer with noise of {entry.noise}" if noisy else f"Aer ({entry.device}, {entry.method})"
        elif isinstance(entry, FakeEntry):
            from qrkt_hw.backends.device.transpile import fake_device

            kind = "fake backend"
            try:
                qubits = fake_device(entry.name).num_qubits
            except UserError as error:
                problem = str(error)
        falls = f"falls back to {entry.fallback}" if problem and getattr(entry, "fallback", None) else ""  # type: ignore
        remarks = (problem or _retired(entry), falls, "" if "shipped" in where else f"from {where}")
        remark = "; ".join(text for text in remarks if text)
        found.append(Description(name, kind, qubits, getattr(entry, "shots", None), problem is None, remark))
    return found


def _entry(name: str, known: dict[str, tuple[Entry, str]]) -> Entry:
    if name in known:
        return known[name][0]
    if "," in name:
        raise UserError(f"--backend: only an inference takes several devices; {name!r} is a list, name one of them")
    if name.startswith("fake_"):
        from qrkt_hw.backends.device.transpile import fake_names, no_fake

        if name in fake_names():
            return FakeEntry(provider="fake", name=name)
        raise UserError(f"--backend: {no_fake(name)}")
    if name.startswith("ibm_"):
        return IBMEntry(provider="ibm", name=name if name != "ibm_" else "least_busy")
    if name.startswith("qrmi_"):
        return parse_entry(name, {"provider": "qrmi", "name": name.removeprefix("qrmi_") or None}, "--backend")
    if (small := name.lower().replace("-", "_")) != name and small.startswith(("fake_", "ibm_", "qrmi_")):
        raise UserError(f"--backend: no backend {name!r}; devices are written in small letters: {small}")
    raise UserError(f"--backend: {unknown('backend', name, known, 'and every fake_NAME of the IBM runtime')}")


# the door ------------------------------------------------------------------------------------------------------------
class Waiting:
    """Tells the console of long waits, and nobody of circuit batches."""

    def __init__(self, console: Any) -> None:
        self.console, self.last = console, time.monotonic()

    def __call__(self, text: str) -> None: ...

    def update(self, text: str) -> None:
        if self.console is not None and time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            _print(self.console, f"waiting for {text}")


def progress(console: Any, text_width: int = 0, wrap: bool = False, transient: bool = False) -> Any:
    """A rich ``Progress`` that fits the terminal: description, ``text`` of each task, time and time left are always
    whole; a bar and the rate are shown where there is room beside ``text_width`` characters. ``wrap`` breaks the text
    into lines. Without a terminal it shows nothing."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    def clock(seconds: float | None) -> str:
        if seconds is None:
            return "-:--"
        minutes, rest = divmod(int(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{clock(task.elapsed)}, {clock(task.time_remaining)} left", style="cyan")

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "", style="green")

    room = (80 if console is None else console.width) - 36 - text_width
    bar = [BarColumn(bar_width=min(40, room))] if room >= 8 else []
    rate = [Rate()] if room >= 48 else []
    text = TextColumn("{task.fields[text]}", table_column=Column(ratio=1, overflow="fold") if wrap else None)
    shown = [TextColumn("[bold]{task.description}"), *bar, TextColumn("{task.percentage:>3.0f}%"), text, *rate, Times()]
    silent = console is None or not console.is_terminal or console.quiet
    return Progress(*shown, console=console, disable=silent, transient=transient, expand=wrap)


def tracked(console: Any, what: str, batches: Any) -> Iterator[Any]:
    """The batches, on a terminal with a progress bar that is gone at the end."""
    if console is None or not console.is_terminal:
        yield from batches
        return
    with progress(console, transient=True) as bar:
        yield from bar.track(batches, total=len(batches), task_id=bar.add_task(what, total=len(batches), text=""))


def make(options: Any, seed: int | None = None, console: Any = None, several: bool = False) -> Backend:
    """:func:`resolve` for options or a name; what its user must know is printed to the console, else warned of.
    ``several`` takes a list of names too."""
    with warnings.catch_warnings():
        if console is not None:
            warnings.simplefilter("ignore", BackendWarning)
        if several and "," in options.name:
            backend: Backend = _several(options, seed, console)
        else:
            backend = resolve(options, seed=seed) if isinstance(options, str) else from_options(options, seed)
    if console is not None and backend.working_entry:
        _print(console, f"backend {backend.fell_back_from or backend.name} is from backends.yaml of this folder")
    announce(backend, console)
    return backend


def _several(options: Any, seed: int | None, console: Any) -> Backend:
    """The devices of a list of names; one that cannot be used is refused by :func:`check`, unless it is a resume."""
    from qrkt_hw.backends.several import Devices

    names = [name.strip() for name in options.name.split(",")]
    wrong = next((name for name in names if not name or names.count(name) > 1), None)
    if wrong is not None:
        what = f"the list {options.name!r} " + (f"names {wrong} twice" if wrong else "has an empty name")
        raise UserError(f"--backend: {what}; name each device once, as in ibm_fez,ibm_kingston")
    known, found, absent = layers(options.backends_file), dict[str, Backend](), dict[str, UserError]()
    for name in names:
        entry = _entry(name, known)
        keys: dict[str, Any] = {"name": name}
        if isinstance(entry, FakeEntry) and options.shots is None and entry.shots is None:
            keys["shots"] = SHOTS
            if console is not None:
                _print(console, f"{name} takes {SHOTS:,} shots a circuit, a device's default; --shots takes others")
        try:
            found[name] = from_options(options.model_copy(update=keys), seed)
        except UserError as error:
            absent[name] = error
    return Devices(",".join(names), found, absent)


def announce(backend: Backend, console: Any) -> None:
    if console is not None and backend.notice is not None:
        from rich.panel import Panel

        title = "WARNING: another backend" if backend.fell_back_from else f"{backend.name}: please note"
        console.print(Panel(backend.notice, title=title, border_style="bold red"))


def check(
    backend: Backend, *, run: Any = None, kind: str = "run", arguments: Any = None, budget: Any = None, **how: bool
) -> Budget | None:
    """Refuse what :func:`open` refuses, before anything is loaded; the budget that counts."""
    _check_resumed(run, kind, arguments or {}, how)
    absent = getattr(backend, "absent", None)  # of several devices
    if absent and not how.get("resume"):
        raise next(iter(absent.values()))
    named = next((key for key in ("restart", "resubmit", "replan") if how.get(key)), None)
    if named is not None and not backend.bills:
        raise UserError(f"--{named}: backend {backend.name!r} is a simulator, which sends no jobs; leave it out")
    return Budget.of(backend, budget)


@contextmanager
def open(
    options: Any,  # where the circuits run: backend options, a name, a backend, or an object of Qiskit
    *,
    run: Any = None,  # the run folder; its ``journal.sqlite`` is used. None keeps the journal in memory
    kind: str = "run",  # ``infer``, ``train`` or ``generate``
    arguments: dict[str, Any] | None = None,  # kept in the journal, so that a resume is known to be of the same
    budget: Budget | None = None,  # limits of QPU time and money; None takes the backend's own
    progress: Any = None,  # is told what is being waited for; None tells the console of long waits
    console: Any = None,  # is told of the backend, and how to resume; None warns instead
    seed: int | None = None,  # of the samples
    resume: bool = False,  # the unfinished activity of that kind; of a training, begin one where there is none
    restart: bool = False,  # leave an unfinished activity as it is and begin another
    resubmit: bool = False,  # send again what is held
    replan: bool = False,  # let go of the pinned plan
) -> Iterator[Backend]:
    """A backend, held while circuits run on it; a billed device with the journal of the run.

    Raises UserError: another process is at it, an unfinished activity is in the way, a resume with other flags, a
    budget that is spent or does not apply, or flags of devices for a simulator.
    """
    arguments = arguments or {}
    how = {"resume": resume, "restart": restart, "resubmit": resubmit, "replan": replan}
    if isinstance(options, Backend):
        backend = options
    elif not isinstance(options, str) and not hasattr(options, "strict_backend"):
        from qrkt_hw.backends.objects import of

        backend = of(options)
    else:
        _check_resumed(run, kind, arguments, how)
        backend = make(options, seed, console)
    budget = check(backend, run=run, kind=kind, arguments=arguments, budget=budget, **how)
    held: Any = {"budget": budget, "progress": progress or Waiting(console)}
    from qrkt_hw.backends.device.journal import Journal

    with Journal(run.journal) if backend.bills and run is not None else nullcontext() as journal:
        if journal is None:
            with backend.open(**held):
                yield backend
        else:
            activity = _activity(journal, run, backend, kind, arguments, resume, restart)
            held.update(journal=journal, activity=activity, resubmit=resubmit, replan=replan)
            try:
                with backend.open(**held):
                    yield backend
            except (KeyboardInterrupt, UserError) as stop:
                told = kind == "train" and isinstance(stop, KeyboardInterrupt)  # the training says so itself
                if console is not None and journal.submissions(activity, SENT) and not told:
                    _print(console, f"resume with: {command(kind, run.path, arguments)}")
                raise
            journal.finish(activity)
    announce(backend, console)


def _activity(
    journal: Any, run: Any, backend: Any, kind: str, arguments: dict[str, Any], resume: bool, restart: bool
) -> Any:
    activity = journal.unfinished(kind)
    if activity is not None and not resume:
        sent = journal.submissions(activity, SENT)
        if sent and not restart:
            what = f"run: on {activity.device} an unfinished {NAMES[kind]} of {run.path} has {len(sent)} jobs"
            way = "the same command with --resume continues it without paying again, --restart starts anew"
            raise UserError(f"{what}; {way}")
        journal.finish(activity)
        activity = None
    # what of the device's entry decides the bill
    own = {"mitigation": backend.corrected, "batch": backend.batch}
    terms = {**backend.terms, **{key: value for key, value in own.items() if value}}
    if activity is None:
        return journal.start(kind, backend.place.name, {**arguments, "terms": terms})
    kept, absent = activity.arguments.get("terms", terms), getattr(backend, "absent", None)
    if absent and isinstance(kept, dict):  # of several devices; one that is gone has no terms any more
        kept = {key: own for key, own in kept.items() if key not in absent}
    if kept != terms:
        what = f"--resume: {backend.name!r} would run with {terms}, and was begun with {activity.arguments['terms']}"
        way = "name the same --backends-file, or begin anew with --restart"
        raise UserError(f"{what}; {way}")
    return activity


def same(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a journal's arguments are those asked for now; where a backend's entry stands does not matter."""
    both = [json.loads(json.dumps(one, default=str)).items() for one in (kept, asked)]
    first, second = (
        {RENAMED.get(k, k): v for k, v in one if v not in (None, []) and k not in NOT_ASKED} for one in both
    )
    return first == second


def _check_resumed(run: Any, kind: str, asked: dict[str, Any], how: dict[str, bool]) -> None:
    """Refuse flags that are not those of what was stopped: a run's journal never decides what is paid."""
    resume, needs = how.get("resume"), next((key for key in ("resubmit", "replan") if how.get(key)), None)
    if resume and how.get("restart"):
        raise UserError("--restart starts anew and --resume continues; leave one of them out")
    if needs is not None and not resume:
        raise UserError(f"--{needs} goes with --resume")
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
        way = f"the {NAMES[kind]} that was stopped was asked for by: {command(kind, run.path, activity.arguments)}"
        raise UserError(f"--resume takes its flags from the command line, as it is billed on {activity.device}; {way}")


def command(kind: str, run: Any, arguments: dict[str, Any]) -> str:
    """What resumes an unfinished activity, as it is typed; values are quoted for a shell."""
    if kind == "train":
        words = ["train", "--resume", str(run), "--backend", str(arguments.get("backend"))]
    else:
        words = [kind, str(run), "--resume"]
        for key, value in arguments.items():
            named = flag({"images": "image", "texts": "text"}.get(key, key))
            if value is False:
                words.append(f"--no-{named[2:]}")
            for one in () if key == "terms" else value if isinstance(value, list) else [value]:
                words += [] if one is None or one is False else [named] if one is True else [named, str(one)]
    typed = " ".join(["qrkt-hw", *(shlex.quote(word) for word in words)])
    return "".join(c if c.isprintable() else "?" for c in typed)  # a journal may hold anything


def _print(console: Any, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)  # a path may hold brackets
