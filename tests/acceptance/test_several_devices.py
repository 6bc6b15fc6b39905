"""One inference on several devices, the retired device of the user's own example, and plans of fake devices."""

import json
from pathlib import Path

import pytest
import yaml

from qrkt_hw.backends.entries import SHOTS
from tests.acceptance.killing_jobs import forked, killed
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


def several(home, *more, names="ibm_fez,ibm_kingston", limit=9, run="run"):
    return qrkt("infer", run, "--backend", names, "--limit", limit, "--json", *more, cwd=home)


def test_fake_devices_share_an_inference_as_planned(home):
    names = "fake_torino,fake_fez"
    plan = json.loads(several(home, "--dry-run", names=names).stdout)
    found = several(home, "--value-errors", names=names)
    assert found.returncode == 0 and f"fake_fez takes {SHOTS:,} shots" in found.stderr, found.stderr
    record = json.loads(found.stdout)
    rows = {row["device"]: row for row in record["devices"]}
    assert {name: row["count"] for name, row in rows.items()} == {n: p["samples"] for n, p in plan["devices"].items()}
    assert sum(row["count"] for row in rows.values()) == record["count"] == 9 and min(r["count"] for r in rows.values())
    assert sum(r["accuracy"] * r["count"] for r in rows.values()) == pytest.approx(record["accuracy"] * 9)
    for key in ("circuits", "executions", "rounds"):
        assert plan[key] == record[key]
    for name, row in rows.items():
        assert row["estimated_seconds"] == pytest.approx(plan["devices"][name]["seconds"], abs=0.01)
    seconds = sum(one["seconds"] for one in plan["devices"].values())
    assert plan["seconds"] == pytest.approx(seconds) and plan["usd"] > 0
    assert record["backend_details"]["estimated_seconds"] == pytest.approx(seconds, abs=0.01)
    assert {row["layer"] for row in record["layers"]} and record["layers"][0]["mean_error"] > 0
    assert qrkt("infer", "run", "--backend", names, "--limit", 9, cwd=home).stdout.count("accuracy") >= 3


@pytest.fixture
def clean(home, service):
    service.reset()
    (home / "run" / "journal.sqlite").unlink(missing_ok=True)
    return service


def test_the_service_makes_its_bill_by_code_of_its_own():
    here = Path(__file__).parents[1] / "ibm_service"
    for name in ("programs.py", "devices.py", "engine.py"):
        assert "qrkt_hw" not in (here / name).read_text()


