"""Jobs on a device that bills: from PUBs to submissions and back, journalled, so that nothing is paid for twice."""

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.primitives import BitArray
from qiskit.transpiler import InstructionProperties, Target

from qrkt_hw.backends.base import Backend, Call
from qrkt_hw.backends.budget import JOB_SECONDS, Budget
from qrkt_hw.backends.device.journal import Activity, Journal, Submission
from qrkt_hw.backends.device.packing import Counted, DeviceBackend, Packer
from qrkt_hw.backends.device.pubs import PUB, JobLimits, busy, parts, together
from qrkt_hw.backends.entries import SAMPLER_KEYS, BilledEntry
from qrkt_hw.errors import UserError

T = TypeVar("T")
AGAIN = 2  # times a job that failed on the service, for no fault of ours, is sent again


def patiently(question: Callable[[], T], patience: float, refused: Callable[[Exception, bool], str | None]) -> T:
    """The answer of a service, asked again with growing pauses for ``patience`` seconds.

    ``refused(error, late)`` gives what the user is told; None where the error may pass and it is not too ``late``. It
    may raise the error instead.

    Raises UserError: refused, or no answer in time.
    """
    deadline, pause = time.monotonic() + patience, 0.5
    while True:
        try:
            with warnings.catch_warnings(action="ignore"):
                return question()
        except UserError:
            raise
        except Exception as error:
            late = time.monotonic() + pause > deadline
            if (told := refused(error, late)) is not None:
                raise UserError(told) from None
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


@dataclass
class Pending:
    """An unfinished submission with its PUBs."""

    submission: Submission
    pubs: list[PUB]
    job: Any = None
    generation: int = -1
    again: int = 0  # times it was sent again
    adopted: bool = False  # an earlier process sent it


