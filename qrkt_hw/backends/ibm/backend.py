"""IBM Quantum as a backend: packed circuits, sampled by the service, nothing paid for twice."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.backends.base import Backend, Call
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.packing import Counted, DeviceBackend, Packer
from qrkt_hw.backends.device.pubs import PUB, JobLimits
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.entries import IBMEntry
from qrkt_hw.backends.ibm.account import Account, classify, explain
from qrkt_hw.backends.ibm.jobs import Jobs
from qrkt_hw.errors import UserError


class IBMBackend(DeviceBackend):
    """A device of IBM Quantum, signed in, or a fake backend in the client's local testing mode.

    There circuits are not packed, as the client simulates the whole chip. Raises UserError: no account, no network, a
    wrong key, no such device.
    """

    kind = "IBM Quantum"
    bills = True

    def __init__(self, name: str, entry: IBMEntry, shots: int | None) -> None:
        super().__init__(name)
        if shots == 0:
            raise UserError(f"--shots: {name} is a device and samples; give a number of shots")
        self.account: Account | None = None
        if not entry.name.startswith("fake_"):
            self.account = Account(entry.instance, entry.timeout, entry.patience)
        device = fake_device(entry.name) if self.account is None else self.account.device(entry.name)
        self.entry, self.place = entry, Place(self.account, device, entry.mode, entry.max_time)
        self.shots = shots or entry.shots
        keys = ("dynamical_decoupling", "twirl_gates", "twirl_measure", "rep_delay")
        self.options = {key: getattr(entry, key) for key in keys}
        self.job_limits = JobLimits(entry.largest_job, entry.largest_input, entry.longest_job)
        self.jobs: Jobs | None = None
        # QPU seconds billed, those estimated for the same jobs, and how many jobs: by activity, as the journal has it,
        # so that what an earlier process paid for counts too
        self._totals: dict[str, tuple[float, float, int]] = {}
        self.billed, self.submissions = 0.0, 0
        self.notices: list[str] = []
        self._use_device()

    def _use_device(self) -> None:
        self.target = self.place.device.target
        self.packer = Packer(
            self.target, device=self.place.name, level=self.entry.optimization_level, shots=self.shots or 0,
            pack=self.entry.pack and self.account is not None, spacing=self.entry.spacing, options=self.options,
            min_fidelity=self.entry.min_fidelity, mitigation=self.entry.mitigation == "mthree",
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
            "plan": self.place.plan, "mode": self.place.mode, "jobs": self.submissions,
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
        ``max_seconds`` limits. Raises UserError: the activity is another device's, or its plan is damaged.
        """
        own = journal is None
        journal = journal or Journal(None)
        activity = activity or journal.start("run", self.place.name, {})
        budget = Budget.of(self, budget)
        if activity.device != self.place.name:
            if self.account is None or self.entry.name != "least_busy":
                what = f"--backend: {self.name} is {self.place.name}, but what was begun ran on {activity.device}"
                way = "name the backend it was begun on, or begin anew with --restart"
                raise UserError(f"{what}; {way}")
            self.place = Place(self.account, self.account.device(activity.device), self.entry.mode, self.entry.max_time)
            self._use_device()
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
        self.jobs = Jobs(self, journal, activity, budget, resubmit)
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
        """See :meth:`DeviceBackend.run`. Raises UserError where the device bills and :meth:`open` does not hold it."""
        if self.jobs is not None:
            return super().run(calls)
        if self.account is not None:
            what = f"backend {self.name!r}: {self.place.name} bills what it runs; run it inside 'with backend.open():'"
            way = "with a journal if nothing is to be paid for twice and a budget if there is a limit"
            raise UserError(f"{what}, {way}")
        with self.open():
            return super().run(calls)

    def submit(self, pubs: Sequence[PUB]) -> Counted:
        """Jobs of the service, journalled before they are sent and awaited; the plan is kept first."""
        jobs = self.jobs
        assert jobs is not None
        if len(self.packer.groups) != self._kept_groups:
            jobs.journal.keep_plan(jobs.activity, self.packer.to_bytes(), self._pinned or self.calibrated())
            self._kept_groups = len(self.packer.groups)
        try:
            outcomes = jobs.outcomes(pubs)
        finally:
            self._settle(jobs)
        both = zip(pubs, outcomes, strict=True)
        return [[found[register.name] for register in pub.circuit.cregs] for pub, found in both]

    def _settle(self, jobs: Jobs) -> None:
        self._totals[jobs.activity.name] = jobs.journal.totals(jobs.activity)
        self.billed, self.estimated, self.submissions = (sum(one) for one in zip(*self._totals.values(), strict=True))
        self.notices += [n for n in jobs.notices if n not in self.notices]
        jobs.notices = []
        if self.notices:
            self.notice = "; ".join(self.notices)

    def configure(self, sampler: Any) -> None:
        options, sequence = sampler.options, self.options["dynamical_decoupling"]
        if sequence:
            options.dynamical_decoupling.enable = True
            options.dynamical_decoupling.sequence_type = "XpXm" if sequence is True else sequence
        options.twirling.enable_gates = bool(self.options["twirl_gates"])
        options.twirling.enable_measure = bool(self.options["twirl_measure"])
        if self.options["rep_delay"] is not None:
            options.execution.rep_delay = self.options["rep_delay"]