@pytest.mark.parametrize("more", [(), pytest.param(("--mitigation", "mthree"), marks=pytest.mark.slow)])
def test_two_devices_have_one_journal_and_one_bill_as_planned(more, home, clean):
    plan = json.loads(several(home, *more, "--dry-run").stdout)
    assert not clean.report()["jobs"]
    found = several(home, *more)
    assert found.returncode == 0, found.stderr
    record, report = json.loads(found.stdout), clean.report()
    details, rows = record["backend_details"], {row["device"]: row for row in record["devices"]}
    billed = {name: sum(j["usage"] for j in report["jobs"] if j["backend"] == name) for name in rows}
    assert set(billed) == {"ibm_fez", "ibm_kingston"} and min(billed.values()) > 2 and not report["twice"]
    for name, seconds in billed.items():
        assert plan["devices"][name]["seconds"] == pytest.approx(seconds, rel=0.01)
        assert rows[name]["billed_seconds"] == pytest.approx(seconds, abs=0.01)
        assert rows[name]["count"] == plan["devices"][name]["samples"]
    assert details["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)
    assert details["jobs"] == plan["jobs"] == len(report["jobs"]) and plan["executions"] == report["executions"]
    listed = json.loads(qrkt("jobs", "list", "run", "--json", cwd=home).stdout)
    assert {(one["for"], one["state"]) for one in listed} == {("infer", "done")}
    assert sorted(one["job"] for one in listed) == sorted(job["id"] for job in report["jobs"])
    assert several(home).returncode == 0  # it came to its end: another one is another inference


def test_a_device_that_fails_half_way_is_left_out_and_another_resumes_from_its_last_answer(home, clean):
    clean.misbehave("fail", skip=1, where="ibm_kingston", code=1517)
    found = several(home)
    assert found.returncode == 0, found.stderr
    record, report = json.loads(found.stdout), clean.report()
    fez, kingston = record["devices"]
    assert "The circuit is bad" in kingston["left_out"] and "ibm_kingston was left out" in found.stderr
    assert (fez["count"], kingston["count"]) == (9, 0) and 0 < fez["taken_over"] < 9
    # the circuit batch that kingston had answered is not run again: fez runs its own two and the second of the other
    ran = [entry["job"] for entry in report["executed"]]
    by = {job["id"]: job["backend"] for job in report["jobs"]}
    assert sorted(by[job] for job in ran) == ["ibm_fez"] * 3 + ["ibm_kingston"] and not report["twice"]
    assert record["backend_details"]["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)


def test_a_device_that_cannot_take_jobs_or_is_out_of_budget_is_left_out(home, clean):
    entries = yaml.safe_load((home / "backends.yaml").read_text())
    clean.control("status", backend="ibm_fez", status="offline")
    record = json.loads(several(home).stdout)
    assert [row["count"] for row in record["devices"]] == [0, 9] and "offline" in record["devices"][0]["left_out"]
    clean.reset()
    other = home / "other.yaml"
    other.write_text(yaml.safe_dump({"ibm_fez": {**entries["ibm_fez"], "max_seconds": 3}}))
    record = json.loads(several(home, "--backends-file", other).stdout)
    assert "max_seconds of backend ibm_fez 3 s" in record["devices"][0]["left_out"]
    assert [row["count"] for row in record["devices"]] == [0, 9] and record["devices"][1]["taken_over"] > 0
    assert not clean.report()["twice"]


@pytest.mark.parametrize("gone", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_where_every_device_fails_the_sentence_names_each_and_a_resume_tries_them_again(gone, home, clean):
    clean.misbehave("fail", times=99, code=1517)
    refused(several(home), "ibm_fez: job", "ibm_kingston: job", "The circuit is bad")
    clean.control("calm")
    if gone:
        clean.control("devices", names=["ibm_fez"])
        refused(several(home), "no device 'ibm_kingston'")  # one begun anew, which never was
    found = several(home, "--resume")
    assert found.returncode == 0, found.stderr
    rows = {row["device"]: row for row in json.loads(found.stdout)["devices"]}
    assert ["left_out" in rows[name] for name in ("ibm_fez", "ibm_kingston")] == [False, gone]
    assert rows["ibm_fez"]["count"] + rows["ibm_kingston"]["count"] == 9 and bool(rows["ibm_kingston"]["count"]) != gone
    assert not clean.report()["twice"] and len(clean.report()["executed"]) == 4


def test_a_limit_of_all_together(home, clean):
    refused(several(home, "--max-qpu-seconds", 3), "on all devices", "too many")
    plan = json.loads(several(home, "--dry-run").stdout)
    clean.control("settings", billing_factor=2.0)
    stopped = several(home, "--max-qpu-seconds", round(plan["seconds"] * 1.2, 2))
    refused(stopped, "are billed or estimated for jobs on all devices", "what came back is kept")
    assert "resume with: " in stopped.stderr and clean.report()["seconds"] < plan["seconds"] * 1.7
    clean.control("settings", billing_factor=1.0)
    found = several(home, "--resume")
    assert found.returncode == 0, found.stderr
    report, record = clean.report(), json.loads(found.stdout)
    assert not report["twice"] and not any("left_out" in row for row in record["devices"])
    assert record["backend_details"]["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)


def test_what_no_list_can_be(home, clean, tmp_path):
    for names, *words in (
        ("ibm_fez,ibm_fez", "names ibm_fez twice"), ("ibm_fez,,ibm_kingston", "empty name"),
        ("ibm_fez,fake_fez", "not both"), ("fake_fez,exact", "'exact' does not sample"),
        ("ibm_fez,ibm_torino", "retired by IBM on 2026-04-01", "fake_torino"), ("ibm_fez,ibm_nowhere", "ibm_nowhere"),
        ("fake_fez,fake_nowhere", "no fake backend"),
    ):  # fmt: skip
        refused(several(home, names=names), *words)
    refused(several(home, "--ablate", "sine"), "--ablate")
    refused(several(home, "--devices", "2"), "--devices")
    refused(qrkt("train", "--backend", "fake_torino,fake_fez", cwd=tmp_path), "only an inference takes several")
    assert not clean.report()["jobs"] and not list(tmp_path.iterdir())


MOMENTS = [
    ("planned, not sent", 1), ("about to be sent", 1), ("accepted, not answered", 1), ("answered, not written", 1),
    ("running", 1), ("downloading", 1), ("writing the journal", 1), ("planned, not sent", 4),
    ("answered, not written", 3), ("writing the journal", 3),
]  # fmt: skip
ASKED = ["infer", "long", "--backend", "ibm_fez,ibm_kingston", "--limit", 9, "--json"]


def failing(service):
    """Kingston runs one job and fails from the second on, as often as it is asked."""
    service.reset()
    service.misbehave("fail", skip=1, times=99, where="ibm_kingston", code=1517)


@pytest.fixture(scope="module")
def undisturbed(home, service):
    """An inference of which kingston's half goes to fez, and what was executed."""
    trained(home, "--limit", 32, "--epochs", 1, *TINY, "--rk", "rk2", out="long")
    failing(service)
    found = qrkt(*ASKED, cwd=home)
    assert found.returncode == 0, found.stderr
    return figures(json.loads(found.stdout)), sorted(entry["content"] for entry in service.report()["executed"])


def figures(record):
    keys = ("accuracy", "loss", "f1", "agreement", "count", "circuits", "executions")
    rows = [{k: v for k, v in row.items() if k in ("device", "count", "accuracy", "taken_over")}
            for row in record["devices"]]  # fmt: skip
    return {key: record[key] for key in keys}, rows


def resumed(home):
    """The last inference, resumed until it is through; gives its figures."""
    status, text = forked([*ASKED, "--resume"], home)
    if status == 2 and "is held" in text:
        status, text = forked([*ASKED, "--resume", "--resubmit"], home)
    assert status == 0, text
    newest = max((home / "long" / "inference").iterdir(), key=lambda path: path.name)
    return figures(json.loads(newest.read_text()))


@pytest.mark.parametrize(("moment", "nth"), [
    ("answered, not written", 4),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in MOMENTS),
])  # fmt: skip
def test_two_devices_one_of_which_fails_half_way_killed_and_resumed(moment, nth, undisturbed, home, service):
    failing(service)
    (home / "long" / "journal.sqlite").unlink()
    status, text = killed(service, ASKED, home, moment, nth)
    assert status == -9, (status, text)
    found, report = resumed(home), service.report()
    assert found == undisturbed[0] and not report["twice"]
    assert sorted(entry["content"] for entry in report["executed"]) == undisturbed[1]


@pytest.mark.slow
def test_one_inference_on_two_devices_killed_at_every_moment(undisturbed, home, service):
    failing(service)
    (home / "long" / "journal.sqlite").unlink()
    deaths = 0
    for kill, (moment, nth) in enumerate(MOMENTS):
        status, text = killed(service, ASKED if not kill else [*ASKED, "--resume"], home, moment, min(nth, 2))
        if status == 2 and "is held" in text:
            status, text = killed(service, [*ASKED, "--resume", "--resubmit"], home, moment, 1)
        assert "Traceback" not in text and status in (0, -9), (status, text)
        deaths += status == -9
        if status == 0:
            break
    if status != 0:
        assert resumed(home) == undisturbed[0]
    assert deaths > 3 and not service.report()["twice"]
    assert sorted(entry["content"] for entry in service.report()["executed"]) == undisturbed[1]