class DeviceJobs(ABC):
    """Submits PUBs of a backend and gets outcomes; a provider writes how.

    Everything is written down in ``journal`` under ``activity``; ``budget`` (None: no limit) admits and is charged;
    ``resubmit`` sends again what is held.
    """

    what = "job"  # what the service calls it
    ends_with_its_process = False

    def __init__(
        self, backend: Any, journal: Journal, activity: Activity, budget: Budget | None, resubmit: bool = False
    ) -> None:
        self.place, self.entry = backend.place, backend.entry
        self.limits, self.rep_delay = backend.job_limits, backend.default_rep_delay
        self.journal, self.activity, self.budget = journal, activity, budget or Budget()
        self.tell, self.resubmit = backend._tell, resubmit
        self.notices: list[str] = []

    @abstractmethod
    def _send(self, one: Pending) -> None:
        """Submit; on return the job's id is in the journal. Raises UserError: refused, or held as no job is found."""

    @abstractmethod
    def _state(self, one: Pending) -> tuple[str, str, int | None]:
        """``DONE``, ``ERROR``, ``CANCELLED`` or another state, why, and the service's code of the reason."""

    @abstractmethod
    def _result(self, one: Pending) -> Sequence[dict[str, BitArray]]:
        """Bits by register of every PUB of a job that is done."""

    @abstractmethod
    def _bill(self, one: Pending) -> float:
        """QPU seconds charged for a job that has ended."""

    @abstractmethod
    def _lost(self, submission: Submission) -> str:
        """What is said of a submission without an answer."""

    @abstractmethod
    def _ended_badly(self, one: Pending, state: str, why: str, code: int | None) -> Pending:
        """Write it down; a new submission where it is to be sent again, else an error."""

    def _search(self, submission: Submission, grace: float | None = None) -> str | None:
        """The id of a job whose answer was lost; None where it cannot be found."""
        return None

    def _look_for_copies(self, fresh: Sequence[Pending]) -> None:
        """Tell of jobs that the service holds and the journal does not."""
        return

    def outcomes(self, pubs: Sequence[PUB]) -> list[dict[str, BitArray]]:
        """Raw outcomes of PUBs, in order: kept ones, those of unfinished jobs, and new ones.

        Raises UserError: the budget, the account or the service ends it; what came back is kept.
        """
        cut = [parts(pub, self.limits, self.rep_delay) for pub in pubs]
        keys = {part.key: part for own in cut for part in own}
        missing = [pub for pub in keys.values() if self._kept(pub) is None]
        pending = self._adopted(missing)
        new = [pub for pub in missing if not any(pub.key in one.submission.keys for one in pending)]
        fresh = [self._intend(group) for group in together(new, self.limits, self.rep_delay)]
        try:
            for one in fresh:
                self.budget.admit(one.submission.estimated)
                self._send(one)
                pending.append(one)
        except UserError:
            # unfinished jobs are paid for: collect their results before giving up
            with suppress(UserError):
                self._await(pending, give_up=min(60.0, self.entry.max_wait))
            raise
        self._await(pending)
        self._look_for_copies(fresh)
        return [_joined([self._kept(part) for part in own]) for own in cut]

    def _kept(self, pub: PUB) -> dict[str, BitArray] | None:
        outcome = self.journal.outcome(self.activity, pub.key)
        if outcome is not None:
            _check(pub, outcome, f"{self.journal.path} is damaged: the result of {pub.key[:12]}")
        return outcome

    def _intend(self, pubs: list[PUB]) -> Pending:
        estimated = JOB_SECONDS + busy(pubs, self.rep_delay)
        keys = [pub.key for pub in pubs]
        # one that was intended and never sent needs no second line
        for old in self.journal.submissions(self.activity, ["planned"]):
            if set(old.keys) & set(keys):
                self.journal.mark(old, "failed", remark="planned anew")
        executions = sum(pub.executions for pub in pubs)
        return Pending(self.journal.intend(self.activity, self.place.name, keys, executions, estimated), pubs)

    def _adopted(self, pubs: Sequence[PUB]) -> list[Pending]:
        by_key = {pub.key: pub for pub in pubs}
        found = []
        for submission in self.journal.submissions(self.activity, ["submitting", "submitted", "held"]):
            if not set(submission.keys) & set(by_key):
                continue
            if self.ends_with_its_process:
                self.journal.mark(submission, "failed", remark="it ended with its process")
                continue
            if submission.state != "submitted":
                job = self._search(submission, None if submission.state == "submitting" else 1.0)
                if job is not None:
                    submission = self.journal.mark(submission, "submitted", job=job, remark="found by its tag")
                elif self.resubmit:
                    self.journal.mark(submission, "failed", remark="sent again by --resubmit")
                    continue
                else:
                    raise self._hold(submission)
            own = [by_key[k] for k in submission.keys if k in by_key]
            found.append(Pending(submission, own, adopted=True))
        return found

    def _hold(self, submission: Submission, remark: str | None = None) -> UserError:
        self.journal.mark(submission, "held", remark=remark)
        executions, seconds = submission.executions, submission.estimated
        sent = f"a {self.what} for {self.place.name} ({executions:,} executions, about {seconds:.0f} QPU seconds)"
        return UserError(f"{sent} {self._lost(submission)}")

    def _await(self, pending: Sequence[Pending], give_up: float | None = None) -> None:
        started, pause = time.monotonic(), 0.2
        open_ = list(pending)
        while open_:
            for one in list(open_):
                state, why, code = self._state(one)
                if state == "DONE":
                    self._bring_in(one)
                    open_.remove(one)
                elif state in ("ERROR", "CANCELLED"):
                    open_.remove(one)
                    open_.append(self._ended_badly(one, state, why, code))
            waited = time.monotonic() - started
            if open_ and waited > (self.entry.max_wait if give_up is None else give_up):
                what = f"{self.what} {open_[0].submission.job} on {self.place.name} is not done after {waited:.0f} s"
                way = "it is not stopped, and --resume takes its result when it is (qrkt-hw jobs cancel RUN stops it)"
                raise UserError(f"{what}; {way}")
            if open_:
                time.sleep(pause)
                pause = min(1.3 * pause, 10.0)

    def _bring_in(self, one: Pending) -> None:
        outcomes, billed = self._result(one), self._bill(one)
        job, count = one.submission.job, len(one.submission.keys)
        if len(outcomes) != count:
            raise UserError(f"{self.what} {job} holds {len(outcomes)} results, not {count}")
        by_key = {pub.key: pub for pub in one.pubs}
        for key, outcome in zip(one.submission.keys, outcomes, strict=True):
            if key in by_key:
                _check(by_key[key], outcome, f"{self.what} {job}: its result")
        one.submission = self.journal.done(one.submission, outcomes, billed)
        self.budget.charge(billed)

    def _again(self, one: Pending, notice: str) -> Pending:
        """Send the circuits of a job that ended without a result once more."""
        self.notices.append(notice)
        again = replace(self._intend(one.pubs), again=one.again + 1)
        self.budget.admit(again.submission.estimated)
        self._send(again)
        return again

    def _failed(self, one: Pending, state: str, why: str) -> UserError:
        failed = f"failed on {self.place.name}: {why or 'no reason given'}"
        ended = f"on {self.place.name} was cancelled" if state == "CANCELLED" else failed
        return UserError(f"{self.what} {one.submission.job} {ended}; --resume sends its circuits again")


