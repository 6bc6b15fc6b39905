"""Whatever the service does: the right numbers, or one sentence; never a hang, and nothing executed twice unsaid."""

import numpy as np
import pytest

from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.errors import UserError

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]
FILE = """
ibm_fez: {provider: ibm, name: ibm_fez, shots: 64, mode: MODE, timeout: 1.5, patience: 3, grace: 1.5, max_wait: 3,
          submissions_per_minute: 1000, optimization_level: 1}
"""
RIGHT = ""  # the outcome: values as without trouble
# trouble -> (what the service is told, words of the sentence or RIGHT, words of what is told beside the right values)
TROUBLE = {
    "nothing": ([], RIGHT, ""),
    "connection lost before a submission": ([{"kind": "drop_before"}], "held", ""),
    "connection lost during a submission": ([{"kind": "drop_during"}], "held", ""),
    "accepted and the answer lost": ([{"kind": "drop_after"}], RIGHT, "found by its tag"),
    "bad gateway, not accepted": ([{"kind": "502_before"}], "held", ""),
    "accepted, then bad gateway": ([{"kind": "502_after"}], RIGHT, "found by its tag"),
    "accepted, then silence": ([{"kind": "stall_submit", "seconds": 8}], RIGHT, "found by its tag"),
    "reading a result stalls": ([{"kind": "stall_read", "where": "results", "seconds": 8}], RIGHT, ""),
    "reading a status stalls": ([{"kind": "stall_read", "where": "jobs/d", "seconds": 8}], RIGHT, ""),
    "bad gateway at a read": ([{"kind": "502_read", "where": "results", "times": 2}], RIGHT, ""),
    "connection lost at a download": ([{"kind": "drop_download", "times": 2}], RIGHT, ""),
    "job fails inside the service": ([{"kind": "fail", "code": 9999}], RIGHT, "sent again"),
    "job fails again and again": ([{"kind": "fail", "code": 9999, "times": 9}], "failed", ""),
    "job fails for its circuits": ([{"kind": "fail", "code": 1517}], "circuit is bad", ""),
    "job is cancelled by another": ([{"kind": "cancel"}], "was cancelled", ""),
    "job is stopped at its time limit": ([{"kind": "ran_too_long"}], "time limit", ""),
    "job stays queued": ([{"kind": "stay_queued"}], "not done after", ""),
    "job comes late": ([{"kind": "late", "seconds": 2}], RIGHT, ""),
    "token expired half-way": ([{"kind": "expire_tokens", "where": "POST jobs"}], RIGHT, ""),
    "token expired while waiting": ([{"kind": "expire_tokens", "where": "GET jobs/d"}], RIGHT, ""),
    "session closed early": ([{"kind": "close_session"}], RIGHT, "opened"),
    "session closed with its jobs": ([{"kind": "close_session", "code": 1217}], RIGHT, "sent again"),
}  # fmt: skip
QUICK = {("accepted and the answer lost", "batch"), ("session closed early", "session"),
         ("token expired half-way", "job")}  # fmt: skip
CASES = [(name, mode) for name in TROUBLE for mode in ("job", "batch", "session")]


@pytest.fixture
def fez(service, tmp_path):
    """Makes backends on the service; settings of the service by keyword."""
    service.reset()

    def make(mode="job", name="ibm_fez", **keys):
        file = tmp_path / "backends.yaml"
        file.write_text(FILE.replace("MODE", mode))
        return resolve(name, file=file, device=keys)

    return make


def calls(seed, rows=6):
    template = circuits.build("brickwork", 3, 1)
    rng = np.random.default_rng(seed)
    return [Call(template, rng.normal(size=(rows, len(template.parameters))), f"call {k}") for k in range(2)]


def evaluate(backend, journal, kind="infer", **how):
    """Two circuit batches, journalled; an unfinished activity goes on."""
    activity = journal.unfinished(kind) or journal.start(kind, "ibm_fez", {})
    with backend.open(journal=journal, activity=activity, **how):
        found = [backend.run(calls(seed)) for seed in (1, 2)]
    journal.finish(activity)
    return found