class Place:
    """Where jobs go: a device of the client, of an account (None in the local testing mode), in a mode.

    ``auto`` takes a session where the plan has them, else a batch; after ``max_time`` seconds, where given, the service
    closes it.
    """

    def __init__(self, account: Account | None, device: Any, mode: str, max_time: int | None = None) -> None:
        self.account, self._device, self.asked, self.max_time = account, device, mode, max_time
        self._generation = account.generation if account is not None else 0
        self.plan = account.plan if account is not None else "local testing mode"
        by_plan = "batch" if self.plan in ("open", "unknown") else "session"
        self.mode = "job" if account is None else by_plan if mode == "auto" else mode
        self._object: Any = None
        self._checked = False

    @property
    def device(self) -> Any:
        if self.account is not None and self._generation != self.account.generation:
            kind, identity, service = type(self._object), self.session_id, self.account.service
            self._generation, self._device = self.account.generation, service.backend(self.name)
            if identity is not None:
                self._object = kind.from_id(identity, service)
        return self._device

    @property
    def name(self) -> str:
        return str(self._device.name)

    @property
    def session_id(self) -> str | None:
        return getattr(self._object, "session_id", None)

    def describe(self) -> str:
        return f"{self.name} ({self.plan} plan, {self.mode})" if self.account is not None else f"{self.name} (local)"

    def check(self) -> None:
        """Whether the device takes jobs and runs them. Raises UserError: it is offline, or its queue is closed."""
        if self.account is None or self._checked:
            return
        status = self.account.ask(lambda: self.device.status(), f"asking for the status of {self.name}")
        if not status.operational:
            way = "--backend ibm_least_busy takes one that is online, and --resume continues here later"
            raise UserError(f"--backend: {self.name} is offline; {way}")
        if status.status_msg not in ("active", "", None):
            what = f"--backend: the queue of {self.name} is closed (its status is {status.status_msg!r})"
            way = "take another (--backend ibm_least_busy) or resume later with --resume"
            raise UserError(f"{what}; {way}")
        self._checked = True

    def mode_object(self) -> Any:
        """What a primitive takes as its mode. Raises UserError: the device takes no jobs, the plan no sessions."""
        self.check()
        device = self.device
        if self.mode == "job":
            return device
        self._object = self._object or self._open()
        return self._object

    def _open(self) -> Any:
        from qiskit_ibm_runtime import Batch, Session

        kind = Session if self.mode == "session" else Batch
        assert self.account is not None
        for tries in range(1, 5):
            try:
                with warnings.catch_warnings(action="ignore"):
                    return kind(self.device, max_time=self.max_time)
            except Exception as error:
                found = classify(error)
                if found == "no_sessions" and self.asked == "auto":
                    self.mode = "batch"
                    return self._open()
                if found == "no_sessions":
                    what = f"the account's plan ({self.plan}) has no sessions on {self.name}"
                    raise UserError(f"--mode: {what}; use --mode batch") from None
                if found == "unauthorized" and tries < 3:
                    self.account.connect()
                # an empty session costs nothing: one that was opened twice is closed by the service
                elif found in ("server", "lost", "unreachable", "busy") and tries < 4:
                    time.sleep(0.5 * 2**tries)
                else:
                    raise UserError(explain(error, f"opening a {self.mode} on {self.name}")) from None
        raise AssertionError("the last try returns or raises")

    def accepting(self) -> bool:
        with suppress(Exception):  # also where there is no session, or none that says
            return bool(self._object.details().get("accepting_jobs", True))
        return True

    def renew(self) -> None:
        self._object = None

    def close(self) -> None:
        """Take no more jobs in the session; those in it are run."""
        if self._object is not None:
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                self._object.close()
            self._object = None
