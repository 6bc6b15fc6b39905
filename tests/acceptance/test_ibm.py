"""Inference and training on IBM Quantum by the real client: numbers, counts, bills, and what is never written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.ibm import IBMBackend
from qrkt_hw.execution.journal import Journal
from qrkt_hw.execution.pricing import usage
from tests.command_line import qrkt, refused
from tests.ibm_service.process import KEY, Loopback

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
DEVICES = ["ibm_fez", "ibm_kingston", "ibm_miami"]
ENTRY = {"provider": "ibm", "submissions_per_minute": 100_000, "patience": 5, "grace": 2}


@pytest.fixture(scope="module")
def home(service, tmp_path_factory):
    """A folder with a digits-hardware run and entries for the devices."""
    folder = tmp_path_factory.mktemp("ibm")
    entries = {name: {**ENTRY, "name": name} for name in DEVICES}
    entries["local_fez"] = {"provider": "ibm", "name": "fake_fez", "shots": 400}
    (folder / "backends.yaml").write_text(yaml.safe_dump(entries))
    assert qrkt("train", "--preset", "digits-hardware", "--epochs", 2, "--out", "run", cwd=folder).returncode == 0
    return folder


@pytest.mark.parametrize("name", [DEVICES[0], *(pytest.param(d, marks=pytest.mark.slow) for d in DEVICES[1:])])
def test_fifty_images_equal_exact_within_shot_noise_and_cost_what_was_estimated(name, home, service, monkeypatch):
    service.reset()
    seen = []
    run = IBMBackend.run

    def watched(self, calls):
        values = run(self, calls)
        if self.jobs is not None:
            seen.extend(zip(calls, values, strict=True))
        return values

    monkeypatch.setattr(IBMBackend, "run", watched)
    found = qrkt("infer", "run", "--backend", name, "--limit", 50, "--json", cwd=home)
    assert found.returncode == 0, found.stderr
    record, report = json.loads(found.stdout), service.report()
    exact = resolve("exact").run([call for call, _ in seen])
    z = np.concatenate([
        ((v - e) / np.sqrt(np.maximum(1 - e**2, 1e-3) / 1024)).ravel() for (_, v), e in zip(seen, exact, strict=True)
    ])  # fmt: skip
    assert len(z) == record["circuits"] * 4 and np.abs(z).max() < 6 and abs((z**2).mean() - 1) < 0.1
    details = record["backend_details"]
    assert record["rounds"] == len(report["jobs"]) == details["jobs"] == 2
    assert record["executions"] == report["executions"] and not report["twice"]
    assert details["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)
    assert details["billed_seconds"] == pytest.approx(details["estimated_seconds"], rel=0.01)
    assert {job["mode"] for job in report["jobs"]} == {"batch"}
    assert record["agreement"] >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_noisy_values_equal_aer_with_the_same_noise_within_statistics(name, home, service):
    from qiskit_aer import AerSimulator

    from qrkt_hw.execution.devices import fake_device

    service.reset(noisy=True)
    template = circuits.build("brickwork", 4, 1)
    rows = np.random.default_rng(3).normal(size=(40, len(template.parameters)))
    backend = resolve(name, shots=40_000, file=home / "backends.yaml", device={"pack": False})
    call = Call(template, rows)
    seen = backend.run([call])[0]
    (work,) = backend.packer.pack([call])
    simulator = AerSimulator.from_backend(fake_device(name.replace("ibm", "fake")), method="density_matrix")
    bound = [work.circuit.assign_parameters(row) for row in work.values]
    counts = simulator.run(bound, shots=40_000, seed_simulator=1).result().get_counts()
    outcomes = np.array([[c.get(format(k, "04b"), 0) / 40_000 for k in range(16)] for c in counts])
    signs = 1 - 2.0 * (np.arange(16)[:, None] >> np.arange(4) & 1)
    truth = outcomes @ signs
    z = (seen - truth) / np.sqrt((1 - truth**2) * (2 / 40_000))
    assert np.abs(z).max() < 5 and abs((z**2).mean() - 1) < 0.35
    exact = resolve("exact").run([call])[0]
    assert (((seen - exact) ** 2 / (1 - exact**2)) * 40_000).mean() > 1.5  # the noise is there to be seen


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch", "session"])
def test_ten_steps_of_spsa_through_the_service(mode, home, service):
    service.reset()
    steps, out = 10, f"spsa-{mode}"
    train = ["train", "--preset", "digits-hardware", "--backend", "ibm_fez", "--gradient", "spsa", "--mode", mode,
             "--shots", 16, "--batch-size", 2, "--epochs", 1, "--warmup-steps", 1]  # fmt: skip
    found = qrkt(*train, "--limit", 2 * steps, "--out", out, cwd=home)
    assert found.returncode == 0, found.stderr
    report = service.report()
    assert {job["mode"] for job in report["jobs"]} == {"batch" if mode == "batch" else "dedicated"}
    assert len(report["sessions"]) == 1 and report["sessions"][0]["state"] == "closed"
    results = json.loads((home / out / "results.json").read_text())
    assert results["backend_details"]["billed_seconds"] == pytest.approx(report["seconds"], abs=0.1)
    with Journal(home / out / "journal.sqlite", write=False) as journal:
        assert all(s.state == "done" for s in journal.submissions())
        assert len(journal.submissions()) == len(report["jobs"])
        assert journal.unfinished("train") is None
    assert not report["twice"]


@pytest.mark.slow
def test_the_clients_local_testing_mode(home):
    template = circuits.build("brickwork", 3, 1)
    rows = np.random.default_rng(5).normal(size=(8, len(template.parameters)))
    backend = resolve("local_fez", file=home / "backends.yaml")
    seen = backend.run([Call(template, rows)])[0]
    exact = resolve("exact").run([Call(template, rows)])[0]
    assert np.abs(seen - exact).max() < 5 / np.sqrt(400) + 0.1  # shot noise and the snapshot's noise
    assert backend.about()["plan"] == "local testing mode"


def test_the_key_is_written_nowhere(home, service, monkeypatch, tmp_path):
    service.reset()
    monkeypatch.setenv("QISKIT_IBM_RUNTIME_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("QISKIT_IBM_RUNTIME_LOG_FILE", str(home / "client.log"))
    service.misbehave("fail", code=1517)
    said = [qrkt("infer", "run", "--backend", "ibm_fez", "--limit", 2, "--shots", 8, cwd=home)]
    refused(said[0], "circuit is bad")
    said.append(qrkt("infer", "run", "--resume", cwd=home))
    assert said[1].returncode == 0, said[1].stderr
    service.control("expire")
    service.misbehave("reject_key", times=9)
    said.append(qrkt("infer", "run", "--backend", "ibm_fez", cwd=home))
    refused(said[2], "API key")
    service.control("calm")
    said += [qrkt("jobs", "list", "run", cwd=home), qrkt("jobs", "show", "run", cwd=home)]
    said += [qrkt("backends", "list", "--remote", cwd=home), qrkt("doctor", cwd=home)]
    assert "plan premium" in said[-2].stdout and "signed in, plan premium" in said[-1].stdout
    for one in said:
        assert KEY not in one.stdout + one.stderr and "eyJ" not in one.stdout + one.stderr
    assert KEY not in json.dumps(service.report())
    files = [p for p in home.rglob("*") if p.is_file()]
    assert len(files) > 10
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def test_a_device_of_ibm_takes_shots_and_flags_of_its_own(home):
    refused(qrkt("infer", "run", "--backend", "ibm_fez", "--shots", 0, cwd=home), "--shots", "ibm_fez")
    refused(qrkt("infer", "run", "--backend", "exact", "--mode", "batch", cwd=home), "--mode", "exact")
    refused(qrkt("infer", "run", "--resume", cwd=home), "--resume", "half-way")
    refused(qrkt("infer", "run", "--resubmit", cwd=home), "--resubmit", "--resume")


@pytest.mark.parametrize("key", ["twirl_measure", *(pytest.param(k, marks=pytest.mark.slow)
                                                     for k in ("twirl_gates", "dynamical_decoupling"))])  # fmt: skip
def test_suppression_changes_no_noiseless_value(key, home, service):
    service.reset()
    template = circuits.build("brickwork", 3, 1)
    call = Call(template, np.random.default_rng(7).normal(size=(6, len(template.parameters))))
    backend = resolve("ibm_fez", shots=2048, file=home / "backends.yaml", device={key: True})
    exact = resolve("exact").run([call])[0]
    assert np.abs(backend.run([call])[0] - exact).max() < 5 / np.sqrt(2048)


def test_estimates_follow_the_formula(home, service):
    service.reset()
    template = circuits.build("brickwork", 4, 1)
    backend = resolve("ibm_fez", shots=100, file=home / "backends.yaml", device={"pack": False})
    backend.run([Call(template, np.zeros((7, len(template.parameters))))])
    (work,) = backend.packer.pack([Call(template, np.zeros((7, len(template.parameters))))])
    wanted = usage(700, 250e-6, work.circuit.estimate_duration(backend.target)).seconds
    (job,) = service.report()["jobs"]
    assert job["usage"] == pytest.approx(wanted, rel=1e-3) and backend.estimated == pytest.approx(wanted)


@pytest.mark.slow
def test_the_service_starts_by_hand(tmp_path):
    with Loopback("--plan", "open", "--devices", "ibm_miami") as other:
        assert re.match(r"http://127.0.0.1:\d+/experimental", other.environment("open")["QISKIT_IBM_URL"])
        assert other.report()["jobs"] == []
    assert other.process.returncode is not None and Path(tmp_path).is_dir()