def same(found, wanted):
    for left, right in zip(found, wanted, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def undisturbed(service, tmp_path_factory):
    """Values without trouble: the same in every mode, as sampling is seeded by content."""
    service.reset()
    file = tmp_path_factory.mktemp("files") / "backends.yaml"
    file.write_text(FILE.replace("MODE", "job"))
    return evaluate(resolve("ibm_fez", file=file), Journal(None))


@pytest.mark.parametrize(
    ("name", "mode"), [c if c in QUICK else pytest.param(*c, marks=pytest.mark.slow) for c in CASES]
)
def test_right_numbers_or_one_sentence(name, mode, undisturbed, fez, service, tmp_path):
    told, sentence, notice = TROUBLE[name]
    backend = fez(mode)
    if name == "session closed with its jobs":
        service.control("settings", queue_seconds=1.0)
    for trouble in told:
        service.misbehave(**trouble)
    without_session = mode == "job" and "session" in name
    with Journal(tmp_path / "journal.sqlite") as journal:
        if sentence:
            with pytest.raises(UserError) as stopped:
                evaluate(backend, journal)
            assert sentence in str(stopped.value) and "\n" not in str(stopped.value)
            service.control("release")
            service.reset_trouble()
            if sentence == "held":
                with pytest.raises(UserError, match="held"):
                    evaluate(fez(mode), journal)  # not sent again by itself
                assert not service.report()["executed"]
            same(evaluate(fez(mode), journal, resubmit=True), undisturbed)
        else:
            same(evaluate(backend, journal), undisturbed)
            if not without_session:
                assert notice in (backend.notice or "")
        assert all(s.state in ("done", "failed") for s in journal.submissions())
        report = service.report()
        assert not report["twice"]
        assert journal.billed(journal.activities()[0]) == pytest.approx(report["seconds"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["job", "batch", "session"])
def test_a_job_whose_tag_is_seen_late_is_found_or_adopted_later(mode, undisturbed, fez, service, tmp_path):
    service.reset(tags_delay=0.8)
    service.misbehave("drop_after")
    with Journal(tmp_path / "soon.sqlite") as journal:
        same(evaluate(fez(mode), journal), undisturbed)  # within the grace period
    assert not service.report()["twice"]
    service.reset(tags_delay=30.0)
    service.misbehave("drop_after")
    with Journal(tmp_path / "late.sqlite") as journal:
        with pytest.raises(UserError, match="held"):
            evaluate(fez(mode), journal)
        service.control("settings", tags_delay=0.0)
        backend = fez(mode)
        same(evaluate(backend, journal), undisturbed)  # adopted, not sent again
        assert journal.submissions()[0].remark == "found by its tag"
    assert not service.report()["twice"]


@pytest.mark.slow
def test_a_plan_without_sessions(undisturbed, fez, service, monkeypatch):
    for name, value in service.environment("open").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"no sessions.*mode"):
        evaluate(fez("session"), Journal(None))
    backend = fez("auto")
    same(evaluate(backend, Journal(None)), undisturbed)
    assert {job["mode"] for job in service.report()["jobs"]} == {"batch"}


@pytest.mark.slow
def test_a_refused_session_is_a_batch_where_the_mode_is_auto(undisturbed, fez, service):
    service.misbehave("refuse_session")
    backend = fez("auto")
    assert backend.place.mode == "session"
    same(evaluate(backend, Journal(None)), undisturbed)
    assert {job["mode"] for job in service.report()["jobs"]} == {"batch"}


def test_a_device_calibrated_anew_keeps_the_pinned_plan(undisturbed, fez, service, tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        activity = journal.start("infer", "ibm_fez", {})
        first = fez()
        with first.open(journal=journal, activity=activity):
            one = first.run(calls(1))
        service.control("recalibrate", backend="ibm_fez")
        second = fez()
        assert second.calibrated() != first.calibrated()
        same(evaluate(second, journal), undisturbed)
        assert "calibrated anew" in second.notice
        same([one], undisturbed[:1])
    assert not service.report()["twice"] and len(service.report()["executed"]) == 2


@pytest.mark.slow
def test_too_many_submissions_a_minute_are_spread(fez, service):
    service.reset(per_minute=1)
    with pytest.raises(UserError, match="fewer requests"):
        evaluate(fez(), Journal(None))
    assert len(service.report()["executed"]) == 1


@pytest.mark.slow
def test_calls_beyond_the_limits_of_a_job_are_split(undisturbed, fez, service):
    service.reset(largest_job=300)
    backend = fez(largest_job=300, pack=False)
    found = evaluate(backend, Journal(None))
    report = service.report()
    assert max(job["executions"] for job in report["jobs"]) <= 300 and len(report["jobs"]) > 2
    for left, right in zip(found, undisturbed, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a.shape == b.shape and np.abs(a - b).max() < 6 * np.sqrt(2 / 64)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no account", ["no IBM Quantum account", "save_account"]),
        ("wrong key", ["does not accept the API key"]),
        ("no network", ["cannot be reached", "network"]),
        ("no instance", ["no access to the instance", "instance names another"]),
        ("unknown", ["no device 'ibm_nowhere'", "ibm_fez", "ibm_least_busy"]),
        ("retired", ["retired", "2026-04-01", "fake_torino", "ibm_least_busy"]),
        ("offline", ["offline", "ibm_least_busy"]),
        ("queue closed", ["queue of ibm_fez is closed", "paused"]),
        ("too small", ["ibm_lagos has 7 qubits", "8"]),
        ("revoked", ["does not accept the API key"]),
    ],
)
def test_what_a_user_can_meet_is_one_sentence(how, words, fez, service, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = {"unknown": "ibm_nowhere", "retired": "ibm_torino", "too small": "ibm_lagos"}.get(how, "ibm_fez")
    keys = {}
    if how == "no account":
        monkeypatch.delenv("QISKIT_IBM_TOKEN")
    elif how == "wrong key":
        monkeypatch.setenv("QISKIT_IBM_TOKEN", "another-key")
    elif how == "no network":
        for variable in ("QISKIT_IBM_URL", "IAM_URL", "GLOBAL_SEARCH_URL"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9/experimental")
    elif how == "no instance":
        keys["instance"] = "crn:v1:bluemix:public:quantum-computing:us-east:a/1:2::"
    elif how in ("offline", "queue closed"):
        service.control("status", backend="ibm_fez", status="offline" if how == "offline" else "paused")
    with pytest.raises(UserError) as stopped:
        backend = fez(name=name, **keys)
        if how == "revoked":
            service.control("expire")
            service.misbehave("reject_key", times=99)
        width = 8 if how == "too small" else 2
        template = circuits.build("brickwork", width, 1)
        with backend.open():
            backend.run([Call(template, np.zeros((1, len(template.parameters))))])
    text = str(stopped.value)
    assert all(word in text for word in words), text
    assert "\n" not in text and "Traceback" not in text and "another-key" not in text


def test_a_bill_above_the_estimate_stops_at_the_limit_and_keeps_what_came_back(undisturbed, fez, service, tmp_path):
    service.reset(billing_factor=4.0)
    with Journal(tmp_path / "journal.sqlite") as journal:
        with pytest.raises(UserError, match="max_qpu_seconds"):
            evaluate(fez(), journal, budget=Budget(qpu_seconds=10.0))
        report = service.report()
        assert len(report["executed"]) == 1 and report["jobs"][0]["limit"] == 10  # passed on to the service
        assert journal.billed(journal.activities()[0]) == pytest.approx(report["seconds"])
        assert report["seconds"] > 8
        service.control("settings", billing_factor=1.0)
        same(evaluate(fez(), journal), undisturbed)
    assert len(service.report()["executed"]) == 2 and not service.report()["twice"]
