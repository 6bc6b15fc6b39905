"""IBM Quantum as a backend: packed circuits, sampled by the service, nothing paid for twice."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.backends.base import Backend, Call, Gradient
from qrkt_hw.backends.device.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.packing import Counts, Packer, counts_of
from qrkt_hw.backends.device.pipeline import DeviceBackend
from qrkt_hw.backends.device.pubs import PUB, JobLimits
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.entries import IBMEntry
from qrkt_hw.backends.ibm.account import Account, classify, explain
from qrkt_hw.backends.ibm.jobs import Jobs
from qrkt_hw.errors import UserError


def make(
    name: str, entry: IBMEntry, shots: int | None = None, gradient: Gradient | None = None, pack: bool | None = None
) -> IBMBackend:
    """The backend of an entry, signed in.

    Raises:
        UserError: no account, no network, a wrong key, no such device.
    """
    if shots == 0:
        raise UserError(f"--shots: {name} is a device and samples; give a number of shots")
    if entry.name.startswith("fake_"):
        place = Place(None, fake_device(entry.name), "job")
    else:
        account = Account(entry.instance, entry.timeout, entry.patience)
        place = Place(account, account.device(entry.name), entry.mode, entry.max_time)
    return IBMBackend(name, entry, place, shots or entry.shots, gradient or entry.gradient, pack)


class IBMBackend(DeviceBackend):
    """A device of IBM Quantum, or a fake backend in the client's local testing mode.

    Args:
        name: of the backend.
        entry: its options.
        place: device and mode.
        shots: per circuit.
        gradient: how layers differentiate.
        pack: run replicas side by side; None as the entry says. In local testing mode circuits are not packed: the
            client simulates the whole chip.
    """

    kind = "IBM Quantum"
    bills = True

    def __init__(
        self, name: str, entry: IBMEntry, place: Place, shots: int, gradient: Gradient, pack: bool | None = None
    ) -> None:
        super().__init__(name)
        self.entry, self.place, self.account = entry, place, place.account
        self.shots, self.gradient, self.perturbation = shots, gradient, entry.perturbation
        self.packs = False if self.account is None else entry.pack if pack is None else pack
        self.options = {key: getattr(entry, key) for key in ("dynamical_decoupling", "twirl_gates", "twirl_measure")}
        self.options["rep_delay"] = entry.rep_delay
        self.job_limits = JobLimits(entry.largest_job, entry.largest_input, entry.longest_job)
        self.jobs: Jobs | None = None
        self._totals: dict[str, tuple[float, float, int]] = {}  # by activity: billed, estimated, jobs
        self.notices: list[str] = []
        self._use_device()

    def _use_device(self) -> None:
        """Plan anew for the device in use."""
        self.target = self.place.device.target
        self.packer = Packer(
            self.target, device=self.place.name, level=self.entry.optimization_level, shots=self.shots or 0,
            pack=self.packs, spacing=self.entry.spacing, min_fidelity=self.entry.min_fidelity,
            options=dict(self.options), mitigation=self.entry.mitigation == "mthree",
        )  # fmt: skip
        self._kept_groups, self._pinned = 0, None  # groups in the kept plan; the calibration it was made with

    # what it cost: by the journal, so that what an earlier process paid for counts too --------------------------------
    @property
    def billed(self) -> float:
        """QPU seconds billed for everything that was opened here."""
        return sum(billed for billed, _, _ in self._totals.values())

    @property
    def estimated(self) -> float:  # type: ignore[override]
        """QPU seconds that the same jobs were estimated to take."""
        return sum(estimated for _, estimated, _ in self._totals.values())

    @property
    def submissions(self) -> int:
        """Jobs that were sent."""
        return sum(jobs for _, _, jobs in self._totals.values())

    # what it is ------------------------------------------------------------------------------------------------------
    @property
    def device(self) -> Any:  # type: ignore[override]
        """The client's device."""
        return self.place.device

    @property
    def default_rep_delay(self) -> float:
        return super().default_rep_delay if self.entry.rep_delay is None else self.entry.rep_delay

    def about(self) -> dict[str, Any]:
        found = super().about()
        found.update(
            device=self.place.name, qubits=self.num_qubits, calibrated=self.calibrated(), plan=self.place.plan,
            mode=self.place.mode, jobs=self.submissions, estimated_seconds=round(self.estimated, 3),
            billed_seconds=round(self.billed, 3), **{k: v for k, v in self.options.items() if v},
        )  # fmt: skip
        if self.notices:
            found["notices"] = list(self.notices)
        return found

    # running ---------------------------------------------------------------------------------------------------------
    @contextmanager
    def open(
        self,
        journal: Any = None,
        budget: Any = None,
        progress: Callable[[str], None] | None = None,
        *,
        activity: Any = None,
        resubmit: bool = False,
        replan: bool = False,
    ) -> Iterator[Backend]:
        """Hold journal, budget and session for many circuit batches.

        Args:
            journal: a :class:`qrkt_hw.backends.device.journal.Journal`; None keeps one in memory.
            budget: admits every job and is charged with its bill; None takes the entry's ``max_seconds``.
            progress: is told what is being waited for.
            activity: of the journal; None starts one.
            resubmit: send again what is held.
            replan: let go of the plan that was pinned.

        Raises:
            UserError: the activity is another device's, or its plan is damaged.
        """
        own = journal is None
        journal = journal or Journal(None)
        activity = activity or journal.start("run", self.place.name, {})
        budget = Budget.of(self, budget)
        if self.account is not None and activity.device != self.place.name:
            if self.entry.name != "least_busy":
                raise UserError(
                    f"--backend: {self.name} is {self.place.name}, but what was begun ran on {activity.device}; name "
                    "the backend it was begun on, or begin anew with --restart"
                )
            self.place.move(activity.device)  # another is the least busy by now
            self._use_device()
        plan, calibrated = (None, None) if replan else journal.plan(activity)
        self._kept_groups, self._pinned = 0, None if plan is None else calibrated
        if plan is not None:
            try:
                self._use_device()
                self.packer.from_bytes(plan)
            except ValueError as error:
                raise UserError(
                    f"{journal.path}: the plan of what was begun is damaged ({error}); --resume --replan makes "
                    "a new one"
                ) from error
            self._pinned = calibrated
            if calibrated != self.calibrated():
                self.notices.append(
                    f"{self.place.name} was calibrated anew since this began; its pinned plan is kept (--replan makes "
                    "a new one)"
                )
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
        """See :meth:`Backend.run`.

        Raises:
            UserError: the device bills and :meth:`open` does not hold it, or a circuit is too large for it.
        """
        if self.jobs is not None:
            return super().run(calls)
        if self.account is not None:
            raise UserError(
                f"backend {self.name!r}: {self.place.name} bills what it runs; run it inside 'with backend.open():', "
                "with a journal if nothing is to be paid for twice and a budget if there is a limit"
            )
        with self.open():
            return super().run(calls)

    def submit(self, pubs: Sequence[PUB]) -> list[list[Counts]]:
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
        return [
            [counts_of(registers[f"c{place}"]) for place in range(len(pub.slots))]
            for pub, registers in zip(pubs, outcomes, strict=True)
        ]

    def _settle(self, jobs: Jobs) -> None:
        """Take over what was counted."""
        self._totals[jobs.activity.name] = jobs.journal.totals(jobs.activity)
        self.notices += [n for n in jobs.notices if n not in self.notices]
        jobs.notices = []
        if self.notices:
            self.notice = "; ".join(self.notices)

    def configure(self, sampler: Any) -> None:
        """Set the entry's options on a sampler."""
        options = sampler.options
        sequence = self.options["dynamical_decoupling"]
        if sequence:
            options.dynamical_decoupling.enable = True
            options.dynamical_decoupling.sequence_type = "XpXm" if sequence is True else sequence
        options.twirling.enable_gates = bool(self.options["twirl_gates"])
        options.twirling.enable_measure = bool(self.options["twirl_measure"])
        if self.options["rep_delay"] is not None:
            options.execution.rep_delay = self.options["rep_delay"]


