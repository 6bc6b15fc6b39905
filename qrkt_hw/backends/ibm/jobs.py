"""Jobs of IBM Quantum: throttled, tagged, and searched for by their tags when an answer is lost."""

import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from qiskit.primitives import BitArray

from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.jobs import AGAIN, DeviceJobs, Pending
from qrkt_hw.backends.device.journal import Activity, Journal, Submission
from qrkt_hw.backends.device.pubs import PUB
from qrkt_hw.backends.ibm.account import classify, explain, reason, redacted
from qrkt_hw.errors import UserError

_LOCK = threading.Lock()  # of every list of submissions


class Jobs(DeviceJobs):
    """Jobs of the IBM backend, whose account is None in the client's local testing mode."""

    def __init__(
        self, backend: Any, journal: Journal, activity: Activity, budget: Budget | None, resubmit: bool = False
    ) -> None:
        super().__init__(backend, journal, activity, budget, resubmit)
        self.account, self.configure = backend.account, backend.configure
        self.ends_with_its_process = self.account is None
        self.sent: deque[float] = deque()

    def _lost(self, submission: Submission) -> str:
        return (
            f"was sent, no answer came, and the service does not find it by its tag {submission.tag}: it is "
            "held, and not sent again by itself; qrkt-hw jobs adopt RUN looks for it later, and --resume --resubmit "
            "sends it anew"
        )

    def _search(self, submission: Submission, grace: float | None = None) -> str | None:
        """The id of the job with the submission's tag, searched for during ``grace`` seconds (None: the entry's)."""
        if self.account is None:
            return None
        deadline, pause = time.monotonic() + (self.entry.grace if grace is None else grace), 0.3
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
                    found = self._search(submission)
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
        with _LOCK:  # several devices of one account have one list
            while len(self.sent) >= most and time.monotonic() - self.sent[0] < 60:
                self.tell(f"{self.place.describe()}: {most} submissions a minute are allowed; waiting")
                time.sleep(max(0.0, min(1.0, 60.01 - (time.monotonic() - self.sent[0]))))
            while self.sent and time.monotonic() - self.sent[0] >= 60:
                self.sent.popleft()
            self.sent.append(time.monotonic())

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

    def _result(self, one: Pending) -> Sequence[dict[str, BitArray]]:
        if self.account is None:
            result = one.job.result()
        else:
            result = self.account.ask(lambda: self._job(one).result(), f"downloading job {one.submission.job}")
        return [dict(pub.data.items()) for pub in result]

    def _bill(self, one: Pending) -> float:
        """QPU seconds charged; the estimate where the service has not counted within some seconds."""
        if self.account is None:
            return 0.0
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
            return self._again(one, f"job {job} {reason_given}, {billed:.1f} s billed; its circuits were sent again")
        if code == 1305:
            what = f"was stopped by the service at its time limit ({billed:.0f} QPU seconds billed)"
            way = "raise --max-qpu-seconds, or use fewer shots or images, and resume with --resume"
            raise UserError(f"job {job} on {where} {what}; {way}")
        raise self._failed(one, state, why)

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
