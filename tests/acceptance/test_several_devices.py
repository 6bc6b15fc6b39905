"""One inference on several devices, the retired device of the user's own example, and plans of fake devices."""

import json

import pytest
import yaml

from qrkt_hw.backends.entries import SHOTS
from tests.command_line import qrkt, refused, trained

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
ENTRY = {"provider": "ibm", "shots": 64, "optimization_level": 1, "submissions_per_minute": 100_000, "patience": 5,
         "grace": 2}  # fmt: skip
NAMES = ("ibm_fez", "ibm_kingston", "ibm_torino")
TINY = ["--hidden", 4, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1, "--ansatz", "brickwork", "--heads", 2]


@pytest.fixture(scope="module")
def home(service, tmp_path_factory):
    """A small run and ``backends.yaml``."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "backends.yaml").write_text(yaml.safe_dump({name: {**ENTRY, "name": name} for name in NAMES}))
    trained(folder, "--limit", 32, "--epochs", 1, *TINY, "--rk", "rk1")
    return folder


def test_a_plan_on_a_fake_device_takes_the_devices_own_number_of_shots(home):
    asked = ["infer", "run", "--backend", "fake_torino", "--limit", 3, "--dry-run"]
    found, said = qrkt(*asked, "--json", cwd=home), f"takes {SHOTS:,} shots"
    assert found.returncode == 0 and said in found.stderr
    named = qrkt(*asked, "--json", "--shots", SHOTS, cwd=home)
    assert json.loads(named.stdout) == json.loads(found.stdout) and said not in named.stderr
    limited = qrkt(*asked, "--max-qpu-seconds", 1, cwd=home)
    refused(limited, "--max-qpu-seconds 1 s", "would fit")
    refused(qrkt(*asked, "--shots", 0, cwd=home), "--dry-run", "--shots 0")


@pytest.mark.parametrize("account", [True, False])
def test_the_retired_device_is_one_sentence_and_nothing_is_sent(account, home, service, monkeypatch, tmp_path):
    service.reset()
    monkeypatch.setenv("HOME", str(tmp_path))
    if not account:
        monkeypatch.delenv("QISKIT_IBM_TOKEN")
    words = ["ibm_torino was retired by IBM on 2026-04-01", "--backend fake_torino", "--backend ibm_least_busy"]
    refused(qrkt("infer", "--backend", "ibm_torino", cwd=tmp_path), *words)  # bare, where there is no run
    refused(qrkt("infer", "run", "--backend", "ibm_torino", cwd=home), *words)
    refused(qrkt("infer", "run", "--backend", "ibm_torino", "--dry-run", cwd=home), *words)
    report = service.report()
    assert not report["jobs"] and (account or not report["requests"])


def test_a_retired_device_that_an_account_lists_runs(home, service):
    service.reset()
    service.control("devices", names=["ibm_torino", "ibm_fez"])
    found = qrkt("infer", "run", "--backend", "ibm_torino", "--limit", 2, "--json", cwd=home)
    assert found.returncode == 0, found.stderr
    report = service.report()
    assert {job["backend"] for job in report["jobs"]} == {"ibm_torino"} and not report["twice"]
    assert json.loads(found.stdout)["backend_details"]["device"] == "ibm_torino"
