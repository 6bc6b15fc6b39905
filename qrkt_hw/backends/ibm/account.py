"""The IBM Quantum account, signed in, and what the service's errors mean. Nothing of it is ever stored or shown."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import requests
import urllib3

from qrkt_hw.backends.device.jobs import patiently
from qrkt_hw.errors import UserError, extras

Kind = Literal["unreachable", "lost", "unauthorized", "forbidden", "busy", "session", "no_sessions", "server", "other"]
# unreachable: nothing was sent; lost: sent, and no answer; server: an answer, and none to rely on (5xx)
STATUS: dict[int | None, Kind] = {401: "unauthorized", 403: "forbidden", 429: "busy"}
ADVICE: dict[Kind, str] = {
    "unreachable": "IBM Quantum cannot be reached; check the network (--resume continues where this stopped)",
    "lost": "IBM Quantum cannot be reached; check the network (--resume continues where this stopped)",
    "unauthorized": "IBM Quantum does not accept the API key; make a new one and save it (qrkt-hw doctor says how)",
    "forbidden": "the account has no access to this instance; --instance names another",
    "busy": "IBM Quantum asks for fewer requests; wait a minute and resume with --resume",
    "server": "IBM Quantum has trouble of its own (HTTP {status}); resume later with --resume",
    "no_sessions": "the account's plan has no sessions; use --mode batch",
}


def chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and not any(current is one for one in seen):
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def status_of(error: BaseException) -> int | None:
    for one in chain(error):
        status = getattr(one, "status_code", None) or getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int) and status > 0:
            return status
        code = getattr(one, "code", None)  # of ibm_cloud_sdk_core's ApiException
        if isinstance(code, int) and 400 <= code < 600:
            return code
    return None


def classify(error: BaseException) -> Kind:
    """What to make of an error of the client."""
    text = " ".join(str(one) for one in chain(error))
    status = status_of(error)
    if "1352" in re.findall(r"\b\d{4}\b", text) and "session" in text.lower():
        return "no_sessions"
    if "session is closed" in text.lower() or ("session" in text.lower() and ("1217" in text or "1216" in text)):
        return "session"
    if status in STATUS:
        return STATUS[status]
    if (status is not None and status >= 500) or "maintenance mode" in text:
        return "server"
    if status is not None:
        return "other"
    never_sent = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError, ConnectionRefusedError,
                  requests.exceptions.ConnectTimeout)  # fmt: skip
    network = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
    reasons = list(chain(error))
    for one in reasons:  # grows: an error of the network holds its cause as its reason or its argument
        inner = (getattr(one, "reason", None), *one.args)
        reasons += [cause for cause in inner if isinstance(cause, BaseException) and cause not in reasons]
    if any(isinstance(one, never_sent) for one in reasons):
        return "unreachable"
    return "lost" if any(isinstance(one, network) for one in reasons) else "other"


def explain(error: BaseException, doing: str) -> str:
    """One sentence: what failed, and what to do."""
    advice = ADVICE.get(classify(error))
    if advice is None:
        return f"{doing}: {redacted(reason(error))}"
    return f"{doing}: {advice.format(status=status_of(error) or 503)}"


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    found = re.search(r'"message":\s*"([^"]+)"', text.replace('\\"', '"'))
    return (found.group(1) if found else text.strip("'\"")).rstrip(".")[:300]


def secrets() -> list[str]:
    """Every API key that could be met: of the environment and of the saved accounts."""
    found = [os.environ.get("QISKIT_IBM_TOKEN", "")]
    saved = saved_accounts(os.environ.get("QISKIT_IBM_CONFIG"))
    for entry in saved.values() if isinstance(saved, dict) else ():
        found += [str(entry.get("token", ""))] if isinstance(entry, dict) else []
    found += [value for key, value in os.environ.items() if re.search("_QRMI_.*(KEY|SECRET|TOKEN)", key)]
    return [secret for secret in found if len(secret) >= 4]


def redacted(text: str) -> str:
    for secret in secrets():
        text = text.replace(secret, "***")
    return re.sub(r"(?i)(bearer|apikey)\s+[A-Za-z0-9._~+/=-]+", r"\1 ***", text)


RETIRED = {"ibm_torino": ("2026-04-01", "fake_torino")}  # device -> (retired on, its fake backend)
HOW = (
    "get an API key at https://quantum.cloud.ibm.com and save it once in Python with "
    "qiskit_ibm_runtime.QiskitRuntimeService.save_account(token=...), or set QISKIT_IBM_TOKEN"
)
T = TypeVar("T")


def saved_accounts(other: str | None = None) -> Any:
    """What the client keeps in its file of accounts, or in another; None where there is none."""
    with suppress(OSError, ValueError):
        return json.loads(Path(other or Path.home() / ".qiskit" / "qiskit-ibm.json").read_text(encoding="utf-8"))
    return None


def account_there() -> bool:
    """Whether an account is in the environment or saved. Asks no network."""
    return bool(os.environ.get("QISKIT_IBM_TOKEN") or saved_accounts())


def retired(name: str) -> str | None:
    """The sentence about a device that is no more; None for others."""
    if name not in RETIRED:
        return None
    date, fake = RETIRED[name]
    way = f"its noise is in the fake backend --backend {fake}, which runs on this machine"
    return f"{name} was retired by IBM on {date}; {way}, and --backend ibm_least_busy takes a live device"


def unavailable(name: str) -> str | None:
    """Why a device cannot be used; None where it may be. Asks no network."""
    if name.startswith("fake_") or account_there():  # which may list a device that others no longer have
        return None
    return retired(name) or f"no IBM Quantum account is found here; {HOW}"


class Careful(requests.adapters.HTTPAdapter):
    """Read time-outs where the client has none, and no second POST after an answer of the server.

    The client sends a POST again after a 5xx; a job that was accepted then exists, and is billed, twice. Here only
    requests that were never sent, or that change nothing, go again; everything else is decided by whoever asked.
    """

    def __init__(self, read_timeout: float) -> None:
        self.read_timeout = read_timeout
        again: Any = {"status_forcelist": (500, 502, 503, 504, 520), "allowed_methods": {"GET", "HEAD", "OPTIONS"}}
        retry = urllib3.Retry(total=3, connect=2, read=2, status=2, backoff_factor=0.3, raise_on_status=False, **again)
        super().__init__(max_retries=retry)

    def send(self, request: Any, stream: bool = False, timeout: Any = None, *args: Any, **kwargs: Any) -> Any:
        connect = timeout[0] if isinstance(timeout, tuple) else 10.0
        # a submission may be large, and the service reads it before it answers
        read = self.read_timeout if request.method == "GET" else 2 * self.read_timeout
        return super().send(request, stream, (connect or 10.0, read), *args, **kwargs)


def mount(service: Any, read_timeout: float) -> None:
    """Let every connection of the client be :class:`Careful`.

    Raises UserError: the client keeps its connections elsewhere than the versions this was written for, so that nothing
    would keep it from sending a job twice.
    """
    clients = getattr(service, "_api_clients", None)
    every = [*(clients.values() if isinstance(clients, dict) else [None]), getattr(service, "_active_api_client", None)]
    for session in (getattr(client, "_session", None) for client in every):
        if not isinstance(session, requests.Session) or not session.adapters:
            raise UserError(
                "--backend: this version of qiskit-ibm-runtime keeps its connections where qrkt-hw does not find them, "
                "so a job could be sent and billed twice; install a version that qrkt-hw's pyproject.toml allows"
            )
        for prefix, adapter in list(session.adapters.items()):
            if not isinstance(adapter, Careful):
                session.mount(prefix, Careful(read_timeout))


class Account:
    """The account, signed in; signs in anew when its token has run out.

    ``instance`` is a name or CRN; None takes the account's own, or lets the client choose. An answer is given up after
    ``read_timeout`` seconds, trouble of the network is retried for ``patience`` seconds. Raises UserError: no account,
    no network, a wrong key, or an instance without access.
    """

    def __init__(self, instance: str | None = None, read_timeout: float = 60.0, patience: float = 120.0) -> None:
        self.instance, self.read_timeout, self.patience = instance, read_timeout, patience
        if not account_there():
            raise UserError(f"--backend: no IBM Quantum account is found here; {HOW}")
        self.service: Any = None
        self.generation = 0
        self.connect()

    def connect(self) -> None:
        """Sign in, with back-off. Raises UserError: refused, or no answer within ``patience``, at most 20 s."""
        with extras():
            from qiskit_ibm_runtime import QiskitRuntimeService

        def refused(error: Exception, late: bool) -> str | None:
            passing = classify(error) in ("unreachable", "lost", "server")
            return None if passing and not late else f"--backend: {_why_no_account(error, self.instance)}"

        options = {"instance": self.instance} if self.instance else {}
        self.service = patiently(lambda: QiskitRuntimeService(**options), min(self.patience, 20.0), refused)
        self.generation += 1
        self.guard()

    def guard(self) -> None:
        """:func:`mount`, again: the client opens new connections as it looks for devices and jobs."""
        mount(self.service, self.read_timeout)

    def ask(self, question: Callable[[], T], doing: str) -> T:
        """The answer, with back-off and after signing in anew. Raises UserError: none within ``patience``."""

        def signed_in() -> T:
            for _ in range(2):
                try:
                    return question()
                except Exception as error:
                    if classify(error) != "unauthorized":
                        raise
                    self.connect()
            return question()

        def refused(error: Exception, late: bool) -> str | None:
            passing = classify(error) in ("unreachable", "lost", "server", "busy")
            return None if passing and not late else explain(error, doing)

        return patiently(signed_in, self.patience, refused)

    @property
    def plan(self) -> str:
        """The plan of the instance in use, such as ``open``; ``unknown`` where the account does not say."""
        found = self.ask(lambda: self.service.instances(), "asking for the plan")
        active = self.service.active_instance()
        return next((i["plan"] for i in found if i["crn"] == active), "unknown")

    @property
    def seconds_left(self) -> float | None:
        usage = self.ask(lambda: self.service.usage(), "asking for the seconds left")
        return usage.get("usage_remaining_seconds")

    def device(self, name: str) -> Any:
        """A device by name, or the ``least_busy``. Raises UserError: it is retired or unknown, or none is online."""
        from qiskit.providers.exceptions import QiskitBackendNotFoundError

        def find() -> Any:
            try:
                return self.service.least_busy() if name == "least_busy" else self.service.backend(name)
            except QiskitBackendNotFoundError as error:
                if any(status_of(one) for one in chain(error)) and classify(error) != "other":
                    raise
                return None

        found = self.ask(find, f"looking for {name}")
        if found is None and name == "least_busy":
            raise UserError("--backend: no device of the account is online; see qrkt-hw backends list --remote")
        if found is None and retired(name) is not None:
            raise UserError(f"--backend: {retired(name)}")
        if found is None:
            names = sorted(b.name for b in self.ask(lambda: self.service.backends(), "asking for the devices"))
            there = f"it has {', '.join(names) or 'none'} (one that IBM retired is listed no more)"
            way = "--backend ibm_least_busy takes the one with the shortest queue"
            raise UserError(f"--backend: the account has no device {name!r}; {there}; {way}")
        return found

    def find(self, tag: str) -> str | None:
        """The id of the first job with a tag."""
        found = self.ask(lambda: self.service.jobs(job_tags=[tag], limit=5), "searching for a job by its tag")
        return str(found[-1].job_id()) if found else None

    def look(self, job: str) -> None:
        """Raises UserError: the service knows no such job."""
        self.ask(lambda: self.service.job(job), f"looking for job {job}")

    def cancel(self, job: str) -> str:
        """Cancel a job; what became of it, ``done`` where its result waits to be taken."""
        from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

        def ask() -> str:
            found = self.service.job(job)
            try:
                found.cancel()
            except RuntimeInvalidStateError:
                return "done" if str(found.status()) == "DONE" else f"had ended already ({found.status()})"
            return "is cancelled"

        return str(self.ask(ask, f"cancelling job {job}"))


def _why_no_account(error: BaseException, instance: str | None) -> str:
    text, kind = " ".join(str(one) for one in chain(error)), classify(error)
    if "does not have access to the instance" in text or "not a valid instance" in text or kind == "forbidden":
        named = f" {instance!r}" if instance else ""
        return f"the account has no access to the instance{named}; --instance names another (by name or CRN)"
    if kind in ("unreachable", "lost"):
        return "IBM Quantum cannot be reached; check the network (or use a simulator, such as --backend fake_fez)"
    if kind == "server":
        return "IBM Quantum has trouble of its own; try again later"
    if status_of(error) in (400, 401) or "valid API token" in text:
        return f"IBM Quantum does not accept the API key; {HOW}"
    return redacted(reason(error))
