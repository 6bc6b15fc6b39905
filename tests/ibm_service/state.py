"""What the service knows: jobs, sessions, sign-ins, counts, and how it is told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
import traceback
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.ibm_service import devices, programs

# instances of the account by the end of their CRN: plan, kind of pricing, seconds
INSTANCES = {
    "open": ("open", "free", 600),
    "payg": ("pay-as-you-go", "paygo", 3600),
    "premium": ("premium", "subscription", 36000),
}
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123456789abcdef0123456789abcdef:{}::"
FINAL = ("Completed", "Failed", "Cancelled")


def crn(plan: str) -> str:
    """The CRN of the account's instance of that plan."""
    return CRN.format(f"00000000-0000-0000-0000-{hashlib.sha256(plan.encode()).hexdigest()[:12]}")


@dataclass
class Job:
    """A job as it was accepted."""

    id: str
    backend: str
    tags: list[str]
    instance: str
    session: str | None
    program: programs.Program
    limit: float | None
    estimate: float
    size: int
    created: float = field(default_factory=time.time)
    status: str = "Queued"
    reason: str | None = None
    reason_code: int | None = None
    started: float | None = None
    finished: float | None = None
    usage: float | None = None
    results: str | None = None
    fate: str | None = None
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Session:
    """A session or batch."""

    id: str
    backend: str
    mode: str
    instance: str
    created: float = field(default_factory=time.time)
    accepting: bool = True
    state: str = "open"
    started: float | None = None
    closed: float | None = None
    max_ttl: float = 28800.0


@dataclass
class Misbehaviour:
    """One kind of trouble: left out ``skip`` times, then shown ``times`` times."""

    kind: str
    skip: int = 0
    times: int = 1
    seconds: float = 0.0
    code: int = 9999
    where: str = ""
    shown: int = 0


