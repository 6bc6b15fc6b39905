"""What the service's many errors mean: whether to ask again, and the one sentence that helps."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

Kind = Literal["unreachable", "lost", "unauthorized", "forbidden", "busy", "session", "no_sessions", "server", "other"]
# unreachable: nothing was sent; lost: sent, and no answer; server: an answer, and none to rely on (5xx)
SESSION_CODES = ("1217", "1216")
NO_SESSION_CODE = "1352"


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status an error came with."""
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
    import requests
    import urllib3

    text = " ".join(str(one) for one in chain(error))
    status = status_of(error)
    if NO_SESSION_CODE in re.findall(r"\b\d{4}\b", text) and "session" in text.lower():
        return "no_sessions"
    if "session is closed" in text.lower() or ("session" in text.lower() and any(c in text for c in SESSION_CODES)):
        return "session"
    if status == 401:
        return "unauthorized"
    if status == 403:
        return "forbidden"
    if status == 429:
        return "busy"
    if (status is not None and status >= 500) or "maintenance mode" in text:
        return "server"
    if status is not None:
        return "other"
    never_sent = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError, ConnectionRefusedError,
                  requests.exceptions.ConnectTimeout)  # fmt: skip
    reasons = list(chain(error))
    reasons += [r for r in (getattr(one, "reason", None) for one in reasons) if isinstance(r, BaseException)]
    reasons += [a for one in list(reasons) for a in one.args if isinstance(a, BaseException)]
    reasons += [r for r in (getattr(one, "reason", None) for one in list(reasons)) if isinstance(r, BaseException)]
    if any(isinstance(one, never_sent) for one in reasons):
        return "unreachable"
    if any(isinstance(one, (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError))
           for one in reasons):  # fmt: skip
        return "lost"
    return "other"


def explain(error: BaseException, doing: str) -> str:
    """One sentence: what failed, and what to do."""
    kind = classify(error)
    if kind in ("unreachable", "lost"):
        return f"{doing}: IBM Quantum cannot be reached; check the network (--resume goes on where this stopped)"
    if kind == "unauthorized":
        return f"{doing}: IBM Quantum does not accept the API key; make a new one and save it (qrkt-hw doctor says how)"
    if kind == "forbidden":
        return f"{doing}: the account has no access to this instance; --instance names another"
    if kind == "busy":
        return f"{doing}: IBM Quantum asks for fewer requests; wait a minute and go on with --resume"
    if kind == "server":
        return (
            f"{doing}: IBM Quantum has trouble of its own (HTTP {status_of(error) or 503}); go on later with --resume"
        )
    if kind == "no_sessions":
        return f"{doing}: the account's plan has no sessions; use --mode batch"
    return f"{doing}: {redacted(reason(error))}"


def reason(error: BaseException) -> str:
    """What the service itself says, without the client's wrapping."""
    text = " ".join(str(error).split())
    found = re.search(r'"message":\s*"([^"]+)"', text.replace('\\"', '"'))
    return (found.group(1) if found else text.strip("'\"")).rstrip(".")[:300]


def secrets() -> list[str]:
    """Every API key that could be met: of the environment and of the saved accounts."""
    found = [os.environ.get("QISKIT_IBM_TOKEN", "")]
    try:
        path = Path(os.environ.get("QISKIT_IBM_CONFIG") or Path.home() / ".qiskit" / "qiskit-ibm.json")
        saved: Any = json.loads(path.read_text(encoding="utf-8"))
        found += [str(entry.get("token", "")) for entry in saved.values() if isinstance(entry, dict)]
    except (OSError, ValueError, AttributeError):
        pass
    return [secret for secret in found if len(secret) >= 4]


def redacted(text: str) -> str:
    """The text without keys and bearer tokens."""
    for secret in secrets():
        text = text.replace(secret, "***")
    return re.sub(r"(?i)(bearer|apikey)\s+[A-Za-z0-9._~+/=-]+", r"\1 ***", text)
