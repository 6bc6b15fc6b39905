"""One inference on several devices at the same time: its samples are divided into portions, and a device runs each.

Each device has its own layout, plan and jobs. A portion goes through the model on one device, circuit batch after
circuit batch. Every answer is kept in the journal: where a device stops, another resumes its remaining portions from
the last answer, so that nothing is paid for twice. The journal says which device has which portion before anything is
sent; a resumed inference has the same portions.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Backend, Call
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import PART, Activity, Journal
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.errors import UserError

T = TypeVar("T")
OPEN = ("submitting", "submitted", "held")  # states of jobs that may still be billed
MAX_BATCHES = 1_000_000  # circuit batches of a portion
PORTION = 256  # samples of a portion where no plan was made
WAIT = 10.0  # seconds that devices get to stop after Ctrl-C


class Stopped(UserError):
    """The inference is over; a device sends no more circuits."""


class DeviceBudget(Budget):
    """The limit of one device within the limit of all together, which includes estimates of unfinished jobs."""

    def __init__(
        self, own: Budget | None, whole: Budget | None, budgets: Mapping[str, DeviceBudget], lock: Any
    ) -> None:
        limit, where = (None, "") if own is None else (own.qpu_seconds, own.where)
        super().__init__(limit, where=where)
        self.whole, self.budgets, self.lock = whole, budgets, lock  # ``budgets`` has those of all devices
        self.reserved = 0.0  # estimated seconds of unfinished jobs
        self.exhausted = False  # the limit of all together refused a job
        self.flag = "--max-qpu-seconds"  # not None: this budget counts, also where the device has no limit of its own

    def _used(self) -> float:
        return sum(one.billed + one.reserved for one in self.budgets.values())

    @property
    def left(self) -> float | None:
        own, whole = super().left, None if self.whole is None else self.whole.limit
        if whole is None:
            return own
        with self.lock:
            rest = max(0.0, whole - self._used() + self.reserved)
        return rest if own is None else min(own, rest)

    def admit(self, seconds: float) -> None:
        """See :meth:`Budget.admit`. Raises UserError: it would exceed the device's limit or that of all together."""
        super().admit(seconds)
        with self.lock:
            if self.whole is not None and self.whole.limit is not None and self._used() + seconds > self.whole.limit:
                self.exhausted = True
                what = f"{self.whole.named}: {self._used():.1f} s are billed or estimated for jobs on all devices"
                raise UserError(f"{what} and the next job needs {seconds:.1f} s; what came back is kept")
            self.reserved += seconds

    def charge(self, seconds: float) -> None:
        with self.lock:
            super().charge(seconds)
            self.reserved = max(0.0, self.reserved - seconds)


@dataclass
class Portion:
    """Samples ``start`` to ``stop`` (exclusive) of an inference, and the device that evaluates them."""

    start: int
    stop: int
    device: str
    before: str | None = None  # the device that had them and was left out

    @property
    def samples(self) -> int:
        return self.stop - self.start


