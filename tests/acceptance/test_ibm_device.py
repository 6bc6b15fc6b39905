"""Mitigation, spacing, budget and limits of a job through the service, not only on a fake backend."""

import json

import numpy as np
import pytest
import yaml
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.layout import Chip
from qrkt_hw.backends.device.pubs import jobs_of
from qrkt_hw.errors import UserError
from qrkt_hw.training import classifier
from tests.command_line import qrkt, refused

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]
ENTRY = {
    "provider": "ibm",
    "name": "ibm_fez",
    "optimization_level": 1,
    "submissions_per_minute": 100_000,
    "patience": 5,
    "grace": 2,
}
TINY = ["--hidden", 4, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1, "--ansatz", "brickwork", "--heads", 2]


@pytest.fixture(scope="module")
def home(service, tmp_path_factory):
    """A small run and ``backends.yaml``."""
    folder = tmp_path_factory.mktemp("device")
    entries = {"ibm_fez": ENTRY, "ibm_limited": {**ENTRY, "max_seconds": 5}}
    (folder / "backends.yaml").write_text(yaml.safe_dump(entries))
    found = qrkt("train", "--limit", 32, "--epochs", 1, *TINY, "--rk", "rk1", "--out", "run", cwd=folder)
    assert found.returncode == 0, found.stderr
    return folder


@pytest.fixture
def fez(home, service):
    service.reset()
    return lambda shots=256, **keys: resolve("ibm_fez", shots=shots, file=home / "backends.yaml", device=keys)


def draw(rows, qubits=3, seed=1):
    template = circuits.build("brickwork", qubits, 1)
    return Call(template, np.random.default_rng(seed).uniform(-3, 3, (rows, len(template.parameters))))


