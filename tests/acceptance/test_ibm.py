"""Inference and training on IBM Quantum by the real client: numbers, counts, bills, and what is never written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.budget import usage
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.ibm.backend import IBMBackend
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
    asked = ["infer", "run", "--backend", name, "--limit", 50, "--json"]
    plan = json.loads(qrkt(*asked, "--dry-run", cwd=home).stdout)
    assert not service.report()["jobs"]
    found = qrkt(*asked, cwd=home)
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
    # what the dry run said: to the last circuit batch, job, circuit and execution
    assert plan["rounds"] == record["rounds"] and plan["jobs"] == len(report["jobs"])
    assert plan["circuits"] == record["circuits"] and plan["executions"] == report["executions"]
    assert plan["seconds"] == pytest.approx(report["seconds"], rel=0.01)
    assert {job["mode"] for job in report["jobs"]} == {"batch"}
    assert record["agreement"] >= 0.8


def on_aer(work, model, shots):
    """Outcome frequencies ``(executions, outcomes)`` of every replica in a packed circuit, by Aer's own noise model.

    A copy is run on as many qubits as it has, with the errors that the model holds for its qubits of the device.
    """
    from qiskit.circuit import QuantumCircuit
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import NoiseModel

    wide, found = work.circuit, []
    column = {parameter: k for k, parameter in enumerate(wide.parameters)}
    for piece in work.slots:
        place = {qubit: k for k, qubit in enumerate(piece.physical)}
        own = QuantumCircuit(len(place), len(piece.read))
        for instruction in wide.data:
            qubits = [wide.find_bit(q).index for q in instruction.qubits]
            if qubits[0] in place and instruction.operation.name != "measure":
                own.append(instruction.operation, [place[q] for q in qubits])
        own.measure([place[q] for q in piece.read], range(len(piece.read)))
        noise = NoiseModel(model.basis_gates)
        for gate, errors in model._local_quantum_errors.items():
            for qubits, error in errors.items():
                if set(qubits) <= set(place):
                    noise.add_quantum_error(error, gate, [place[q] for q in qubits])
        for (qubit,), error in model._local_readout_errors.items():
            if qubit in place:
                noise.add_readout_error(error, [place[qubit]])
        simulator = AerSimulator(method="density_matrix", noise_model=noise)
        rows = {p: work.values[:, column[p]].tolist() for p in own.parameters}
        counts = simulator.run(own, parameter_binds=[rows], shots=shots, seed_simulator=1).result().get_counts()
        width = len(piece.read)
        counts = [counts] if isinstance(counts, dict) else counts
        found.append(np.array([[c.get(format(k, f"0{width}b"), 0) / shots for k in range(2**width)] for c in counts]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_fifty_images_with_noise_equal_aer_with_the_same_noise_within_statistics(name, home, service, monkeypatch):
    from qiskit_aer.noise import NoiseModel

    from qrkt_hw.backends.device.transpile import fake_device

    service.reset(noisy=True)
    seen = []
    run = IBMBackend.run

    def watched(self, calls):
        values = run(self, calls)
        if self.jobs is not None:
            seen.append((self.packer, calls, values))
        return values

    monkeypatch.setattr(IBMBackend, "run", watched)
    assert qrkt("infer", "run", "--backend", name, "--limit", 50, cwd=home).returncode == 0
    z, off = [], []
    model = NoiseModel.from_backend(fake_device(name.replace("ibm", "fake")))
    for packer, calls, values in seen:
        works = packer.pack(calls)
        outcomes = [on_aer(work, model, 8192) for work in works]
        truth = packer.decode(calls, works, outcomes)
        for value, wanted, exact in zip(values, truth, resolve("exact").run(calls), strict=True):
            spread = np.sqrt(np.maximum(1 - wanted**2, 1e-3))
            z.append(((value - wanted) / spread / np.sqrt(1 / 1024 + 1 / 8192)).ravel())
            off.append(((value - exact) / np.sqrt(np.maximum(1 - exact**2, 1e-3)) * np.sqrt(1024)).ravel())
    z, off = np.concatenate(z), np.concatenate(off)
    print(f"{name}: {len(z):,} values; mean square against Aer {(z**2).mean():.3f}, largest {np.abs(z).max():.2f}; "
          f"against exact {(off**2).mean():.2f}")  # fmt: skip
    assert len(z) > 5000 and np.abs(z).max() < 6 and abs((z**2).mean() - 1) < 0.1
    assert (off**2).mean() > 1.3  # the noise is there to be seen


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
    assert np.abs(seen - exact).max() < 5 / np.sqrt(400) + 0.1  # shot noise and the fake backend's noise
    assert backend.about()["plan"] == "local testing mode"


def test_the_key_is_written_nowhere(home, service, monkeypatch, tmp_path):
    service.reset()
    service.misbehave("fail", code=1517)
    asked = ["infer", "run", "--backend", "ibm_fez", "--limit", "2", "--shots", "8"]
    said = [qrkt(*asked, cwd=home)]
    refused(said[0], "circuit is bad")
    # a process of its own, as the client reads where to log, and how much, when it is imported
    logging = {"QISKIT_IBM_RUNTIME_LOG_LEVEL": "DEBUG", "QISKIT_IBM_RUNTIME_LOG_FILE": str(home / "client.log")}
    command = [sys.executable, "-m", "qrkt_hw", *asked, "--resume"]
    said.append(subprocess.run(command, cwd=home, env={**os.environ, **logging}, capture_output=True, text=True))
    assert said[1].returncode == 0, said[1].stderr
    assert (home / "client.log").read_text().count("DEBUG") > 20
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
    assert len(files) > 10 and home / "client.log" in files
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
    with backend.open():
        assert np.abs(backend.run([call])[0] - exact).max() < 5 / np.sqrt(2048)


def test_estimates_follow_the_formula(home, service):
    service.reset()
    template = circuits.build("brickwork", 4, 1)
    backend = resolve("ibm_fez", shots=100, file=home / "backends.yaml", device={"pack": False})
    with backend.open():
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