class BillingBackend(DeviceBackend):
    """A device that bills: it runs only while it is held open, by the jobs of its provider, with one plan.

    A provider makes the jobs and ``place``, which has a ``name``, the ``device``, ``about()`` and ``close()``.
    """

    bills = True
    place: Any

    def __init__(self, name: str, entry: BilledEntry, shots: int | None) -> None:
        super().__init__(name)
        if shots == 0:
            raise UserError(f"--shots: {name} is a device and samples; give a number of shots")
        self.entry: Any = entry
        self.shots = shots or entry.shots
        self.options = {key: getattr(entry, key) for key in SAMPLER_KEYS}
        self.job_limits = JobLimits(entry.largest_job, entry.largest_input, entry.longest_job)
        self.jobs: DeviceJobs | None = None
        # QPU seconds billed, those estimated for the same jobs, and how many jobs: by activity, as the journal has it,
        # so that what an earlier process paid for counts too
        self._totals: dict[str, tuple[float, float, int]] = {}
        self.billed, self.submissions = 0.0, 0
        self.notices: list[str] = []

    @abstractmethod
    def _jobs(self, journal: Journal, activity: Activity, budget: Budget | None, resubmit: bool) -> DeviceJobs: ...

    @property
    @abstractmethod
    def terms(self) -> dict[str, Any]:
        """What of the entry decides the bill: a resume must have the same."""

    def _move(self, device: str) -> bool:
        """Go to another device, on which an activity was begun, where the entry leaves the choice open."""
        return False

    def _use_device(self, pack: bool = True) -> None:
        self.target = self.place.device.target
        self.packer = Packer(
            self.target, device=self.place.name, level=self.entry.optimization_level, shots=self.shots or 0,
            pack=self.entry.pack and pack, spacing=self.entry.spacing, options=self.options,
            min_fidelity=self.entry.min_fidelity, mitigation=self.corrected or self.entry.mitigation,
        )  # fmt: skip
        self._kept_groups, self._pinned = 0, None  # groups in the kept plan; the calibration it was made with

    @property
    def device(self) -> Any:  # type: ignore[override]
        return self.place.device

    @property
    def default_rep_delay(self) -> float:
        return super().default_rep_delay if self.entry.rep_delay is None else self.entry.rep_delay

    def about(self) -> dict[str, Any]:
        more = {k: v for k, v in {**self.options, "notices": list(self.notices)}.items() if v}
        return {
            **super().about(), "device": self.place.name, "qubits": self.num_qubits, "calibrated": self.calibrated(),
            **self.place.about(), "jobs": self.submissions, "activity": self.jobs and self.jobs.activity.name,
            "mitigation": self.packer.mitigation,
            "estimated_seconds": round(self.estimated, 3), "billed_seconds": round(self.billed, 3), **more,
        }  # fmt: skip

    @contextmanager
    def open(
        self,
        journal: Any = None,
        budget: Any = None,
        progress: Callable[[str], None] | None = None,
        *,
        activity: Any = None,
        resubmit: bool = False,  # send again what is held
        replan: bool = False,  # let go of the plan that was pinned
    ) -> Iterator[Backend]:
        """Hold journal, budget and session for many circuit batches.

        Without a journal one is kept in memory, without an activity one is started, without a budget the entry's
        ``max_seconds`` limits. Raises UserError: it is open already, the activity is another device's, or its plan is
        damaged.
        """
        if self.jobs is not None:  # one's jobs would go to the other's journal and budget
            way = "close what holds it, or make another by backends.get"
            raise UserError(f"backend {self.name!r}: {self.place.name} is held open already; {way}")
        own = journal is None
        journal = journal or Journal(None)
        activity = activity or journal.start("run", self.place.name, {})
        budget = Budget.of(self, budget)
        if activity.device != self.place.name and not self._move(activity.device):
            what = f"--backend: {self.name} is {self.place.name}, but what was begun ran on {activity.device}"
            raise UserError(f"{what}; name the backend it was begun on, or begin anew with --restart")
        plan, calibrated = (None, None) if replan else journal.plan(activity)
        if plan is not None or replan:
            self._use_device()
        self._kept_groups = 0  # this activity has a plan of its own, whatever was kept for another
        if plan is not None:
            try:
                self.packer.from_bytes(plan)
            except ValueError as error:
                damage = f"the plan of what was begun is damaged ({error}); --resume --replan makes a new one"
                raise UserError(f"{journal.path}: {damage}") from error
            self._pinned = calibrated
            if calibrated != self.calibrated():
                way = "its pinned plan is kept (--replan makes a new one)"
                self.notices.append(f"{self.place.name} was calibrated anew since this began; {way}")
        if budget is not None:
            budget.charge(journal.billed(activity))
        self.jobs = self._jobs(journal, activity, budget, resubmit)
        self._settle(self.jobs)
        try:
            with self.reporting(progress):
                yield self
        finally:
            self.place.close()
            self._settle(self.jobs)
            self.jobs = None
            if own:
                journal.close()

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """See :meth:`DeviceBackend.run`. Raises UserError: :meth:`open` does not hold it."""
        if self.jobs is None:
            what = f"backend {self.name!r}: {self.place.name} bills what it runs; run it inside 'with backend.open():'"
            way = "with a journal if nothing is to be paid for twice and a budget if there is a limit"
            raise UserError(f"{what}, {way}")
        return super().run(calls)

    def submit(self, pubs: Sequence[PUB]) -> Counted:
        """Jobs of the service, journalled before they are sent and awaited; the plan is kept first."""
        jobs = self.jobs
        assert jobs is not None
        if len(self.packer.groups) != self._kept_groups:
            jobs.journal.keep_plan(jobs.activity, self.packer.to_bytes(), self._pinned or self.calibrated())
            self._kept_groups = len(self.packer.groups)
            if self._pinned is None:
                jobs.journal.keep_device(jobs.activity, self._described())
        try:
            outcomes = jobs.outcomes(pubs)
        finally:
            self._settle(jobs)
        both = zip(pubs, outcomes, strict=True)
        return [[found[register.name] for register in pub.circuit.cregs] for pub, found in both]

    def _described(self) -> dict[str, Any]:
        """What :class:`Recorded` needs to pack the same circuits again."""
        operations = {}
        for name in self.target.operation_names:
            entries = self.target[name] or {None: None}
            operations[name] = [[where, getattr(p, "duration", None), getattr(p, "error", None)]
                                for where, p in entries.items()]  # fmt: skip
        keys = {"optimization_level": "level", "min_fidelity": "min_fidelity", "spacing": "spacing"}
        packer = {to: getattr(self.entry, key) for key, to in keys.items()}
        packer |= {"pack": self.packer.packs, "options": self.packer.options, "mitigation": self.packer.mitigation}
        return {
            "device": self.place.name, "calibrated": self.calibrated(), "qubits": self.num_qubits, "shots": self.shots,
            "dt": self.target.dt, "rep_delay": self.default_rep_delay, "packer": packer,
            "limits": [self.job_limits.executions, self.job_limits.size, self.job_limits.seconds],
            "operations": operations,
        }  # fmt: skip

    def _settle(self, jobs: DeviceJobs) -> None:
        self._totals[jobs.activity.name] = jobs.journal.totals(jobs.activity)
        self.billed, self.estimated, self.submissions = (sum(one) for one in zip(*self._totals.values(), strict=True))
        self.notices += [n for n in jobs.notices if n not in self.notices]
        jobs.notices = []
        if self.notices:
            self.notice = "; ".join(self.notices)


