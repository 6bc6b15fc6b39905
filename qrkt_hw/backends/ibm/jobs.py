"""From works to jobs of the service and back: journalled, throttled, searched for when an answer is lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from qiskit.primitives import BitArray

from qrkt_hw.backends.device.journal import Activity, Journal, Submission
from qrkt_hw.backends.device.splitting import JobLimits, Load, parts, together
from qrkt_hw.backends.device.work import Work
from qrkt_hw.backends.ibm.account import Account
from qrkt_hw.backends.ibm.errors import classify, explain, reason, redacted
from qrkt_hw.backends.ibm.session import Place
from qrkt_hw.errors import UserError

AGAIN = 2  # times a job that failed on the service, for no fault of ours, is sent again


@dataclass(frozen=True)
class Limits:
    """How patient and how careful.

    Attributes:
        grace: seconds for which a job without an answer is searched for by its tag.
        max_wait: seconds after which waiting for a job is given up; the job goes on.
        per_minute: submissions.
        job: what one job may hold.
    """

    grace: float = 60.0
    max_wait: float = 86_400.0
    per_minute: int = 5
    job: JobLimits = field(default_factory=JobLimits)


@dataclass
class Pending:
    """A submission under way with its works."""

    submission: Submission
    works: list[Work]
    job: Any = None
    generation: int = -1


class Jobs:
    """Submits works and brings back their outcomes.

    Args:
        account: signed in; None in the client's local testing mode.
        place: device and mode.
        journal, activity: where everything is written down.
        budget: admits and is charged; None for no limit.
        seconds: QPU seconds that a work is estimated to take, without the overhead of a job.
        options: of the sampler: ``(sampler) -> None``.
        limits: see :class:`Limits`.
        tell: is told what is being waited for.
        resubmit: send again what is held.
    """

    def __init__(
        self,
        account: Account | None,
        place: Place,
        journal: Journal,
        activity: Activity,
        budget: Any,
        seconds: Callable[[Work], float],
        options: Callable[[Any], None],
        limits: Limits,
        tell: Callable[[str], None],
        resubmit: bool = False,
    ) -> None:
        self.account, self.place, self.journal, self.activity = account, place, journal, activity
        self.budget, self.seconds, self.options, self.limits = budget, seconds, options, limits
        self.tell, self.resubmit = tell, resubmit
        self.sent: deque[float] = deque()
        self.notices: list[str] = []

    # a round -------------------------------------------------------------------------------------------------------
    def outcomes(self, works: Sequence[Work]) -> list[dict[str, BitArray]]:
        """Raw outcomes of works, in order: kept ones, those of jobs under way, and new ones.

        Raises:
            UserError: the budget, the account or the service ends it; what came back is kept.
        """
        cut = [self._parts(work) for work in works]
        keys = {part.key: part for pieces in cut for part in pieces}
        missing = [w for w in keys.values() if self._kept(w) is None]
        pending = self._adopted(missing)
        under_way = {key for p in pending for key in p.submission.keys}
        fresh = [self._intend(group) for group in self._groups([w for w in missing if w.key not in under_way])]
        try:
            for one in fresh:
                self._admit(one)
                self._send(one)
                pending.append(one)
        except UserError:
            # what is under way was paid for: bring it in before giving up
            if pending:
                with suppress(UserError):
                    self._await(pending, give_up=min(60.0, self.limits.max_wait))
            raise
        self._await(pending)
        self._look_for_copies(fresh)
        found = []
        for pieces in cut:
            own = [self._kept(piece) for piece in pieces]
            assert all(o is not None for o in own)
            found.append(_joined([o for o in own if o is not None]))
        return found

    def _kept(self, work: Work) -> dict[str, BitArray] | None:
        """The outcome in the journal; None where there is none yet."""
        outcome = self.journal.outcome(self.activity, work.key)
        if outcome is not None:
            _check(work, outcome, f"{self.journal.path} is damaged: the result of {work.key[:12]}")
        return outcome

    def _load(self, work: Work) -> Load:
        rows = len(work.values)
        each = self.seconds(work) / max(1, rows)
        return Load(rows, work.shots, work.values.shape[1], len(work.circuit.data), each)

    def _parts(self, work: Work) -> list[Work]:
        """The work, or pieces of its rows that each fit into a job."""
        cut = parts(len(work.values), self._load(work).most_rows(self.limits.job))
        return [work] if len(cut) == 1 else [replace(work, values=work.values[part]) for part in cut]

    def _groups(self, works: Sequence[Work]) -> list[list[Work]]:
        """Works that go as one job."""
        return [[works[k] for k in group] for group in together([self._load(w) for w in works], self.limits.job)]

    def _intend(self, works: list[Work]) -> Pending:
        from qrkt_hw.backends.device.pricing import JOB_SECONDS

        estimated = JOB_SECONDS + sum(self.seconds(w) for w in works)
        executions = sum(w.executions for w in works)
        keys = [w.key for w in works]
        # one that was intended and never sent needs no second line
        for old in self.journal.submissions(self.activity, ["planned"]):
            if set(old.keys) & set(keys):
                self.journal.mark(old, "failed", remark="planned anew")
        return Pending(self.journal.intend(self.activity, self.place.name, keys, executions, estimated), works)

    def _admit(self, one: Pending) -> None:
        if self.budget is not None:
            self.budget.admit(one.submission.estimated)

    # what is known from before -------------------------------------------------------------------------------------
    def _adopted(self, works: Sequence[Work]) -> list[Pending]:
        """Jobs of an earlier process that hold some of these works."""
        by_key = {w.key: w for w in works}
        found = []
        for submission in self.journal.submissions(self.activity, ["submitting", "submitted", "held"]):
            if not set(submission.keys) & set(by_key):
                continue
            if submission.state != "submitted":
                job = self._search(submission, self.limits.grace if submission.state == "submitting" else 1.0)
                if job is not None:
                    submission = self.journal.mark(submission, "submitted", job=job, remark="found by its tag")
                elif self.resubmit:
                    self.journal.mark(submission, "failed", remark="sent again by --resubmit")
                    continue
                else:
                    submission = self.journal.mark(submission, "held")
                    raise UserError(self._held(submission))
            found.append(Pending(submission, [by_key[k] for k in submission.keys if k in by_key]))
        return found

    def _held(self, submission: Submission) -> str:
        return (
            f"a job for {self.place.name} ({submission.executions:,} executions, about {submission.estimated:.0f} QPU "
            f"seconds) was sent, no answer came, and the service does not find it by its tag {submission.tag}: it is "
            "held, and not sent again by itself; qrkt-hw jobs adopt RUN looks for it later, and --resume --resubmit "
            "sends it anew"
        )

    def _search(self, submission: Submission, grace: float) -> str | None:
        """The id of the job with the submission's tag, searched for during ``grace`` seconds.

        Raises:
            UserError: the service cannot be asked.
        """
        account = self.account
        if account is None:
            return None
        deadline, pause = time.monotonic() + grace, 0.3
        while True:
            jobs = account.ask(
                lambda: account.service.jobs(job_tags=[submission.tag], limit=5), "searching for a job by its tag"
            )
            if jobs:
                return str(sorted(jobs, key=lambda j: str(j.creation_date))[0].job_id())
            if time.monotonic() >= deadline:
                return None
            self.tell(f"{self.place.describe()}: searching for a job whose answer was lost")
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, 10.0)

    # sending -------------------------------------------------------------------------------------------------------
    def _send(self, one: Pending) -> None:
        """Submit; on return the job's id is in the journal.

        Raises:
            UserError: refused, or held because no answer came and no job is found.
        """
        account, submission = self.account, one.submission
        pause, deadline = 0.5, time.monotonic() + (account.patience if account else 0.0)
        renewed = 0
        while True:
            self._throttle()
            mode = self.place.mode_object()
            submission = self.journal.mark(submission, "submitting", session=self.place.session_id)
            try:
                job = self._run(mode, submission, one.works)
            except UserError:
                self.journal.mark(submission, "failed", remark="not sent")
                raise
            except Exception as error:
                kind = classify(error)
                if kind == "session" and renewed < 3:
                    renewed += 1
                    self.place.renew()
                    self.notices.append(f"{self.place.mode} was closed by the service; a new one was opened")
                    continue
                if kind == "unauthorized" and account is not None and renewed < 3:
                    renewed += 1
                    account.connect()
                    continue
                if kind in ("unreachable", "busy") and time.monotonic() + pause < deadline:
                    self.tell(f"{self.place.describe()}: waiting to submit ({kind})")
                    time.sleep(pause)
                    pause = min(2 * pause, 15.0)
                    continue
                if kind in ("lost", "server"):
                    found = self._search(submission, self.limits.grace)
                    if found is None:
                        submission = self.journal.mark(submission, "held", remark="no answer to the submission")
                        raise UserError(self._held(submission)) from None
                    self.notices.append(f"the answer to a submission was lost; job {found} was found by its tag")
                    one.submission = self.journal.mark(submission, "submitted", job=found, remark="found by its tag")
                    return
                self.journal.mark(submission, "failed", remark=redacted(reason(error)))
                raise UserError(explain(error, f"submitting to {self.place.name}")) from None
            one.job, one.generation = job, account.generation if account else 0
            one.submission = self.journal.mark(submission, "submitted", job=str(job.job_id()))
            return

    def _run(self, mode: Any, submission: Submission, works: Sequence[Work]) -> Any:
        import warnings

        from qiskit_ibm_runtime.executor_sampler import Sampler

        sampler = Sampler(mode=mode)
        self.options(sampler)
        sampler.options.environment.job_tags = ["qrkt-hw", f"qrkt-run-{self.activity.name}", submission.tag]
        limit = self._time_limit(submission)
        if limit is not None:
            sampler.options.max_execution_time = limit
        pubs = [(w.circuit, w.values) for w in works]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sampler.run(pubs, shots=works[0].shots)

    def _time_limit(self, submission: Submission) -> int | None:
        """The budget's rest as the service's own limit."""
        left = None if self.budget is None else self.budget.left
        if left is None or not np.isfinite(left):
            return None
        return max(1, int(np.ceil(left)))

    def _throttle(self) -> None:
        if self.account is None:
            return
        while len(self.sent) >= self.limits.per_minute and time.monotonic() - self.sent[0] < 60:
            self.tell(f"{self.place.describe()}: {self.limits.per_minute} submissions a minute are allowed; waiting")
            time.sleep(min(1.0, 60.01 - (time.monotonic() - self.sent[0])))
        while self.sent and time.monotonic() - self.sent[0] >= 60:
            self.sent.popleft()
        self.sent.append(time.monotonic())

    # waiting -------------------------------------------------------------------------------------------------------
    def _await(self, pending: Sequence[Pending], give_up: float | None = None) -> None:
        """Until all are done and written down."""
        started, pause = time.monotonic(), 0.2
        open_ = list(pending)
        tries: dict[str, int] = {}
        while open_:
            for one in list(open_):
                state, why, code = self._state(one)
                if state == "DONE":
                    self._bring_in(one)
                    open_.remove(one)
                elif state in ("ERROR", "CANCELLED"):
                    open_.remove(one)
                    again = self._ended_badly(one, state, why, code, tries)
                    if again is not None:
                        open_.append(again)
            if not open_:
                return
            waited = time.monotonic() - started
            if waited > (self.limits.max_wait if give_up is None else give_up):
                raise UserError(
                    f"job {open_[0].submission.job} on {self.place.name} is not done after {waited:.0f} s; it goes on "
                    "there, and --resume takes its result when it is (qrkt-hw jobs cancel RUN stops it)"
                )
            time.sleep(pause)
            pause = min(1.3 * pause, 10.0)

    def _state(self, one: Pending) -> tuple[str, str, int | None]:
        account = self.account
        if account is None:
            return str(getattr(one.job.status(), "name", one.job.status())), "", None

        def look() -> tuple[str, str, int | None]:
            job = self._job(one)
            status = str(job.status())
            if status in ("ERROR", "CANCELLED"):
                return status, str(job.error_message() or ""), getattr(job, "_reason_code", None)
            if status in ("QUEUED", "INITIALIZING"):
                position = job.metrics().get("position_in_queue")
                self.tell(f"{self.place.describe()}: job {one.submission.job} queued"
                          + (f", position {position}" if position is not None else "") + self._age(one))  # fmt: skip
            elif status == "RUNNING":
                self.tell(f"{self.place.describe()}: job {one.submission.job} running" + self._age(one))
            return status, "", None

        return account.ask(look, f"asking for job {one.submission.job}")

    def _job(self, one: Pending) -> Any:
        """The client's job, over the connection in use."""
        account = self.account
        if account is not None and (one.job is None or one.generation != account.generation):
            one.job, one.generation = account.service.job(one.submission.job), account.generation
        return one.job

    def _age(self, one: Pending) -> str:
        return f", {time.time() - one.submission.created:.0f} s"

    def _bring_in(self, one: Pending) -> None:
        """Download, check, write down, charge."""
        if self.account is None:
            result, billed = one.job.result(), 0.0
        else:
            result = self.account.ask(lambda: self._job(one).result(), f"downloading job {one.submission.job}")
            billed = self._bill(one)
        outcomes = [dict(pub.data.items()) for pub in result]
        if len(outcomes) != len(one.submission.keys):
            raise UserError(f"job {one.submission.job} holds {len(outcomes)} results, not {len(one.submission.keys)}")
        by_key = {w.key: w for w in one.works}
        for key, outcome in zip(one.submission.keys, outcomes, strict=True):
            work = by_key.get(key)
            if work is not None:
                _check(work, outcome, f"job {one.submission.job}: its result")
        one.submission = self.journal.done(one.submission, outcomes, billed)
        if self.budget is not None:
            self.budget.charge(billed)

    def _bill(self, one: Pending) -> float:
        """QPU seconds charged; the estimate where the service has not counted within some seconds."""
        assert self.account is not None
        deadline = time.monotonic() + 10
        while True:
            metrics = self.account.ask(
                lambda: self._job(one).metrics(), f"asking for the bill of job {one.submission.job}"
            )
            usage = metrics.get("usage", {})
            seconds = usage.get("qpu_charge_time_seconds")
            if usage.get("status") != "pending" and seconds is not None:
                return float(seconds)
            if time.monotonic() > deadline:
                self.notices.append(f"job {one.submission.job} is not billed yet; its estimate stands for the bill")
                return one.submission.estimated
            time.sleep(0.5)

    def _ended_badly(
        self, one: Pending, state: str, why: str, code: int | None, tries: dict[str, int]
    ) -> Pending | None:
        """Write it down; a new submission where the failure is the service's own, else an error."""
        why = redacted(" ".join(why.split()))[:200]
        billed = self._bill(one)
        if self.budget is not None:
            self.budget.charge(billed)
        job, where = one.submission.job, self.place.name
        self.journal.mark(one.submission, "failed", billed=billed, remark=why or state.lower())
        closed = state == "CANCELLED" and (code in (1217,) or not self.place.accepting())
        key = one.submission.keys[0]
        if (closed or (state == "ERROR" and code is not None and code >= 8000)) and tries.get(key, 0) < AGAIN:
            tries[key] = tries.get(key, 0) + 1
            if closed:
                self.place.renew()
            reason_given = f"was cancelled with its {self.place.mode}" if closed else f"failed on the service ({why})"
            self.notices.append(f"job {job} {reason_given}, {billed:.1f} s billed; its circuits were sent again")
            again = self._intend(one.works)
            self._admit(again)
            self._send(again)
            return again
        if code == 1305:
            raise UserError(
                f"job {job} on {where} was stopped by the service at its time limit ({billed:.0f} QPU seconds billed); "
                "raise --max-qpu-seconds, or use fewer shots or images, and go on with --resume"
            )
        if state == "CANCELLED":
            raise UserError(f"job {job} on {where} was cancelled; --resume sends its circuits again")
        raise UserError(f"job {job} failed on {where}: {why or 'no reason given'}; --resume sends its circuits again")

    # afterwards ----------------------------------------------------------------------------------------------------
    def _look_for_copies(self, fresh: Sequence[Pending]) -> None:
        """Jobs with our tags that we do not know of: cancelled, and told."""
        account = self.account
        if account is None or not fresh:
            return
        known = {s.job for s in self.journal.submissions(self.activity)}
        tag = f"qrkt-run-{self.activity.name}"
        jobs = account.ask(lambda: account.service.jobs(job_tags=[tag], limit=20), "looking for copies of jobs")
        for job in jobs:
            if str(job.job_id()) not in known:
                with suppress(Exception):
                    job.cancel()
                self.notices.append(
                    f"the service holds job {job.job_id()}, a copy of a submission of ours; it was told to cancel it, "
                    "and may bill it"
                )


def _joined(outcomes: Sequence[dict[str, BitArray]]) -> dict[str, BitArray]:
    if len(outcomes) == 1:
        return outcomes[0]
    return {
        name: BitArray(np.concatenate([o[name].array for o in outcomes]), bits.num_bits)
        for name, bits in outcomes[0].items()
    }


def _check(work: Work, outcome: dict[str, BitArray], where: str) -> None:
    """A result must be of the shape that was asked for.

    Raises:
        UserError: it is not; nothing of it is used.
    """
    for register in work.circuit.cregs:
        bits = outcome.get(register.name)
        # twirling rounds shots up to whole randomizations
        twirled = any(work.options.get(key) for key in ("twirl_gates", "twirl_measure"))
        if (
            bits is None
            or bits.shape != (len(work.values),)
            or bits.num_bits != len(register)
            or bits.num_shots < work.shots
            or (bits.num_shots > work.shots and not twirled)
        ):
            raise UserError(f"{where} for register {register.name} is not what was asked for; not used")