class Place:
    """Where jobs go.

    Args:
        account: signed in; None in the client's local testing mode.
        device: of the client.
        mode: ``auto`` takes a session where the plan has them, else a batch.
        max_time: seconds after which the service closes the session; None leaves that to the service.
    """

    def __init__(
        self,
        account: Account | None,
        device: Any,
        mode: Literal["job", "batch", "session", "auto"],
        max_time: int | None = None,
    ) -> None:
        self.account, self._device, self.asked, self.max_time = account, device, mode, max_time
        self._generation = account.generation if account is not None else 0
        self.plan = account.plan if account is not None else "local testing mode"
        self.mode: str = mode
        if mode == "auto":
            self.mode = "batch" if self.plan in ("open", "unknown") else "session"
        if account is None:
            self.mode = "job"
        self._object: Any = None
        self._checked = False

    @property
    def device(self) -> Any:
        """The client's device, over the connection in use."""
        if self.account is not None and self._generation != self.account.generation:
            self.reconnect()
        return self._device

    def move(self, name: str) -> None:
        """To another device."""
        assert self.account is not None
        self._device, self._object, self._checked = self.account.device(name), None, False

    @property
    def name(self) -> str:
        """Of the device."""
        return str(self._device.name)

    @property
    def session_id(self) -> str | None:
        """Of the session or batch in use."""
        return getattr(self._object, "session_id", None)

    def describe(self) -> str:
        """Device, plan and mode in a few words."""
        return f"{self.name} ({self.plan} plan, {self.mode})" if self.account is not None else f"{self.name} (local)"

    def check(self) -> None:
        """Whether the device takes jobs and runs them.

        Raises:
            UserError: it is offline, or its queue is closed.
        """
        if self.account is None or self._checked:
            return
        status = self.account.ask(lambda: self.device.status(), f"asking for the status of {self.name}")
        if not status.operational:
            raise UserError(
                f"--backend: {self.name} is offline; --backend ibm_least_busy takes one that is online, and --resume "
                "goes on here later"
            )
        if status.status_msg not in ("active", "", None):
            raise UserError(
                f"--backend: the queue of {self.name} is closed (its status is {status.status_msg!r}); take another "
                "(--backend ibm_least_busy) or go on later with --resume"
            )
        self._checked = True

    def mode_object(self) -> Any:
        """What a primitive takes as its mode; opened on first use.

        Raises:
            UserError: the device takes no jobs, or the plan has no sessions.
        """
        self.check()
        device = self.device
        if self.mode == "job" or self.account is None:
            return device
        if self._object is None:
            self._object = self._open()
        return self._object

    def _open(self) -> Any:
        from qiskit_ibm_runtime import Batch, Session

        kind = Session if self.mode == "session" else Batch
        assert self.account is not None
        for tries in range(1, 5):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return kind(self.device, max_time=self.max_time)
            except Exception as error:
                found = classify(error)
                if found == "no_sessions" and self.asked == "auto":
                    self.mode = "batch"
                    return self._open()
                if found == "no_sessions":
                    raise UserError(
                        f"--mode: the account's plan ({self.plan}) has no sessions on {self.name}; use --mode batch"
                    ) from None
                if found == "unauthorized" and tries < 3:
                    self.account.connect()
                # an empty session costs nothing: one that was opened twice is closed by the service
                elif found in ("server", "lost", "unreachable", "busy") and tries < 4:
                    time.sleep(0.5 * 2**tries)
                else:
                    raise UserError(explain(error, f"opening a {self.mode} on {self.name}")) from None
        raise AssertionError("the last try returns or raises")

    def accepting(self) -> bool:
        """Whether the session or batch in use still takes jobs; yes where none is in use."""
        if self._object is None or self.account is None:
            return True
        details = None
        with suppress(Exception):
            details = self._object.details()
        return bool(details.get("accepting_jobs", True)) if details else True

    def renew(self) -> None:
        """Let the closed session go; the next use opens a new one."""
        self._object = None

    def reconnect(self) -> None:
        """After signing in anew: the device and session by their names, over the new connection."""
        assert self.account is not None
        kind, identity = type(self._object), self.session_id
        self._generation = self.account.generation
        self._device = self.account.service.backend(self.name)
        if identity is not None:
            self._object = kind.from_id(identity, self.account.service)

    def close(self) -> None:
        """Take no more jobs in the session; those in it go on."""
        if self._object is not None:
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._object.close()
            self._object = None
