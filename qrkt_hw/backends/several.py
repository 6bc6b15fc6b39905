"""Several devices as one backend: samples are shared out, and each device evaluates its own, all at the same time.

Each device has its own layout, plan and jobs. A portion of the samples goes through the model on one device, circuit
batch after circuit batch. Every answer is kept in the journal: where a device stops, another goes on with the rest of
its portions from the last answer, so that nothing is paid for twice. Who has which portion is in the journal before
anything is sent; a resumed inference has the same.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
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
OPEN = ("submitting", "submitted", "held")  # states of jobs that may still be paid for
MOST = 1_000_000  # circuit batches of a portion
PORTION = 256  # samples of one, where nobody planned
WAIT = 10.0  # seconds that devices get to come to an end after Ctrl-C


class Stopped(UserError):
    """The inference is over; what a device still had to ask is not asked."""


class Share(Budget):
    """The limit of a device within that of all together, which counts what is under way too."""

    def __init__(self, own: Budget | None, whole: Budget | None, everybody: list[Share], turn: Any) -> None:
        limit, where = (None, "") if own is None else (own.qpu_seconds, own.where)
        super().__init__(limit, where=where)
        self.whole, self.everybody, self.turn = whole, everybody, turn
        self.promised = 0.0  # estimated seconds of jobs under way
        self.spent = False  # the limit of all together refused a job
        self.flag = "--max-qpu-seconds"  # it counts, whatever the device's own limit
        everybody.append(self)

    def _used(self) -> float:
        return sum(one.billed + one.promised for one in self.everybody)

    @property
    def left(self) -> float | None:
        own, whole = super().left, None if self.whole is None else self.whole.limit
        if whole is None:
            return own
        with self.turn:
            rest = max(0.0, whole - self._used() + self.promised)
        return rest if own is None else min(own, rest)

    def admit(self, seconds: float) -> None:
        super().admit(seconds)
        with self.turn:
            if self.whole is not None and self.whole.limit is not None and self._used() + seconds > self.whole.limit:
                self.spent = True
                what = f"{self.whole.named}: {self._used():.1f} s are billed or under way on all devices"
                raise UserError(f"{what} and the next job needs {seconds:.1f} s; what came back is kept")
            self.promised += seconds

    def charge(self, seconds: float) -> None:
        super().charge(seconds)
        self.promised = max(0.0, self.promised - seconds)


class Devices(Backend):
    """Devices that evaluate shares of the samples of one inference.

    ``devices`` have their names as asked for; ``absent`` are those that cannot be used, and why. Raises UserError:
    these do not go together.
    """

    kind = "several devices"
    corrected: str | None = None  # a list is read as its entries say
    differentiable = False

    def __init__(
        self,
        name: str,
        devices: Mapping[str, Backend],
        absent: Mapping[str, UserError],
        given: Sequence[Sequence[Any]] = (),  # portions; of a recorded inference
    ) -> None:
        super().__init__(name)
        self.absent, self.shares, self.portion, self.given = dict(absent), dict[str, int](), PORTION, given
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
                raise UserError(f"--backend: a list has devices or fake devices, not both; {key!r} is of another kind")
            if one.shots != first.shots:
                shots = f"{first.name!r} takes {first.shots:,} shots and {key!r} {one.shots:,}"
                raise UserError(f"--shots: {shots}; give the number that all are to take")
        places = [self.place_of(key) for key in self.devices]
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise UserError(f"--backend: the list names {twice} twice; name each device once")
        self.shots, self.gradient, self.target, self.bills = first.shots, first.gradient, first.target, first.bills
        self.working_entry = any(one.working_entry for one in self.devices.values())
        self.left_out: dict[str, str] = {}  # device -> why
        self.portions: list[list[Any]] = []  # first sample, sample behind the last, who has it, who had it before
        self.journal: Journal | None = None
        self.turn, self._stopping = threading.Condition(threading.RLock()), False
        self._counted: dict[int, str] = {}  # circuit batches, and on which device

    @property
    def place(self) -> Devices:  # where an activity runs: it has a name
        return self

    def place_of(self, key: str) -> str:
        one: Any = self.devices[key]
        return str(one.place.name if one.bills else one.device.name)

    @property
    def terms(self) -> dict[str, Any]:
        return {key: one.terms for key, one in self.devices.items() if hasattr(one, "terms")}

    @property
    def notice(self) -> str | None:  # type: ignore[override]
        told = [one.notice for one in self.devices.values() if one.notice]
        for key, why in self.left_out.items():
            heirs = dict.fromkeys(who for _, _, who, before in self.portions if before == key)
            told.append(f"{key} was left out ({why}); {' and '.join(heirs) or 'nobody'} took its share")
        return "; ".join(told) or None

    def circuits_for(self, template: CircuitTemplate) -> int:
        return next(iter(self.devices.values())).circuits_for(template)

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """See :meth:`Backend.run`. Raises UserError: whole samples are shared out, by :meth:`evaluate`."""
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
            said = dict.fromkeys(one[key] for one in each.values() if key in one)
            found |= {key: ", ".join(said)} if said else {}
        return {**found, "jobs": jobs, "estimated_seconds": round(estimated, 3), "billed_seconds": round(billed, 3)}

    @contextmanager
    def reporting(self, progress: Callable[[str], None] | None) -> Iterator[None]:
        with super().reporting(progress), ExitStack() as stack:
            for one in self.devices.values():
                stack.enter_context(one.reporting(_Told(self)))
            yield

    @contextmanager
    def open(
        self,
        journal: Any = None,
        budget: Any = None,
        progress: Callable[[str], None] | None = None,
        *,
        activity: Any = None,
        **how: bool,
    ) -> Iterator[Backend]:
        """Hold all devices open, each with its part of the activity, its own limit and the one ``budget`` of all.

        Raises UserError: as of one device; a device is absent that has jobs under way.
        """
        with ExitStack() as stack:
            self.journal = journal or stack.enter_context(Journal(None))
            self.activity: Activity = activity or self.journal.start("run", self.name, {})
            self._read()
            self.parts = {str(a.arguments.get("backend")): a for a in self.journal.parts(self.activity)}
            for key, error in self.absent.items():
                if self._under_way(key):
                    raise error
            everybody: list[Share] = []
            self.budgets: dict[str, Share] = {}
            for key, one in self.devices.items():
                self.budgets[key] = Share(Budget.of(one), budget, everybody, self.turn)
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
            jobs = [found for found in (getattr(one, "jobs", None) for one in self.devices.values()) if found]
            jobs = [found for found in jobs if hasattr(found, "sent")]
            for one in jobs[1:]:  # an account's submissions a minute
                one.sent = jobs[0].sent
            stack.enter_context(self.reporting(progress))
            try:
                yield self
            finally:
                self._stopping, self.journal = True, None

    def evaluate(self, count: int, work: Callable[[Backend, int, int], T]) -> list[tuple[int, int, str, T]]:
        """What ``work(backend, start, stop)`` makes of every portion of ``count`` samples, and on which device.

        Raises UserError: no device is left, or one has jobs under way that a resume takes; what came back is kept.
        """
        if self.journal is None:
            if self.bills:
                raise UserError(f"backend {self.name!r}: its devices bill; evaluate inside 'with backend.open():'")
            with self.open():
                return self.evaluate(count, work)
        self._begin(count)
        found: dict[int, T] = {}
        errors: dict[str, BaseException] = {}
        self._stopping = False

        def device(key: str) -> None:
            while True:
                with self.turn:
                    # what a device did before it was left out is answered, and only to be asked for again
                    first = next(k for k in alive if k not in errors and k not in self.left_out)
                    own = (key, *self.left_out) if key == first else (key,)
                    mine = [n for n, (*_, who, _) in enumerate(self.portions) if who in own and n not in found]
                    over = all(n in found or who in errors for n, (*_, who, _) in enumerate(self.portions))
                    if self._stopping or over:
                        return
                    if not mine:
                        self.turn.wait()
                        continue
                start, stop = self.portions[mine[0]][:2]
                try:
                    made = work(Turn(self, key, mine[0]), start, stop)
                except BaseException as error:  # also what is no error of the user, which the main thread raises
                    with self.turn:
                        others = [k for k in alive if k != key and k not in errors and k not in self.left_out]
                        try:
                            left = self._leave(key, error, others, set(found))
                        except BaseException as trouble:  # of the journal
                            left, error = False, trouble
                        if not left:
                            errors[key] = error
                        self.turn.notify_all()
                    return
                with self.turn:
                    found[mine[0]] = made
                    self.turn.notify_all()

        alive = [key for key in self.devices if key not in self.left_out]
        threads = [threading.Thread(target=device, args=(key,), daemon=True, name=key) for key in alive]
        with warnings.catch_warnings():  # which threads would leave as they please
            try:
                for one in threads:
                    one.start()
                while any(one.is_alive() for one in threads):
                    threads[0].join(0.05)
                    for one in threads[1:]:
                        one.join(0.05)
            except BaseException:
                with self.turn:
                    self._stopping = True
                    self.turn.notify_all()
                for one in threads:
                    one.join(WAIT)
                raise
        self._raise(errors)
        return [(start, stop, who, found[n]) for n, (start, stop, who, _) in enumerate(self.portions)]

    def taken_over(self, key: str) -> int:
        """Samples of a device that another one had before."""
        return sum(stop - start for start, stop, who, before in self.portions if who == key and before is not None)

    def bill(self, key: str) -> dict[str, Any]:
        """``jobs``, ``estimated_seconds`` and, where it bills, ``billed_seconds`` of a device, by whatever process."""
        if key in self.parts:
            billed, estimated, jobs = self._journal.totals(self.parts[key])
            return {"jobs": jobs, "estimated_seconds": round(estimated, 3), "billed_seconds": round(billed, 3)}
        return {"estimated_seconds": round(self.devices[key].estimated, 3)} if key in self.devices else {}

    def _raise(self, errors: Mapping[str, BaseException]) -> None:
        if not errors:
            return
        before = {} if self._stopping else self.left_out
        told = {**before, **{key: str(error) for key, error in errors.items()}}
        self.left_out = {}  # a resume tries them all again, with what each has now
        self._write()
        for error in errors.values():
            if not isinstance(error, UserError) or len(told) == 1:
                raise error
        raise UserError("; ".join(f"{key}: {why}" for key, why in told.items()))

    def _begin(self, count: int) -> None:
        """Who has which samples: as it was written down, as planned, or evenly."""
        if not self.portions:
            keys = [key for key in self.devices if key not in self.left_out]
            even = {key: count // len(keys) + (n < count % len(keys)) for n, key in enumerate(keys)}
            shares, start = self.shares or even, 0
            for key, size in shares.items():
                for first in range(start, start + size, self.portion):
                    self.portions.append([first, min(first + self.portion, start + size), key, None])
                start += size
            for key, error in self.absent.items():
                self.left_out[key] = str(error)
        if self.portions[-1][1] != count:
            raise UserError(f"{self._journal.path}: it shares out {self.portions[-1][1]} samples, not {count}")
        for key, error in self.absent.items():  # since this was begun
            self._hand_over(key, str(error), [k for k in self.devices if k not in self.left_out], set())
        unknown = {who for *_, who, _ in self.portions} - {*self.devices, *self.left_out}
        if unknown:  # nobody would evaluate what they have
            raise UserError(f"backend {self.name!r}: samples are shared out to {', '.join(sorted(unknown))} too")
        self._write()

    def _leave(self, key: str, error: BaseException, others: list[str], done: set[int]) -> bool:
        """Let others have what a device has not done. Not where a resume goes on with it: where its jobs are under way,
        the limit of all is reached, or nobody else is there."""
        if self._stopping or not isinstance(error, UserError) or self.budgets[key].spent or self._under_way(key):
            return False
        self.budgets[key].promised = 0.0
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
            if portion[2] == key and number not in done:
                load = {k: sum(stop - start for start, stop, who, _ in self.portions if who == k) for k in others}
                portion[2], portion[3] = min(others, key=lambda k: load[k]), key

    def _under_way(self, key: str) -> bool:
        return key in self.parts and bool(self._journal.submissions(self.parts[key], OPEN))

    @property
    def _journal(self) -> Journal:
        assert self.journal is not None
        return self.journal

    def _read(self) -> None:
        """Who has what, as it was written down in the place of a plan."""
        self.portions, self.left_out, self._counted = [list(one) for one in self.given], {}, {}
        kept, _ = self._journal.plan(self.activity)
        if kept is None:
            return
        try:
            state = json.loads(kept)
            portions: list[list[Any]] = [
                [int(a), int(b), str(who), None if old is None else str(old)] for a, b, who, old in state[0]
            ]
            left_out = {str(key): str(why) for key, why in state[1].items()}
            known = {*self.devices, *self.absent}
            ends = [0, *(p[1] for p in portions)]
            whole = bool(portions) and all(p[0] == end < p[1] for p, end in zip(portions, ends, strict=False))
            if not whole or not {p[2] for p in portions} <= known:
                raise ValueError("not what was asked for")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise UserError(f"{self._journal.path} is damaged: its shares of the devices cannot be read") from error
        self.portions, self.left_out = portions, left_out

    def _write(self) -> None:
        self._journal.keep_plan(self.activity, json.dumps([self.portions, self.left_out]).encode(), None)


class Turn(Backend):
    """A device while it evaluates one portion: what was answered before, by whatever device, is not asked again."""

    def __init__(self, devices: Devices, key: str, number: int) -> None:
        self.devices, self.key, self.number, self.asked = devices, key, number, 0
        self.inner = devices.devices[key]
        super().__init__(self.inner.name)
        self.kind, self.shots, self.gradient = self.inner.kind, self.inner.shots, self.inner.gradient
        self.perturbation, self.target, self.bills = self.inner.perturbation, self.inner.target, self.inner.bills
        self.unmitigated: list[NDArray[np.float64]] | None = None

    @property
    def packer(self) -> Turn:  # whoever compares with values as they were read asks for them there
        return self

    def circuits_for(self, template: CircuitTemplate) -> int:
        return self.inner.circuits_for(template)

    def about(self) -> dict[str, Any]:
        return self.inner.about()

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        there, journal, position = self.devices, self.devices._journal, self.number * MOST + self.asked
        self.asked += 1
        found = hashlib.sha256(json.dumps([(c.tag, c.template.name, c.values.shape, c.shots) for c in calls]).encode())
        for call in calls:
            found.update(np.ascontiguousarray(call.values).tobytes())
        kept = journal.asked(there.activity, position, found.hexdigest())
        if kept is None:
            if there._stopping:
                raise Stopped("stopped")
            there.budgets[self.key].promised = 0.0  # nothing of this device is under way
            before = asdict(self.inner.counters)
            kept = {f"value{k}": values for k, values in enumerate(self.inner.run(calls))}
            raw = self.inner.packer.unmitigated
            if raw is not None and len(raw) == len(calls):
                kept |= {f"raw{k}": values for k, values in enumerate(raw)}
            used = asdict(self.inner.counters)
            kept["counted"] = np.array([used[name] - before[name] for name in ("circuits", "executions")])
            journal.answer(there.activity, position, kept, 0.0)
        places = range(len(calls))
        self.unmitigated = [kept[f"raw{k}"] for k in places] if "raw0" in kept else None
        with there.turn:
            if position not in there._counted:  # another may have asked before
                there._counted[position] = self.key
                there.counters.circuits += int(kept["counted"][0])
                there.counters.executions += int(kept["counted"][1])
                there.counters.rounds = max(Counter(there._counted.values()).values())
        return [kept[f"value{k}"] for k in places]


class _Told:
    """Passes on what a device tells, and stops it where the inference is over."""

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
