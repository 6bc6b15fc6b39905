"""What keeps a job from being sent twice rests on private names of IBM's client: they are there, or nothing is sent."""

import numpy as np
import pytest
from qiskit_ibm_runtime.api.client import RuntimeClient
from requests import Session

from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.ibm.account import Careful
from qrkt_hw.errors import UserError
from tests.acceptance.conftest import loopback, service  # noqa: F401

pytestmark = pytest.mark.timeout(300)
FILE = "fez: {provider: ibm, name: ibm_fez, shots: 16, mode: MODE, patience: 3, grace: 1, optimization_level: 1}"


@pytest.fixture
def backend(service, tmp_path, request):  # noqa: F811
    service.reset()
    (tmp_path / "backends.yaml").write_text(FILE.replace("MODE", getattr(request, "param", "job")))
    return resolve("fez", file=tmp_path / "backends.yaml")


def call():
    template = circuits.build("brickwork", 2, 1)
    return Call(template, np.zeros((1, len(template.parameters))))


def sessions(client):
    return [one._session for one in (*client._api_clients.values(), client._active_api_client)]


def test_the_installed_client_has_every_private_name(backend, service):  # noqa: F811
    client = backend.account.service
    assert isinstance(client._api_clients, dict) and client._api_clients
    assert all(isinstance(session, Session) for session in sessions(client))
    with backend.open():
        backend.run([call()])
    job = client.job(service.report()["jobs"][0]["id"])
    assert hasattr(job, "_reason_code")
    for session in sessions(client):
        assert session.adapters and all(isinstance(adapter, Careful) for adapter in session.adapters.values())


BROKEN = {
    "no clients": lambda client: delattr(client, "_api_clients"),
    "clients of another kind": lambda client: setattr(client, "_api_clients", list(client._api_clients.values())),
    "no active client": lambda client: delattr(client, "_active_api_client"),
    "no session": lambda client: delattr(client._active_api_client, "_session"),
    "a session of another kind": lambda client: setattr(client._active_api_client, "_session", object()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_name_that_is_missing_when_a_job_is_to_be_sent_refuses_it(name, backend, service):  # noqa: F811
    with backend.open(), pytest.raises(UserError, match="billed twice") as stopped:
        backend.packer.plan([call().template])
        backend.place.check()
        BROKEN[name](backend.account.service)
        backend.run([call()])
    assert "\n" not in str(stopped.value)
    assert not service.report()["jobs"] and not service.report()["requests"].get("POST jobs")


@pytest.mark.parametrize("backend", ["job", "batch"], indirect=True)
def test_a_connection_that_the_client_opens_later_sends_nothing_twice(backend, service):  # noqa: F811
    client = backend.account.service
    with backend.open():
        late = RuntimeClient(client._client_params)  # as the client makes one for another instance
        client._api_clients = dict.fromkeys(client._api_clients, late)
        client._active_api_client = late
        assert not any(isinstance(adapter, Careful) for adapter in late._session.adapters.values())
        service.misbehave("502_after")
        backend.run([call()])
    assert all(isinstance(adapter, Careful) for adapter in late._session.adapters.values())
    assert len(service.report()["jobs"]) == 1 and not service.report()["twice"]
