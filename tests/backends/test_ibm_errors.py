"""What the client's errors are taken for."""

import pytest
import requests
import urllib3
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from qiskit_ibm_runtime.exceptions import IBMRuntimeError

from qrkt_hw.backends.ibm.account import Careful, classify, explain, redacted


def wrapped(cause, status=-1, message="trouble"):
    """As the client wraps it: the cause of a cause, suppressed."""
    try:
        try:
            try:
                raise cause
            except Exception as error:
                raise RequestsApiError(message, status) from error
        except RequestsApiError as error:
            raise IBMRuntimeError(f"Failed to run program: {error}") from None
    except IBMRuntimeError as error:
        return error


REFUSED = requests.ConnectionError(
    urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.NewConnectionError(None, "refused"))  # type: ignore[arg-type]
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (wrapped(REFUSED), "unreachable"),
        (wrapped(requests.ConnectionError("reset")), "lost"),
        (wrapped(requests.ReadTimeout("slow")), "lost"),
        (wrapped(requests.HTTPError("bad gateway"), 502), "server"),
        (wrapped(requests.HTTPError("no"), 401), "unauthorized"),
        (wrapped(requests.HTTPError("no"), 403), "forbidden"),
        (wrapped(requests.HTTPError("no"), 429), "busy"),
        (wrapped(requests.HTTPError("no"), 400, "The session is closed."), "session"),
        (wrapped(requests.HTTPError("no"), 400, "not authorized to run a session. code 1352"), "no_sessions"),
        (wrapped(requests.HTTPError("no"), 400, "The circuit is bad."), "other"),
        (ValueError("ours"), "other"),
    ],
)
def test_errors_are_told_apart(error, kind):
    assert classify(error) == kind
    assert "\n" not in explain(error, "submitting")


def test_keys_are_taken_out_of_texts(monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "a-very-secret-key")
    text = redacted("sent a-very-secret-key with Bearer abc.def.ghi and apikey xyz")
    assert "secret" not in text and "abc.def" not in text and "xyz" not in text


def test_only_reads_are_repeated():
    retry = Careful(5.0).max_retries
    assert retry.is_retry("GET", 502) and not retry.is_retry("POST", 502)


def test_what_the_service_says_is_shown_as_it_is():
    said = explain(IBMRuntimeError("JOB STATUS {unknown} is none"), "asking")
    assert said == "asking: JOB STATUS {unknown} is none"
    assert "(HTTP 502)" in explain(wrapped(ValueError("x"), 502), "asking")