@pytest.mark.parametrize("noisy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_mitigation_is_planned_journalled_and_billed_once(noisy, home, service):
    service.reset(noisy=noisy)
    asked = ["infer", "run", "--backend", "ibm_fez", "--limit", 4, "--mitigation", "mthree", "--json"]
    plan = json.loads(qrkt(*asked, "--dry-run", cwd=home).stdout)
    found = qrkt(*asked, "--value-errors", cwd=home)
    assert found.returncode == 0, found.stderr
    record, report = json.loads(found.stdout), service.report()
    rows = record["layers"]
    weights = [row["values"] for row in rows]
    mitigated = np.average([row["mean_error"] for row in rows], weights=weights)
    unmitigated = np.average([row["unmitigated_mean_error"] for row in rows], weights=weights)
    assert mitigated < unmitigated if noisy else mitigated == pytest.approx(unmitigated)
    # calibrations have shots of their own, and so a job of their own; one per set of qubits
    calibrations = [job for job in report["jobs"] if job["shots"] == 16_384]
    assert len(calibrations) == 1 and {job["shots"] for job in report["jobs"]} == {1024, 16_384}
    assert (plan["jobs"], plan["executions"]) == (len(report["jobs"]), report["executions"])
    assert plan["seconds"] == pytest.approx(report["seconds"], rel=0.01)
    assert record["backend_details"]["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)
    shown = qrkt("jobs", "list", "run", cwd=home).stdout
    assert shown.count("done") >= len(report["jobs"]) and not report["twice"]


@pytest.mark.parametrize("name", ["ibm_fez", pytest.param("ibm_miami", marks=pytest.mark.slow)])
def test_all_parts_of_a_plan_are_what_the_service_bills(name, home, service, monkeypatch):
    """Fine-tuning, calibrations, shots by stage and repeated samples: on a Heron the short formula is the larger, on a
    Nighthawk the long one; the service computes its bill from the payload."""
    monkeypatch.setattr(classifier, "REFIT_STEPS", 4)
    service.reset()
    asked = ["infer", "run", "--backend", name, "--limit", 3, "--fine-tune", 2, "--mitigation", "mthree",
             "--shots", 64, "--shots-per-stage", "auto", "--repeat-uncertain", 2, "--restart", "--json"]  # fmt: skip
    plan = json.loads(qrkt(*(word for word in asked if word != "--restart"), "--dry-run", cwd=home).stdout)
    found = qrkt(*asked, cwd=home)
    assert found.returncode == 0, found.stderr
    report, details = service.report(), json.loads(found.stdout)["backend_details"]
    assert (plan["jobs"], plan["executions"]) == (len(report["jobs"]), report["executions"])
    assert plan["seconds"] == pytest.approx(report["seconds"], rel=0.01) and not report["twice"]
    assert details["billed_seconds"] == pytest.approx(details["estimated_seconds"], rel=0.01)
    short = sum(2 + 0.00035 * job["executions"] for job in report["jobs"])
    assert report["seconds"] >= short * 0.999 and (name == "ibm_miami") == (report["seconds"] > 2 * short)


@pytest.mark.slow
def test_ways_of_mitigation_are_compared_in_one_bill(home, service):
    service.reset()
    asked = ["infer", "run", "--backend", "ibm_fez", "--limit", 2, "--shots", 64, "--compare-mitigation", "--json"]
    plan = json.loads(qrkt(*asked, "--dry-run", cwd=home).stdout)
    planned = [row for row in plan["mitigations"] if "not_run" not in row]
    assert [row["mitigation"] for row in planned] == [
        "none", "mthree", "trex", "zne", "dynamical_decoupling", "twirl_gates",
    ]  # fmt: skip
    found = qrkt(*asked, cwd=home)
    assert found.returncode == 0, found.stderr
    record, report = json.loads(found.stdout), service.report()
    ran = [row for row in record["mitigations"] if "not_run" not in row]
    assert [row["executions"] for row in ran] == [row["executions"] for row in planned]
    assert report["seconds"] == pytest.approx(sum(row["seconds"] for row in planned), rel=0.01)
    assert record["backend_details"]["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)
    # each way takes samples of its own, also of circuits that are those of another way
    assert len(report["jobs"]) == sum(row["jobs"] for row in planned)


def test_a_circuit_without_parameters_is_run_for_every_row(fez, service):
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    observables = (SparsePauliOp("ZZ"), SparsePauliOp("IZ"))
    call = Call(circuits.CircuitTemplate("pair", circuit, (), (), observables), np.zeros((100, 0)))
    backend = fez()
    with backend.open():
        values = backend.run([call])[0]
    assert values.shape == (100, 2) and (values[:, 0] == 1).all()
    assert len(np.unique(values[:, 1])) > 5 and np.abs(values[:, 1]).max() < 5 / np.sqrt(256)
    assert service.report()["executions"] < 100 * 256 / 20  # copies are packed


@pytest.mark.slow
def test_a_guard_keeps_copies_apart_on_the_device(fez, service):
    call, found = draw(40), {}
    for spacing in (0, 1):
        backend = fez(spacing=spacing)
        with backend.open():
            values = backend.run([call])[0]
        assert np.abs(values - resolve("exact").run([call])[0]).max() < 5.5 / np.sqrt(256)
        near = Chip(backend.target).distances
        placed = [slot.physical for pub in backend.packer.pack([call]) for slot in pub.slots]
        places = sorted(set(placed))
        touching = [near[np.ix_(a, b)].min() for k, a in enumerate(places) for b in places[:k]]
        found[spacing] = (len(places), min(touching), backend.counters.executions)
    assert found[0][1] == 1 and found[1][1] == 2 and found[1][0] < found[0][0]
    assert service.report()["executions"] == found[0][2] + found[1][2]


def test_limits_refuse_before_anything_is_sent_and_go_to_the_service(home, service):
    service.reset()
    asked = ["infer", "run", "--backend", "ibm_fez", "--limit", 20, "--shots", 500, "--json"]
    plan = json.loads(qrkt(*asked, "--dry-run", cwd=home).stdout)
    low = round(plan["seconds"] - 1, 2)
    refused(qrkt(*asked, "--max-qpu-seconds", low, cwd=home), f"--max-qpu-seconds {low:g} s", "--limit ", "--shots ")
    refused(qrkt(*asked, "--max-cost", 6, cwd=home), "--max-cost 6 USD", "would fit")
    refused(
        qrkt("infer", "run", "--backend", "ibm_limited", "--limit", 200, "--shots", 4000, cwd=home),
        "max_seconds of backend ibm_limited",
    )
    assert not service.report()["jobs"]
    found = qrkt(*asked, "--max-qpu-seconds", 500, cwd=home)
    assert found.returncode == 0, found.stderr
    report = service.report()
    limits = [job["limit"] for job in report["jobs"]]
    assert limits[0] == 500 and all(limit is not None and limit < 500 for limit in limits[1:])
    assert json.loads(found.stdout)["backend_details"]["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)


def test_a_budget_stops_between_two_rounds_and_keeps_what_came_back(fez, service, tmp_path):
    first, second = draw(100, seed=1), draw(100, seed=2)
    with Journal(tmp_path / "journal.sqlite") as journal:
        activity = journal.start("infer", "ibm_fez", {})
        backend = fez(shots=1500)
        with backend.open(journal=journal, activity=activity):
            alone = backend.run([first])[0]
        cost = service.report()["seconds"]
        service.reset()
    with Journal(tmp_path / "other.sqlite") as journal:
        activity = journal.start("infer", "ibm_fez", {})
        backend = fez(shots=1500)
        with (
            backend.open(journal=journal, activity=activity, budget=Budget(1.5 * cost)),
            pytest.raises(UserError, match="what came back is kept"),
        ):
            np.testing.assert_array_equal(backend.run([first])[0], alone)
            backend.run([second])
        assert len(service.report()["executed"]) == 1
        with backend.open(journal=journal, activity=activity):  # the first circuit batch is not paid for again
            np.testing.assert_array_equal(backend.run([first])[0], alone)
        assert len(service.report()["executed"]) == 1


@pytest.mark.parametrize(
    "limit", ["input", *(pytest.param(name, marks=pytest.mark.slow) for name in ("executions", "time"))]
)
def test_what_exceeds_a_limit_of_the_service_is_split(limit, fez, service):
    """The service refuses what exceeds its limit; told of it, the same work goes as several jobs."""
    call = draw(600, qubits=4)
    keys = {"executions": {"largest_job": 60_000}, "input": {"largest_input": 40_000}, "time": {"longest_job": 15.0}}
    theirs = {"executions": {"largest_job": 60_000}, "input": {"largest_input": 44_000}, "time": {"longest_job": 17.0}}
    service.reset(**theirs[limit])
    backend = fez_again(fez, service, theirs[limit])
    with pytest.raises(UserError) as stopped, backend.open():
        backend.run([call])
    assert "\n" not in str(stopped.value) and not service.report()["executed"]
    backend = fez_again(fez, service, theirs[limit], **keys[limit])
    with backend.open():
        values = backend.run([call])[0]
    jobs = service.report()["jobs"]
    print(limit, [(job["executions"], job["size"], round(job["usage"], 1)) for job in jobs])
    assert 2 < len(jobs) <= 6 and sum(job["executions"] for job in jobs) == 600 * 256
    assert np.abs(values - resolve("exact").run([call])[0]).max() < 5.5 / np.sqrt(256)
    # the plan knows of it
    batches = backend.packer.allocate([call])
    planned = jobs_of(batches, backend.default_rep_delay, backend.job_limits)
    assert len(planned) == len(jobs) and sum(planned) == pytest.approx(sum(job["usage"] for job in jobs), rel=0.01)


def fez_again(fez, service, settings, **keys):
    backend = fez(pack=False, **keys)
    service.reset(**settings)
    return backend
