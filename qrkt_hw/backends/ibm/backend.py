"""IBM Quantum as a backend: packed circuits, sampled by the service, nothing paid for twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Backend, Call, Gradient
from qrkt_hw.backends.device.measurement import bases
from qrkt_hw.backends.device.splitting import JobLimits
from qrkt_hw.backends.schema import IBMEntry
from qrkt_hw.errors import UserError

PLAIN = {"dynamical_decoupling": False, "twirl_gates": False, "twirl_measure": False}


def unavailable(entry: IBMEntry) -> str | None:
    """Why the entry cannot be used; None where it may be. Asks no network."""
    from qrkt_hw.backends.ibm.account import HOW, account_there, retired

    gone = retired(entry.name)
    if gone is not None or entry.name.startswith("fake_"):
        return gone
    return None if account_there() else f"no IBM Quantum account is found here; {HOW}"


def make(
    name: str, entry: IBMEntry, shots: int | None = None, gradient: Gradient | None = None, pack: bool | None = None
) -> IBMBackend:
    """The backend of an entry, signed in.

    Raises:
        UserError: no account, no network, a wrong key, no such device.
    """
    from qrkt_hw.backends.ibm.account import Account
    from qrkt_hw.backends.ibm.session import Place

    if shots == 0:
        raise UserError(f"--shots: {name} is a device and samples; give a number of shots")
    if entry.name.startswith("fake_"):
        from qrkt_hw.backends.device.devices import fake_device

        place = Place(None, fake_device(entry.name), "job")
    else:
        account = Account(entry.instance, entry.timeout, entry.patience)
        place = Place(account, account.device(entry.name), entry.mode, entry.max_time)
    return IBMBackend(name, entry, place, shots or entry.shots, gradient or entry.gradient, pack)


class IBMBackend(Backend):
    """A device of IBM Quantum, or a snapshot in the client's local testing mode.

    Args:
        name: of the backend.
        entry: its options.
        place: device and mode.
        shots: per circuit.
        gradient: how layers differentiate.
        pack: run copies side by side; None as the entry says. In local testing mode circuits are not packed: the
            client simulates the whole chip.
    """

    kind = "IBM Quantum"
    differentiable = False
    bills = True

    def __init__(
        self, name: str, entry: IBMEntry, place: Any, shots: int, gradient: Gradient, pack: bool | None = None
    ) -> None:
        super().__init__(name)
        self.entry, self.place = entry, place
        self.account = place.account
        self.shots, self.gradient, self.perturbation = shots, gradient, entry.perturbation
        self.packs = False if self.account is None else entry.pack if pack is None else pack
        self.target = place.device.target
        self.options: dict[str, Any] = {key: getattr(entry, key) for key in PLAIN}
        self.options["rep_delay"] = entry.rep_delay
        self.jobs: Any = None
        self._totals: dict[str, tuple[float, float, int]] = {}  # by activity: billed, estimated, jobs
        self.notices: list[str] = []
        self._packer: Any = None
        self._planned: set[CircuitTemplate] = set()
        self._pinned: str | None = None  # when the device was calibrated for the plan that goes on
        self._seconds: dict[int, tuple[Any, float]] = {}

    # what it cost: by the journal, so that what an earlier process paid for counts too --------------------------------
    @property
    def billed(self) -> float:
        """QPU seconds billed for everything that was opened here."""
        return sum(billed for billed, _, _ in self._totals.values())

    @property
    def estimated(self) -> float:
        """QPU seconds that the same jobs were estimated to take."""
        return sum(estimated for _, estimated, _ in self._totals.values())

    @property
    def submissions(self) -> int:
        """Jobs that were sent."""
        return sum(jobs for _, _, jobs in self._totals.values())

    # what it is ----------------------------------------------------------------------------------------------------
    @property
    def num_qubits(self) -> int:
        return int(self.target.num_qubits)

    @property
    def default_rep_delay(self) -> float:
        """Seconds between two executions."""
        if self.entry.rep_delay is not None:
            return self.entry.rep_delay
        return float(getattr(self.place.device, "default_rep_delay", None) or 250e-6)

    @property
    def job_limits(self) -> JobLimits:
        """What one job may hold."""
        return JobLimits(self.entry.largest_job, self.entry.largest_input, self.entry.longest_job)

    def properties(self) -> Any:
        """The device's calibration."""
        return self.place.device.properties()

    def calibrated(self) -> str | None:
        """When the device was calibrated, ISO 8601."""
        date = getattr(self.properties(), "last_update_date", None)
        return None if date is None else date.isoformat()

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

    def circuits_for(self, template: CircuitTemplate) -> int:
        return len(bases(template))

    @property
    def packer(self) -> Any:
        """Plans and packs circuits for this device."""
        if self._packer is None:
            self._packer = self._new_packer()
        return self._packer

    def _new_packer(self) -> Any:
        from qrkt_hw.backends.device.packing import Packer

        assert self.shots is not None  # a device always samples
        return Packer(
            self.target, device=self.place.name, level=self.entry.optimization_level, shots=self.shots, pack=self.packs,
            guard=self.entry.guard, quality=self.entry.quality, options=dict(self.options),
            mitigation=self.entry.mitigation == "mthree",
        )  # fmt: skip

    def seconds(self, work: Any) -> float:
        """QPU seconds of a work without the overhead of its job, by IBM's formula."""
        from qrkt_hw.backends.device.pricing import JOB_SECONDS, usage

        kept = self._seconds.get(id(work.circuit))
        if kept is None or kept[0] is not work.circuit:
            kept = (work.circuit, float(work.circuit.estimate_duration(self.target)))
            self._seconds[id(work.circuit)] = kept
        found = usage(work.executions, self.default_rep_delay, kept[1])
        return found.seconds - JOB_SECONDS * found.jobs

    # running -------------------------------------------------------------------------------------------------------
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
        """Hold journal, budget and session for many rounds.

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
        from qrkt_hw.backends.device.journal import Journal
        from qrkt_hw.backends.ibm.jobs import Jobs, Limits

        own = journal is None
        journal = journal or Journal(None)
        activity = activity or journal.start("run", self.place.name, {})
        budget = self.budget(budget)
        if self.account is not None and activity.device != self.place.name:
            if self.entry.name != "least_busy":
                raise UserError(
                    f"--backend: {self.name} is {self.place.name}, but what was begun ran on {activity.device}; name "
                    "the backend it was begun on, or begin anew with --restart"
                )
            self.place.move(activity.device)  # another is the least busy by now
            self.target, self._packer, self._planned = self.place.device.target, None, set()
        plan, calibrated = (None, None) if replan else journal.plan(activity)
        self._pinned = None if plan is None else calibrated
        if plan is not None:
            try:
                self._packer = self._new_packer().from_bytes(plan)
            except ValueError as error:
                raise UserError(
                    f"{journal.path}: the plan of what was begun is damaged ({error}); --resume --replan makes "
                    "a new one"
                ) from error
            if calibrated != self.calibrated():
                self.notices.append(
                    f"{self.place.name} was calibrated anew since this began; its pinned plan goes on (--replan makes "
                    "a new one)"
                )
        spent = journal.billed(activity)
        if budget is not None and spent:
            budget.charge(spent)
        entry = self.entry
        limits = Limits(entry.grace, entry.max_wait, entry.submissions_per_minute, self.job_limits)
        self.jobs = Jobs(
            self.account,
            self.place,
            journal,
            activity,
            budget,
            self.seconds,
            self._configure,
            limits,
            self._tell,
            resubmit,
        )
        self._settle()
        try:
            with self.reporting(progress):
                yield self
        finally:
            self.place.close()
            self._settle()
            self.jobs = None
            if own:
                journal.close()

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """See :meth:`Backend.run`.

        Raises:
            UserError: the device bills and :meth:`open` does not hold it, or a circuit is too large for it.
        """
        if self.jobs is None and self.account is not None:
            raise UserError(
                f"backend {self.name!r}: {self.place.name} bills what it runs; run it inside 'with backend.open():', "
                "with a journal if nothing is to be paid for twice and a budget if there is a limit"
            )
        if self.jobs is None:
            with self.open():
                return self.run(calls)
        started = time.perf_counter()
        for call in calls:
            if call.template.num_qubits > self.num_qubits:
                raise UserError(
                    f"--backend: {self.place.name} has {self.num_qubits} qubits; ansatz {call.template.name!r} takes "
                    f"{call.template.num_qubits}"
                )
        asked = [call for call in calls if call.samples]
        values = iter(self._evaluate(asked) if asked else [])
        found = [
            next(values) if call.samples else np.zeros((*call.values.shape[:-1], call.template.num_outputs))
            for call in calls
        ]
        self.counters.seconds += time.perf_counter() - started
        return found

    def _evaluate(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        works = self.packer.pack(calls)
        new = {call.template for call in calls} - self._planned
        if new:
            self.jobs.journal.keep_plan(self.jobs.activity, self.packer.to_bytes(), self._pinned or self.calibrated())
            self._planned |= new
        executions = self.counters.executions
        circuits = sum(call.samples * self.circuits_for(call.template) for call in calls)
        self.begin_round(circuits, [call.tag for call in calls])
        self.counters.executions = executions + sum(work.executions for work in works)  # wide ones
        try:
            outcomes = self.jobs.outcomes(works)
        finally:
            self._settle()
        return self.packer.values(calls, works, outcomes)

    def _settle(self) -> None:
        """Take over what was counted."""
        jobs = self.jobs
        self._totals[jobs.activity.name] = jobs.journal.totals(jobs.activity)
        self.notices += [n for n in jobs.notices if n not in self.notices]
        jobs.notices = []
        if self.notices:
            self.notice = "; ".join(self.notices)

    def _configure(self, sampler: Any) -> None:
        """The entry's options on a sampler."""
        options = sampler.options
        sequence = self.options["dynamical_decoupling"]
        if sequence:
            options.dynamical_decoupling.enable = True
            options.dynamical_decoupling.sequence_type = "XpXm" if sequence is True else sequence
        options.twirling.enable_gates = bool(self.options["twirl_gates"])
        options.twirling.enable_measure = bool(self.options["twirl_measure"])
        if self.options["rep_delay"] is not None:
            options.execution.rep_delay = self.options["rep_delay"]