class Devices(Backend):
    """Devices that evaluate one inference together, each a part of its samples.

    ``devices`` have the names that the user gave; ``absent`` are those that cannot be used, and why. ``recorded`` is
    the kept plan of an inference that is evaluated again. Raises UserError: these devices do not go together.
    """

    kind = "several devices"
    corrected: str | None = None  # each device mitigates as its entry says
    differentiable = False

    def __init__(
        self,
        name: str,
        devices: Mapping[str, Backend],
        absent: Mapping[str, UserError],
        recorded: bytes | None = None,
    ) -> None:
        super().__init__(name)
        self.absent, self.shares, self.portion, self.recorded = dict(absent), dict[str, int](), PORTION, recorded
        if not devices:
            raise next(iter(absent.values()))
        self.devices: dict[str, DeviceBackend] = {}
        for key, one in devices.items():
            if not isinstance(one, DeviceBackend) or not one.shots:
                raise UserError(f"--backend: a list names devices, and {key!r} does not sample; leave it out")
            self.devices[key] = one
        first = next(iter(self.devices.values()))
        for key, one in self.devices.items():
            if one.bills != first.bills:
                raise UserError(f"--backend: a list has devices or fake devices, not both; {key!r} is another kind")
            if one.shots != first.shots:
                shots = f"{first.name!r} takes {first.shots:,} shots and {key!r} {one.shots:,}"
                raise UserError(f"--shots: {shots}; give one number for all")
        (place, count), *_ = Counter(map(self.place_of, self.devices)).most_common(1)
        if count > 1:
            raise UserError(f"--backend: the list names {place} twice; name each device once")
        self.shots, self.gradient, self.target, self.bills = first.shots, first.gradient, first.target, first.bills
        self.working_entry = any(one.working_entry for one in self.devices.values())
        self.left_out: dict[str, str] = {}  # device -> why
        self.portions: list[Portion] = []
        self.journal: Journal | None = None
        self.lock, self._stopping = threading.Condition(threading.RLock()), False
        self._counted: dict[int, str] = {}  # device by position of the circuit batch in the journal

    @property
    def place(self) -> Devices:  # where an activity runs; it has a ``name``
        return self

    def place_of(self, key: str) -> str:
        one: Any = self.devices[key]
        return str(one.place.name if one.bills else one.device.name)

    @property
    def terms(self) -> dict[str, Any]:
        return {key: one.terms for key, one in self.devices.items() if hasattr(one, "terms")}

    @property
    def notice(self) -> str | None:  # type: ignore[override]
        found = [one.notice for one in self.devices.values() if one.notice]
        for key, why in self.left_out.items():
            others = dict.fromkeys(one.device for one in self.portions if one.before == key)
            ran = f"its samples ran on {' and '.join(others)}" if others else "it had no samples left"
            found.append(f"{key} was left out ({why}); {ran}")
        return "; ".join(found) or None

    def circuits_for(self, template: CircuitTemplate) -> int:
        return next(iter(self.devices.values())).circuits_for(template)

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """See :meth:`Backend.run`. Raises UserError: only whole samples are divided, by :meth:`evaluate`."""
        raise UserError(f"--backend: only an inference takes several devices; name one of {', '.join(self.devices)}")

    def about(self) -> dict[str, Any]:
        each = {key: one.about() for key, one in self.devices.items()}
        found = {**super().about(), "devices": each, "device": ", ".join(map(self.place_of, each))}
        dates = [f"{key} {one.get('calibrated') or 'unknown'}" for key, one in each.items()]
        found["calibrated"] = "; ".join(dates)
        if not self.bills or self.journal is None:
            return {**found, "estimated_seconds": round(sum(one.estimated for one in self.devices.values()), 3)}
        found["activity"] = self.activity.name
        billed, estimated, jobs = self.journal.totals(self.activity)
        for key in ("plan", "mode", "billing"):
            values = dict.fromkeys(one[key] for one in each.values() if key in one)
            found |= {key: ", ".join(values)} if values else {}
        return {**found, "jobs": jobs, "estimated_seconds": round(estimated, 3), "billed_seconds": round(billed, 3)}

    @contextmanager
    def reporting(self, progress: Callable[[str], None] | None) -> Iterator[None]:
        with super().reporting(progress), ExitStack() as stack:
            for one in self.devices.values():
                stack.enter_context(one.reporting(_Progress(self)))
            yield

    @contextmanager
    def open(
        self, journal: Any = None, budget: Any = None, progress: Any = None, *, activity: Any = None, **how: bool
    ) -> Iterator[Backend]:
        """Hold all devices open, each with its part of the activity, its own limit and the ``budget`` of all together.

        ``how`` has the other keywords of :meth:`BillingBackend.open`. Raises UserError: what one device raises; an
        absent device has unfinished jobs.
        """
        with ExitStack() as stack:
            self.journal = journal or stack.enter_context(Journal(None))
            self.activity: Activity = activity or self.journal.start("run", self.name, {})
            self._read()
            self.parts = {str(a.arguments.get("backend")): a for a in self.journal.parts(self.activity)}
            for key, error in self.absent.items():
                if self._unfinished(key):
                    raise error
            self.budgets: dict[str, DeviceBudget] = {}
            for key, one in self.devices.items():
                self.budgets[key] = DeviceBudget(Budget.of(one), budget, self.budgets, self.lock)
                if key in self.left_out:
                    self.budgets[key].charge(self.journal.billed(self.parts[key]) if key in self.parts else 0.0)
                    continue
                held: dict[str, Any] = {"budget": self.budgets[key], "progress": None}
                if one.bills:
                    what = {PART: self.activity.name, "backend": key, "terms": self.terms[key]}
                    kind = self.activity.kind
                    self.parts[key] = self.parts.get(key) or self.journal.start(kind, self.place_of(key), what)
                    held |= {"journal": self.journal, "activity": self.parts[key], **how}
                stack.enter_context(one.open(**held))
            jobs: list[Any] = [getattr(one, "jobs", None) for one in self.devices.values()]
            sent = [found for found in jobs if hasattr(found, "sent")]
            for other in sent[1:]:  # the account limits submissions a minute, of all its devices together
                other.sent = sent[0].sent
            stack.enter_context(self.reporting(progress))
            try:
                yield self
            finally:
                self._stopping, self.journal = True, None

    def evaluate(self, count: int, work: Callable[[Backend, int, int], T]) -> list[tuple[int, int, str, T]]:
        """``(start, stop, device, work(backend, start, stop))`` of every portion of ``count`` samples, in order.

        Raises UserError: no device is left, or one has unfinished jobs that a resume collects; what came back is kept.
        """
        if self.journal is None:
            if self.bills:
                raise UserError(f"backend {self.name!r}: its devices bill; evaluate inside 'with backend.open():'")
            with self.open():
                return self.evaluate(count, work)
        self._begin(count)
        found: dict[int, T] = {}  # by number of the portion
        errors: dict[str, BaseException] = {}
        running = [key for key in self.devices if key not in self.left_out]
        self._stopping = False

        def others(*but: str) -> list[str]:
            return [key for key in running if key not in but and key not in errors and key not in self.left_out]

        def device(key: str) -> None:
            while True:
                with self.lock:
                    # what a device answered before it was left out is only read from the journal, by the first device
                    own = (key, *self.left_out) if key == others()[0] else (key,)
                    mine = [n for n, one in enumerate(self.portions) if one.device in own and n not in found]
                    over = all(n in found or one.device in errors for n, one in enumerate(self.portions))
                    if self._stopping or over:
                        return
                    if not mine:
                        self.lock.wait()
                        continue
                    number, portion = mine[0], self.portions[mine[0]]
                try:
                    made = work(PortionBackend(self, key, number), portion.start, portion.stop)
                except BaseException as error:  # one that is no UserError, too: the main thread raises it
                    with self.lock:
                        try:
                            left = self._leave(key, error, others(key), set(found))
                        except BaseException as trouble:  # of the journal
                            left, error = False, trouble
                        if not left:
                            errors[key] = error
                        self.lock.notify_all()
                    return
                with self.lock:
                    found[number] = made
                    self.lock.notify_all()

        threads = [threading.Thread(target=device, args=(key,), daemon=True, name=key) for key in running]
        with warnings.catch_warnings():  # threads change the filters of the whole process; this restores them
            try:
                for one in threads:
                    one.start()
                while any(one.is_alive() for one in threads):
                    for one in threads:
                        one.join(0.05)
            except BaseException:
                with self.lock:
                    self._stopping = True
                    self.lock.notify_all()
                for one in threads:
                    one.join(WAIT)
                raise
        self._raise(errors)
        return [(one.start, one.stop, one.device, found[n]) for n, one in enumerate(self.portions)]

    def taken_over(self, key: str) -> int:
        """Samples of a device that another device had before."""
        return sum(one.samples for one in self.portions if one.device == key and one.before is not None)

    def bill(self, key: str) -> dict[str, Any]:
        """``jobs``, ``estimated_seconds`` and, where it bills, ``billed_seconds`` of a device, of all processes."""
        if key in self.parts:
            billed, estimated, jobs = self._journal.totals(self.parts[key])
            return {"jobs": jobs, "estimated_seconds": round(estimated, 3), "billed_seconds": round(billed, 3)}
        return {"estimated_seconds": round(self.devices[key].estimated, 3)} if key in self.devices else {}

    def _raise(self, errors: Mapping[str, BaseException]) -> None:
        """Raises what stopped the inference; UserError names each device that stopped."""
        if not errors:
            return
        reasons = {**self.left_out, **{key: str(error) for key, error in errors.items()}}
        self.left_out = {}  # a resume tries all devices again, each with the portions it has now
        self._write()
        for error in errors.values():
            if not isinstance(error, UserError) or len(reasons) == 1:
                raise error
        raise UserError("; ".join(f"{key}: {why}" for key, why in reasons.items()))

    def _begin(self, count: int) -> None:
        """Assign the samples to devices: as the journal has them, as planned, or evenly."""
        if not self.portions:
            keys = [key for key in self.devices if key not in self.left_out]
            even = {key: count // len(keys) + (n < count % len(keys)) for n, key in enumerate(keys)}
            start = 0
            for key, size in (self.shares or even).items():
                for first in range(start, start + size, self.portion):
                    self.portions.append(Portion(first, min(first + self.portion, start + size), key))
                start += size
            self.left_out |= {key: str(error) for key, error in self.absent.items()}
        if self.portions[-1].stop != count:
            raise UserError(f"{self._journal.path}: it has portions of {self.portions[-1].stop} samples, not {count}")
        for key, error in self.absent.items():  # absent since the inference was begun
            self._hand_over(key, str(error), [k for k in self.devices if k not in self.left_out], set())
        unknown = {one.device for one in self.portions} - {*self.devices, *self.left_out}
        if unknown:  # no device would evaluate their samples
            raise UserError(f"backend {self.name!r}: samples are assigned to {', '.join(sorted(unknown))} too")
        self._write()

    def _leave(self, key: str, error: BaseException, others: list[str], done: set[int]) -> bool:
        """Leave a device out and hand its portions over, except those ``done``; False where that is not possible.

        It is not where a resume continues on this device, because jobs of it are unfinished or the limit of all
        together is reached, nor where no other device is left.
        """
        if self._stopping or not isinstance(error, UserError) or self.budgets[key].exhausted or self._unfinished(key):
            return False
        self.budgets[key].reserved = 0.0
        if not others:
            return False
        self._hand_over(key, str(error), others, done)
        self._write()
        return True

    def _hand_over(self, key: str, why: str, others: list[str], done: set[int]) -> None:
        if key in self.left_out or not others:
            return
        self.left_out[key] = why
        for number, portion in enumerate(self.portions):
            if portion.device == key and number not in done:
                load = {k: sum(one.samples for one in self.portions if one.device == k) for k in others}
                portion.device, portion.before = min(others, key=lambda k: load[k]), key

    def _unfinished(self, key: str) -> bool:
        """Whether jobs of a device may still be billed."""
        return key in self.parts and bool(self._journal.submissions(self.parts[key], OPEN))

    @property
    def _journal(self) -> Journal:
        assert self.journal is not None
        return self.journal

    def _read(self) -> None:
        """Portions and devices that were left out, as :meth:`_write` kept them. Raises UserError: damaged."""
        self.portions, self.left_out, self._counted = [], {}, {}
        kept = self.recorded or self._journal.plan(self.activity)[0]
        if kept is None:
            return
        try:
            state = json.loads(kept)
            portions = [
                Portion(int(a), int(b), str(key), None if old is None else str(old)) for a, b, key, old in state[0]
            ]
            left_out = {str(key): str(why) for key, why in state[1].items()}
            ends = [0, *(one.stop for one in portions)]
            whole = bool(portions) and all(
                one.start == end < one.stop for one, end in zip(portions, ends, strict=False)
            )
            if not whole or not {one.device for one in portions} <= {*self.devices, *self.absent}:
                raise ValueError("not the portions of this inference")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            where = "the record" if self.recorded else self._journal.path
            raise UserError(f"{where} is damaged: the portions of its devices cannot be read") from error
        # a record holds the answers of all devices
        self.portions, self.left_out = portions, {} if self.recorded else left_out

    def _write(self) -> None:
        state = [[astuple(one) for one in self.portions], self.left_out]
        self._journal.keep_plan(self.activity, json.dumps(state).encode(), None)


class PortionBackend(Backend):
    """A device while it evaluates one portion: circuit batches that any device answered are read from the journal."""

    def __init__(self, devices: Devices, key: str, number: int) -> None:
        self.devices, self.key, self.number, self.batches = devices, key, number, 0
        self.inner = devices.devices[key]
        super().__init__(self.inner.name)
        self.kind, self.shots, self.gradient = self.inner.kind, self.inner.shots, self.inner.gradient
        self.perturbation, self.target, self.bills = self.inner.perturbation, self.inner.target, self.inner.bills
        self.unmitigated: list[NDArray[np.float64]] | None = None

    @property
    def packer(self) -> PortionBackend:  # of a device it has the unmitigated values
        return self

    def circuits_for(self, template: CircuitTemplate) -> int:
        return self.inner.circuits_for(template)

    def about(self) -> dict[str, Any]:
        return self.inner.about()

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        devices, journal, position = self.devices, self.devices._journal, self.number * MAX_BATCHES + self.batches
        self.batches += 1
        digest = hashlib.sha256(json.dumps([(c.tag, c.template.name, c.values.shape, c.shots) for c in calls]).encode())
        for call in calls:
            digest.update(np.ascontiguousarray(call.values).tobytes())
        kept = journal.asked(devices.activity, position, digest.hexdigest())
        if kept is None:
            if devices._stopping:
                raise Stopped("stopped")
            devices.budgets[self.key].reserved = 0.0  # no job of this device is unfinished
            before = asdict(self.inner.counters)
            kept = {f"value{k}": values for k, values in enumerate(self.inner.run(calls))}
            raw = self.inner.packer.unmitigated
            if raw is not None and len(raw) == len(calls):
                kept |= {f"raw{k}": values for k, values in enumerate(raw)}
            used = asdict(self.inner.counters)
            kept["counted"] = np.array([used[name] - before[name] for name in ("circuits", "executions")])
            journal.answer(devices.activity, position, kept, 0.0)
        places = range(len(calls))
        self.unmitigated = [kept[f"raw{k}"] for k in places] if "raw0" in kept else None
        with devices.lock:
            if position not in devices._counted:  # another device may have begun this portion
                devices._counted[position] = self.key
                devices.counters.circuits += int(kept["counted"][0])
                devices.counters.executions += int(kept["counted"][1])
                devices.counters.rounds = max(Counter(devices._counted.values()).values())
        return [kept[f"value{k}"] for k in places]


class _Progress:
    """Passes on the progress of a device; raises Stopped where the inference is over."""

    def __init__(self, devices: Devices) -> None:
        self.devices = devices

    def _stop(self) -> None:
        if self.devices._stopping:
            raise Stopped("stopped")

    def __call__(self, text: str) -> None:
        self._stop()
        if self.devices._progress is not None:
            self.devices._progress(text)

    def update(self, text: str) -> None:
        self._stop()
        self.devices._tell(text)