class Service:
    """The state behind the API; every method is safe to call from several threads.

    Args:
        noisy: run circuits with the noise of the device's fake backend.
        queue_seconds: how long a job waits before it runs.
        run_seconds: how long it runs at least.
        key: the API key that is accepted; None accepts any.
        names: of the devices there are.
    """

    def __init__(
        self,
        noisy: bool = False,
        queue_seconds: float = 0.0,
        run_seconds: float = 0.0,
        key: str | None = None,
        names: tuple[str, ...] = devices.LISTED,
    ) -> None:
        self.lock = threading.RLock()
        self.device_lock = threading.Lock()
        self.defaults = {
            "noisy": noisy,
            "queue_seconds": queue_seconds,
            "run_seconds": run_seconds,
            "tags_delay": 0.0,
            "billing_factor": 1.0,
            "largest_job": 10_000_000,
            "largest_input": 50_000_000,
            "longest_job": 10_800.0,
            "per_minute": 0,
            "pending_usage": 0.0,
        }
        self.key, self.listed = key, names
        self.reset()

    def reset(self) -> None:
        """Forget everything but the settings the service was started with."""
        with self.lock:
            for job in getattr(self, "jobs", {}).values():
                job.fate, job.status = "cancel", job.status if job.status in FINAL else "Cancelled"
                job.released.set()
            self.settings, self.names = dict(self.defaults), self.listed
            self.jobs: dict[str, Job] = {}
            self.sessions: dict[str, Session] = {}
            self.tokens: set[str] = set()
            self.trouble: list[Misbehaviour] = []
            self.recalibrations: dict[str, int] = {}
            self.offline: dict[str, str] = {}
            self.executed: list[dict[str, Any]] = []
            self.requests: dict[str, int] = {}
            self.submissions: list[float] = []
            self.used = 0.0

    # sign-in -----------------------------------------------------------------------------------------------------
    def sign_in(self, key: str) -> str | None:
        """A new access token; None where the key is wrong."""
        with self.lock:
            if (self.key is not None and key != self.key) or self.show("reject_key"):
                return None
            token = _web_token()
            self.tokens.add(token)
            return token

    def signed_in(self, authorization: str, instance: str) -> int:
        """HTTP status for these headers: 200, 401 (token) or 403 (instance)."""
        with self.lock:
            if authorization.removeprefix("Bearer ") not in self.tokens:
                return 401
            return 200 if instance in [crn(plan) for plan in INSTANCES] else 403

    def plan(self, instance: str) -> str:
        """The plan behind a CRN."""
        return next(plan for plan in INSTANCES if crn(plan) == instance)

    # trouble -----------------------------------------------------------------------------------------------------
    def show(self, kind: str, where: str = "") -> Misbehaviour | None:
        """The trouble of that kind that is due now; its turn is used up."""
        with self.lock:
            for one in self.trouble:
                if one.kind == kind and one.where in where and one.shown < one.skip + one.times:
                    one.shown += 1
                    if one.shown > one.skip:
                        return one
        return None

    # sessions ----------------------------------------------------------------------------------------------------
    def open_session(self, backend: str, mode: str, instance: str, max_ttl: float | None) -> Session:
        """A new session or batch."""
        with self.lock:
            session = Session(str(uuid.uuid4()), backend, mode, instance)
            if max_ttl:
                session.max_ttl = max_ttl
            self.sessions[session.id] = session
            return session

    def close_session(self, session: Session, cancel: bool) -> None:
        """Take no more jobs; cancel those that wait, where it is closed for good."""
        with self.lock:
            session.accepting = False
            waiting = [j for j in self.jobs.values() if j.session == session.id and j.status not in FINAL]
            if cancel:
                for job in waiting:
                    if job.status == "Queued":
                        self._end(job, "Cancelled", "the session was closed", 1217)
            session.state, session.closed = "closed", time.time()

    def describe(self, session: Session) -> dict[str, Any]:
        """What ``GET /sessions/ID`` answers."""
        own = [j for j in self.jobs.values() if j.session == session.id]
        spent = sum(j.usage or 0.0 for j in own)
        if session.mode == "dedicated" and session.started is not None:
            spent = (session.closed or time.time()) - session.started
        return {
            "id": session.id,
            "backend_name": session.backend,
            "mode": session.mode,
            "state": session.state,
            "accepting_jobs": session.accepting,
            "interactive_ttl": 60,
            "max_ttl": session.max_ttl,
            "active_ttl": 28800,
            "started_at": _iso(session.started),
            "closed_at": _iso(session.closed),
            "elapsed_time": spent,
        }

    # jobs --------------------------------------------------------------------------------------------------------
    def accept(self, payload: dict[str, Any], instance: str, size: int) -> Job:
        """Take a job and start its life; ``size``: bytes of its input.

        Raises:
            programs.Rejected: it cannot run.
        """
        program = programs.read(payload["params"], payload["backend"], int(self.settings["largest_job"]))
        estimate = programs.seconds(program, payload["backend"])
        if estimate > self.settings["longest_job"]:
            raise programs.Rejected(f"about {estimate:.0f} s exceed the limit of {self.settings['longest_job']:.0f} s")
        with self.lock:
            job = Job(
                "d" + secrets.token_hex(10),
                payload["backend"],
                list(payload.get("tags", [])),
                instance,
                payload.get("session_id"),
                program,
                payload.get("cost"),
                estimate,
                size,
            )
            for fate in ("fail", "cancel", "stay_queued", "late", "ran_too_long"):
                shown = self.show(fate, payload["backend"])
                if shown is not None:
                    job.fate, job.reason_code = fate, shown.code
                    wait = shown.seconds
                    break
            else:
                wait = 0.0
            self.jobs[job.id] = job
            if job.session in self.sessions and self.sessions[job.session].started is None:
                self.sessions[job.session].started, self.sessions[job.session].state = time.time(), "active"
            shown = self.show("close_session")
            if shown is not None and job.session in self.sessions:
                self.close_session(self.sessions[job.session], cancel=shown.where == "" and shown.code == 1217)
        threading.Thread(target=self._live, args=(job, wait), daemon=True).start()
        return job

    def _live(self, job: Job, wait: float) -> None:
        settings = dict(self.settings)
        if job.fate == "stay_queued":
            job.released.wait()
        else:
            job.released.wait(settings["queue_seconds"] + wait)
        with self.device_lock:
            with self.lock:
                if job.status in FINAL:
                    return
                if job.fate == "cancel":
                    self._end(job, "Cancelled", "cancelled by an operator", None)
                    return
                job.status, job.started = "Running", time.time()
                if job.fate == "fail":
                    self._end(
                        job,
                        "Failed",
                        "Internal error." if (job.reason_code or 0) >= 8000 else "The circuit is bad.",
                        job.reason_code,
                    )
                    return
                if job.fate == "ran_too_long" or (job.limit is not None and job.estimate > float(job.limit)):
                    job.usage = float(job.limit or 1.0)
                    self.used += job.usage
                    self._end(job, "Cancelled", "the job ran longer than its maximum execution time", 1305)
                    return
                self.executed.append(
                    {
                        "job": job.id,
                        "tags": job.tags,
                        "content": job.program.content,
                        "items": len(job.program.items),
                        "executions": job.program.executions,
                    }
                )
            try:
                noise = None
                if settings["noisy"]:
                    from qrkt_hw.backends.noise import device_noise

                    noise = device_noise(devices.fake_name(job.backend))
                job.results = programs.execute(job.program, job.backend, noise)
                time.sleep(settings["run_seconds"])
            except Exception:
                traceback.print_exc()
                with self.lock:
                    self._end(job, "Failed", "Internal error of the loopback service.", 9999)
                return
            with self.lock:
                if job.status != "Running":
                    return
                job.usage = job.estimate * settings["billing_factor"]
                self.used += job.usage
                self._end(job, "Completed", None, None)

    def _end(self, job: Job, status: str, reason: str | None, code: int | None) -> None:
        job.status, job.reason, job.reason_code, job.finished = status, reason, code, time.time()
        job.usage = job.usage or 0.0

    def cancel(self, job: Job) -> bool:
        """Whether it could still be cancelled."""
        with self.lock:
            if job.status in FINAL:
                return False
            self._end(job, "Cancelled", "cancelled by its owner", None)
            job.released.set()
            return True

    def find(self, tags: list[str], pending: bool | None, session: str | None) -> list[Job]:
        """Jobs with all of the tags, newest first; tags are seen some time after the job was accepted."""
        with self.lock:
            seen = time.time() - self.settings["tags_delay"]
            found = [
                j
                for j in self.jobs.values()
                if (not tags or (set(tags) <= set(j.tags) and j.created <= seen))
                and (pending is None or pending == (j.status not in FINAL))
                and session in (None, j.session)
            ]
            return sorted(found, key=lambda j: -j.created)

    def show_job(self, job: Job) -> dict[str, Any]:
        """What ``GET /jobs/ID`` answers."""
        state: dict[str, Any] = {"status": job.status}
        if job.reason:
            state["reason"] = job.reason
            if job.reason_code:
                state["reason_code"] = job.reason_code
        return {
            "id": job.id,
            "backend": job.backend,
            "state": state,
            "status": job.status,
            "program": {"id": "executor"},
            "created": _iso(job.created),
            "tags": job.tags,
            "session_id": job.session,
            "cost": job.limit,
            "estimated_running_time_seconds": job.estimate,
            "private": False,
            "user_id": "loopback",
        }

    def metrics(self, job: Job) -> dict[str, Any]:
        """What ``GET /jobs/ID/metrics`` answers."""
        with self.lock:
            ahead = [j for j in self.jobs.values() if j.status == "Queued" and j.created < job.created]
            final = job.status in FINAL and time.time() >= (job.finished or 0) + self.settings["pending_usage"]
            found = {
                "timestamps": {
                    "created": _iso(job.created),
                    "running": _iso(job.started),
                    "finished": _iso(job.finished),
                },
                "usage": {
                    "status": "final" if final else "pending",
                    "qpu_charge_time_seconds": job.usage if final else 0.0,
                },
            }
            if job.status == "Queued":
                found["position_in_queue"] = len(ahead) + 1  # type: ignore[assignment]
            return found

    def report(self) -> dict[str, Any]:
        """Everything that was counted."""
        with self.lock:
            contents = [entry["content"] for entry in self.executed]
            return {
                "jobs": [
                    {
                        "id": j.id,
                        "status": j.status,
                        "tags": j.tags,
                        "session": j.session,
                        "backend": j.backend,
                        "content": j.program.content,
                        "executions": j.program.executions,
                        "shots": j.program.shots,
                        "items": len(j.program.items),
                        "size": j.size,
                        "estimate": j.estimate,
                        "usage": j.usage,
                        "limit": j.limit,
                        "mode": self.sessions[j.session].mode if j.session in self.sessions else "job",
                    }
                    for j in self.jobs.values()
                ],
                "executed": self.executed,
                "executions": sum(entry["executions"] for entry in self.executed),
                "twice": sorted({c for c in contents if contents.count(c) > 1}),
                "seconds": self.used,
                "sessions": [self.describe(s) for s in self.sessions.values()],
                "requests": self.requests,
                "trouble_left": [t.kind for t in self.trouble if t.shown < t.skip + t.times],
            }


def _web_token() -> str:
    """An access token in the form the client reads its life time from (RFC 7519); the signature is noise."""

    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    now = int(time.time())
    claims = json.dumps({"iat": now, "exp": now + 3600, "jti": secrets.token_hex(8)}).encode()
    return ".".join([part(b'{"alg":"HS256","typ":"JWT"}'), part(claims), part(secrets.token_bytes(32))])


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