class Missing(UserError):
    """A result that is not in the journal."""


class Recorded(DeviceBackend):
    """A device whose results are those of an activity in a journal; nothing is run.

    Circuits are packed as they were. Their outcomes are found by the keys of their PUBs or, where angles differ in
    rounding, as on another CPU, by their order. Raises UserError: the journal does not say what the device was.
    """

    kind = "recorded device"

    def __init__(self, journal: Journal, activity: Activity) -> None:
        super().__init__(activity.device)
        self.journal, self.activity, self.others = journal, activity, list[Recorded]()
        self.by_order = 0  # PUBs whose outcomes were found by their order
        self.in_order = True  # the journal has the outcomes in the order of the circuit batches
        try:
            kept = journal.device(activity)
            self.target = _target(kept)
            self.shots, self.job_limits = int(kept["shots"]), JobLimits(*kept["limits"])
            named: dict[str, Any] = {"name": str(kept["device"]), "default_rep_delay": float(kept["rep_delay"])}
            self.device, self._calibrated = SimpleNamespace(target=self.target, **named), kept["calibrated"]
            self.packer = Packer(self.target, device=named["name"], shots=self.shots, **kept["packer"])
            plan, _ = journal.plan(activity)
            self.packer.from_bytes(plan or b"")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{journal.path} is damaged: device {activity.device} cannot be read") from error
        done = [one for one in journal.submissions(activity) if one.state == "done"]
        self._order = list(dict.fromkeys(key for one in done for key in one.keys))
        self._used: set[str] = set()

    def calibrated(self) -> str | None:
        return None if self._calibrated is None else str(self._calibrated)

    def submit(self, pubs: Sequence[PUB]) -> Counted:
        cut = [parts(pub, self.job_limits, self.default_rep_delay) for pub in pubs]
        outcomes = [[self.journal.outcome(self.activity, part.key) for part in own] for own in cut]
        if all(one is None for own in outcomes for one in own) and self.in_order:
            outcomes = [[self._next(part) for part in own] for own in cut]
            self.by_order += len(pubs)
        if any(one is None for own in outcomes for one in own):
            raise Missing(f"{self.journal.path} holds no result of circuits that this model asks {self.name} for")
        self._used |= {part.key for own in cut for part in own}
        joined = [_joined(own) for own in outcomes]
        return [[one[r.name] for r in pub.circuit.cregs] for pub, one in zip(pubs, joined, strict=True)]

    def _next(self, part: PUB) -> dict[str, BitArray] | None:
        """The first outcome of this shape that no PUB has taken."""
        for key in self._order:
            outcome = None if key in self._used else self.journal.outcome(self.activity, key)
            if outcome is not None:
                with suppress(UserError):
                    _check(part, outcome, "")
                    self._used.add(key)
                    return outcome
        return None

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        for one in self.others:  # another device may have begun this portion
            with suppress(Missing):
                found = DeviceBackend.run(one, calls)
                self.packer.unmitigated = one.packer.unmitigated
                return found
        return super().run(calls)


