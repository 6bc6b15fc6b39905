"""From PUBs to jobs of the service and back: journalled, throttled, searched for when an answer is lost."""

import math
import time
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from qiskit.primitives import BitArray

from qrkt_hw.backends.budget import JOB_SECONDS, Budget
from qrkt_hw.backends.device.journal import Activity, Journal, Submission
from qrkt_hw.backends.device.pubs import PUB, parts, together
from qrkt_hw.backends.ibm.account import classify, explain, reason, redacted
from qrkt_hw.errors import UserError

AGAIN = 2  # times a job that failed on the service, for no fault of ours, is sent again


@dataclass
class Pending:
    """A submission under way with its PUBs."""

    submission: Submission
    pubs: list[PUB]
    job: Any = None
    generation: int = -1
    again: int = 0  # times it was sent again


class Jobs:
    """Submits PUBs of the IBM backend, whose account is None in the client's local testing mode, and gets outcomes.

    Everything is written down in ``journal`` under ``activity``; ``budget`` (None: no limit) admits and is charged;
    ``resubmit`` sends again what is held.
    """

    def __init__(
        self, backend: Any, journal: Journal, activity: Activity, budget: Budget | None, resubmit: bool = False
    ) -> None:
        self.account, self.place, self.configure = backend.account, backend.place, backend.configure
        self.entry, self.limits, self.rep_delay = backend.entry, backend.job_limits, backend.default_rep_delay
        self.journal, self.activity, self.budget = journal, activity, budget or Budget()
        self.tell, self.resubmit = backend._tell, resubmit
        self.sent: deque[float] = deque()
        self.notices: list[str] = []

    def outcomes(self, pubs: Sequence[PUB]) -> list[dict[str, BitArray]]:
        """Raw outcomes of PUBs, in order: kept ones, those of jobs under way, and new ones.

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
            # what is under way was paid for: bring it in before giving up
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
        estimated = JOB_SECONDS + sum(pub.seconds(self.rep_delay) for pub in pubs)
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
            if self.account is None:
                self.journal.mark(submission, "failed", remark="it ended with its process")
                continue
            if submission.state != "submitted":
                job = self._search(submission, self.entry.grace if submission.state == "submitting" else 1.0)
                if job is not None:
                    submission = self.journal.mark(submission, "submitted", job=job, remark="found by its tag")
                elif self.resubmit:
                    self.journal.mark(submission, "failed", remark="sent again by --resubmit")
                    continue
                else:
                    raise self._hold(submission)
            found.append(Pending(submission, [by_key[k] for k in submission.keys if k in by_key]))
        return found

    def _hold(self, submission: Submission, remark: str | None = None) -> UserError:
        self.journal.mark(submission, "held", remark=remark)
        return UserError(
            f"a job for {self.place.name} ({submission.executions:,} executions, about {submission.estimated:.0f} QPU "
            f"seconds) was sent, no answer came, and the service does not find it by its tag {submission.tag}: it is "
            "held, and not sent again by itself; qrkt-hw jobs adopt RUN looks for it later, and --resume --resubmit "
            "sends it anew"
        )

    def _search(self, submission: Submission, grace: float) -> str | None:
        """The id of the job with the submission's tag, searched for during ``grace`` seconds."""
        if self.account is None:
            return None
        deadline, pause = time.monotonic() + grace, 0.3
        while True:
            jobs = self._tagged(submission.tag, 5, "searching for a job by its tag")
            if jobs:
                return str(sorted(jobs, key=lambda j: str(j.creation_date))[0].job_id())
            if time.monotonic() >= deadline:
                return None
            self.tell(f"{self.place.describe()}: searching for a job whose answer was lost")
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, 10.0)

    def _send(self, one: Pending) -> None:
        """Submit; on return the job's id is in the journal. Raises UserError: refused, or held as no job is found."""
        account, submission = self.account, one.submission
        pause, deadline = 0.5, time.monotonic() + (account.patience if account else 0.0)
        renewed = 0
        while True:
            self._throttle()
            mode = self.place.mode_object()
            submission = self.journal.mark(submission, "submitting", session=self.place.session_id)
            try:
                job = self._run(mode, submission, one.pubs)
            except UserError:
                self.journal.mark(submission, "failed", remark="not sent")
                raise
            except Exception as error:
                kind = classify(error)
                if renewed < 3 and (kind == "session" or (kind == "unauthorized" and account is not None)):
                    renewed += 1
                    if kind == "session":
                        self.place.renew()
                        self.notices.append(f"{self.place.mode} was closed by the service; a new one was opened")
                    else:
                        account.connect()
                    continue
                if kind in ("unreachable", "busy") and time.monotonic() + pause < deadline:
                    self.tell(f"{self.place.describe()}: waiting to submit ({kind})")
                    time.sleep(pause)
                    pause = min(2 * pause, 15.0)
                    continue
                if kind in ("lost", "server"):
                    found = self._search(submission, self.entry.grace)
                    if found is None:
                        raise self._hold(submission, "no answer to the submission") from None
                    self.notices.append(f"the answer to a submission was lost; job {found} was found by its tag")
                    one.submission = self.journal.mark(submission, "submitted", job=found, remark="found by its tag")
                    return
                self.journal.mark(submission, "failed", remark=redacted(reason(error)))
                raise UserError(explain(error, f"submitting to {self.place.name}")) from None
            one.job, one.generation = job, account.generation if account else 0
            one.submission = self.journal.mark(submission, "submitted", job=str(job.job_id()))
            return

    def _run(self, mode: Any, submission: Submission, pubs: Sequence[PUB]) -> Any:
        from qiskit_ibm_runtime.executor_sampler import Sampler

        if self.account is not None:
            self.account.guard()
        sampler = Sampler(mode=mode)
        self.configure(sampler)
        sampler.options.environment.job_tags = ["qrkt-hw", f"qrkt-run-{self.activity.name}", submission.tag]
        if self.budget.left is not None and math.isfinite(self.budget.left):  # the rest as the service's own limit
            sampler.options.max_execution_time = max(1, math.ceil(self.budget.left))
        with warnings.catch_warnings(action="ignore"):
            return sampler.run([(pub.circuit, pub.values) for pub in pubs], shots=pubs[0].shots)

    def _throttle(self) -> None:
        if self.account is None:
            return
        most = self.entry.submissions_per_minute
        while len(self.sent) >= most and time.monotonic() - self.sent[0] < 60:
            self.tell(f"{self.place.describe()}: {most} submissions a minute are allowed; waiting")
            time.sleep(min(1.0, 60.01 - (time.monotonic() - self.sent[0])))
        while self.sent and time.monotonic() - self.sent[0] >= 60:
            self.sent.popleft()
        self.sent.append(time.monotonic())

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
                what = f"job {open_[0].submission.job} on {self.place.name} is not done after {waited:.0f} s"
                way = "it is not stopped, and --resume takes its result when it is (qrkt-hw jobs cancel RUN stops it)"
                raise UserError(f"{what}; {way}")
            if open_:
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
            state = {"QUEUED": "queued", "INITIALIZING": "queued", "RUNNING": "running"}.get(status)
            if state is not None:
                position = job.metrics().get("position_in_queue") if state == "queued" else None
                state += "" if position is None else f", position {position}"
                age = time.time() - one.submission.created
                self.tell(f"{self.place.describe()}: job {one.submission.job} {state}, {age:.0f} s")
            return status, "", None

        return account.ask(look, f"asking for job {one.submission.job}")

    def _job(self, one: Pending) -> Any:
        account = self.account
        if account is not None and (one.job is None or one.generation != account.generation):
            one.job, one.generation = account.service.job(one.submission.job), account.generation
        return one.job

    def _bring_in(self, one: Pending) -> None:
        if self.account is None:
            result, billed = one.job.result(), 0.0
        else:
            result = self.account.ask(lambda: self._job(one).result(), f"downloading job {one.submission.job}")
            billed = self._bill(one)
        outcomes = [dict(pub.data.items()) for pub in result]
        if len(outcomes) != len(one.submission.keys):
            raise UserError(f"job {one.submission.job} holds {len(outcomes)} results, not {len(one.submission.keys)}")
        by_key = {pub.key: pub for pub in one.pubs}
        for key, outcome in zip(one.submission.keys, outcomes, strict=True):
            if key in by_key:
                _check(by_key[key], outcome, f"job {one.submission.job}: its result")
        one.submission = self.journal.done(one.submission, outcomes, billed)
        self.budget.charge(billed)

    def _bill(self, one: Pending) -> float:
        """QPU seconds charged; the estimate where the service has not counted within some seconds."""
        assert self.account is not None
        deadline = time.monotonic() + 10
        while True:
            doing = f"asking for the bill of job {one.submission.job}"
            usage = self.account.ask(lambda: self._job(one).metrics(), doing).get("usage", {})
            seconds = usage.get("qpu_charge_time_seconds")
            if usage.get("status") != "pending" and seconds is not None:
                return float(seconds)
            if time.monotonic() > deadline:
                self.notices.append(f"job {one.submission.job} is not billed yet; its estimate stands for the bill")
                return one.submission.estimated
            time.sleep(0.5)

    def _ended_badly(self, one: Pending, state: str, why: str, code: int | None) -> Pending:
        """Write it down; a new submission where the failure is the service's own, else an error."""
        why = redacted(" ".join(why.split()))[:200]
        billed = self._bill(one)
        self.budget.charge(billed)
        job, where = one.submission.job, self.place.name
        self.journal.mark(one.submission, "failed", billed=billed, remark=why or state.lower())
        closed = state == "CANCELLED" and (code == 1217 or not self.place.accepting())
        if (closed or (state == "ERROR" and code is not None and code >= 8000)) and one.again < AGAIN:
            if closed:
                self.place.renew()
            reason_given = f"was cancelled with its {self.place.mode}" if closed else f"failed on the service ({why})"
            self.notices.append(f"job {job} {reason_given}, {billed:.1f} s billed; its circuits were sent again")
            again = replace(self._intend(one.pubs), again=one.again + 1)
            self.budget.admit(again.submission.estimated)
            self._send(again)
            return again
        if code == 1305:
            what = f"was stopped by the service at its time limit ({billed:.0f} QPU seconds billed)"
            way = "raise --max-qpu-seconds, or use fewer shots or images, and resume with --resume"
            raise UserError(f"job {job} on {where} {what}; {way}")
        failed = f"failed on {where}: {why or 'no reason given'}"
        ended = f"on {where} was cancelled" if state == "CANCELLED" else failed
        raise UserError(f"job {job} {ended}; --resume sends its circuits again")

    def _tagged(self, tag: str, most: int, doing: str) -> list[Any]:
        return self.account.ask(lambda: self.account.service.jobs(job_tags=[tag], limit=most), doing)

    def _look_for_copies(self, fresh: Sequence[Pending]) -> None:
        """Jobs with our tags that we do not know of: cancelled, and told."""
        if self.account is None or not fresh:
            return
        known = {s.job for s in self.journal.submissions(self.activity)}
        jobs = self._tagged(f"qrkt-run-{self.activity.name}", 20, "looking for copies of jobs")
        for job in (job for job in jobs if str(job.job_id()) not in known):
            with suppress(Exception):
                job.cancel()
            way = "it was told to cancel it, and may bill it"
            self.notices.append(f"the service holds job {job.job_id()}, a copy of a submission of ours; {way}")


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