def _target(kept: dict[str, Any]) -> Target:
    """The target with the qubits, gates, durations and errors that the journal keeps."""
    found, known = Target(num_qubits=int(kept["qubits"]), dt=kept["dt"]), get_standard_gate_name_mapping()
    for name, entries in kept["operations"].items():
        if name in known and entries[0][0] is not None:
            places = {tuple(where): InstructionProperties(duration, error) for where, duration, error in entries}
            found.add_instruction(known[name], places)
    return found


def _joined(outcomes: Sequence[dict[str, BitArray] | None]) -> dict[str, BitArray]:
    own = [outcome for outcome in outcomes if outcome is not None]
    assert len(own) == len(outcomes)
    sizes = {name: bits.num_bits for name, bits in own[0].items()}
    return {name: BitArray(np.concatenate([one[name].array for one in own]), size) for name, size in sizes.items()}


def _check(pub: PUB, outcome: dict[str, BitArray], where: str) -> None:
    """A result must be of the shape that was asked for. Raises UserError: it is not; nothing of it is used."""
    for register in pub.circuit.cregs:
        bits = outcome.get(register.name)
        # twirling rounds shots up to whole randomizations
        most = math.inf if pub.options.get("twirl_gates") or pub.options.get("twirl_measure") else pub.shots
        shape = None if bits is None else (bits.shape, bits.num_bits)
        if bits is None or shape != ((len(pub.values),), len(register)) or not pub.shots <= bits.num_shots <= most:
            raise UserError(f"{where} for register {register.name} is not what was asked for; not used")
