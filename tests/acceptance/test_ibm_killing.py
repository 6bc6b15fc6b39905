"""Killed at any moment and resumed: nothing executed twice, nothing lost, the same results as without."""

import csv
import itertools
import json
import time

import pytest

from tests.acceptance.killing_jobs import finish, forked, killed, start

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
FILE = """
ibm_fez: {provider: ibm, name: ibm_fez, shots: 32, mode: batch, timeout: 30, patience: 5, grace: 0.5,
          submissions_per_minute: 100000, optimization_level: 1}
"""
MOMENTS = ["planned, not sent", "about to be sent", "accepted, not answered", "answered, not written", "running",
           "downloading", "writing the journal"]  # fmt: skip
MODEL = ["--preset", "digits-hardware", "--epochs", "1", "--limit", "60"]
INFER = ["infer", "run", "--backend", "ibm_fez", "--limit", "3"]


@pytest.fixture(scope="module")
def folder(service, tmp_path_factory):
    """A run to infer with, and ``backends.yaml``."""
    found = tmp_path_factory.mktemp("killing")
    (found / "backends.yaml").write_text(FILE)
    status, text = forked(["train", *MODEL, "--out", "run"], found)
    assert status == 0, text
    return found


@pytest.fixture(scope="module")
def uninterrupted(service, folder):
    return undisturbed("run", service, folder)


@pytest.fixture(scope="module")
def long_uninterrupted(service, folder):
    status, text = forked(["train", *MODEL, "--rk", "rk4", "--out", "long"], folder)  # eight batches an inference
    assert status == 0, text
    return undisturbed("long", service, folder)


def undisturbed(run, service, folder):
    """Numbers and counts of an inference that nothing stopped."""
    service.reset()
    status, text = forked(["infer", run, *INFER[2:]], folder)
    assert status == 0, text
    return inferred(folder, run), service.report()


def inferred(folder, run="run"):
    """The numbers of the newest inference."""
    newest = max((folder / run / "inference").iterdir(), key=lambda path: path.name)
    record = json.loads(newest.read_text())
    return {key: record[key] for key in ("accuracy", "loss", "f1", "agreement", "count")}


def nth(moment, kill):
    """How often the moment is passed before it kills, so that eight kills fit into eight batches and each gets on."""
    if moment in ("accepted, not answered", "answered, not written", "running"):
        return 1  # the next process adopts the job and comes to the next one
    return 1 if kill == 0 else 2 if moment == "downloading" else 1 + kill % 2


def infer_with_kills(service, folder, moment, kills, run):
    """Killed ``kills`` times at a moment; gives how often a job had to be sent again on the user's word."""
    service.reset()
    sent_again, flags = 0, []
    for kill in range(kills):
        arguments = ["infer", run, *INFER[2:]] if kill == 0 else ["infer", run, *INFER[2:], "--resume"]
        status, text = killed(service, [*arguments, *flags], folder, moment, nth(moment, kill))
        flags = []
        if status == 2 and "is held" in text:  # nobody knows whether it arrived: only the user can decide
            assert moment == "about to be sent", text
            status, text = killed(service, ["infer", run, *INFER[2:], "--resume", "--resubmit"], folder, moment, 2)
            sent_again += 1
        assert status == -9, (status, text)
        assert "Traceback" not in text
    status, text = forked(["infer", run, *INFER[2:], "--resume"], folder)
    if status == 2 and "is held" in text:
        status, found = forked(["jobs", "adopt", run], folder)
        assert status == 0 and "--resume --resubmit sends it anew" in found
        sent_again += 1
        status, text = forked(["infer", run, *INFER[2:], "--resume", "--resubmit"], folder)
    assert status == 0, text
    return sent_again


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_inference_killed_eight_times_equals_one_that_was_not(moment, long_uninterrupted, service, folder):
    killed_and_resumed(service, folder, moment, 8, "long", long_uninterrupted)


def test_an_inference_killed_and_resumed_equals_one_that_was_not(uninterrupted, service, folder):
    killed_and_resumed(service, folder, "answered, not written", 1, "run", uninterrupted)


def killed_and_resumed(service, folder, moment, kills, run, whole):
    results, counts = whole
    sent_again = infer_with_kills(service, folder, moment, kills, run)
    report = service.report()
    assert not report["twice"]
    assert inferred(folder, run) == results
    assert sorted(e["content"] for e in report["executed"]) == sorted(e["content"] for e in counts["executed"])
    assert report["seconds"] == pytest.approx(counts["seconds"])
    assert sent_again == 0 or moment == "about to be sent"


TRAIN = ["train", "--preset", "digits-hardware", "--backend", "ibm_fez", "--gradient", "spsa", "--epochs", "2",
         "--limit", "24", "--batch-size", "8", "--shots", "16", "--warmup-steps", "1"]  # fmt: skip
RESUME = ["train", "--backend", "ibm_fez", "--resume"]


def trained(path):
    with (path / "metrics.csv").open() as handle:
        rows = [{k: v for k, v in row.items() if "seconds" not in k and "memory" not in k}
                for row in csv.DictReader(handle)]  # fmt: skip
    results = json.loads((path / "results.json").read_text())
    return (path / "model.safetensors").read_bytes(), rows, results["test"]


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["spsa", "adjoint"])
def test_a_training_killed_at_twenty_moments_equals_one_that_was_not(gradient, service, folder):
    service.reset()
    train = [gradient if a == "spsa" else a for a in TRAIN]
    status, text = forked([*train, "--out", f"whole-{gradient}"], folder)
    assert status == 0, text
    wanted, counts = trained(folder / f"whole-{gradient}"), service.report()
    service.reset()
    name, resubmit, deaths = f"stopped-{gradient}", [], 0
    kills = 20 if gradient == "spsa" else 6
    for kill, moment in zip(range(kills), itertools.cycle(MOMENTS), strict=False):
        arguments = [*train, "--out", name] if kill == 0 else [*RESUME, name, *resubmit]
        resubmit = []
        status, text = killed(service, arguments, folder, moment, 1 + kill % 2)
        if status == 2 and "is held" in text:
            status, text = killed(service, [*RESUME, name, "--resubmit"], folder, moment, 1 + kill % 2)
        assert "Traceback" not in text, text
        if status == 0:
            break
        assert status == -9, (status, text)
        deaths += 1
    status, text = forked([*RESUME, name], folder)
    if status == 2 and "is held" in text:
        status, text = forked([*RESUME, name, "--resubmit"], folder)
    assert status == 0, text
    assert deaths == kills
    report = service.report()
    assert not report["twice"]
    assert trained(folder / name) == wanted
    assert sorted(e["content"] for e in report["executed"]) == sorted(e["content"] for e in counts["executed"])


@pytest.mark.slow
def test_two_resumes_at_once(service, folder, uninterrupted):
    service.reset()
    status, _ = killed(service, INFER, folder, "running")
    assert status == -9
    service.misbehave("stall_read", where="results", seconds=4)
    first, log = start([*INFER, "--resume"], folder)
    while not service.report()["requests"].get("GET jobs/results", 0) and first.exitcode is None:
        time.sleep(0.05)
    status, text = forked([*INFER, "--resume"], folder)
    assert status == 2 and "locked by another process" in text, text
    status, text = finish(first, log)
    assert status == 0, text
    assert inferred(folder) == uninterrupted[0] and not service.report()["twice"]


@pytest.mark.slow
def test_an_unfinished_inference_is_not_forgotten(service, folder, uninterrupted):
    service.reset()
    status, _ = killed(service, INFER, folder, "running")
    assert status == -9
    status, text = forked(INFER, folder)
    assert status == 2 and "--resume" in text and "--restart" in text
    status, text = forked(["jobs", "list", "run"], folder)
    assert status == 0 and "submit" in text
    status, text = forked(["jobs", "cancel", "run"], folder)
    assert status == 0 and ("is cancelled" in text or "is done already" in text)
    status, text = forked([*INFER, "--restart"], folder)
    assert status == 0 and inferred(folder) == uninterrupted[0]
    status, text = forked([*INFER, "--resume"], folder)
    assert status == 2 and "was stopped half-way" in text


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["about to be sent", "answered, not written", "running"])
def test_a_device_calibrated_anew_between_kill_and_resume(moment, service, folder, uninterrupted):
    results, counts = uninterrupted
    wanted = sorted(e["content"] for e in counts["executed"])
    service.reset()
    nth = 2 if moment != "running" else 1  # the second circuit batch is planned on the old calibration too
    status, _ = killed(service, INFER, folder, moment, nth)
    assert status == -9
    service.control("recalibrate", backend="ibm_fez")
    status, text = forked([*INFER, "--resume"], folder)
    if moment == "about to be sent":
        assert status == 2 and "is held" in text
        status, text = forked([*INFER, "--resume", "--resubmit"], folder)
    assert status == 0 and "calibrated anew" in text, text
    assert inferred(folder) == results and not service.report()["twice"]
    assert sorted(e["content"] for e in service.report()["executed"]) == wanted
    # a plan of today would have been another
    status, text = forked(INFER, folder)
    assert status == 0, text
    assert not set(wanted) & {e["content"] for e in service.report()["executed"][len(wanted) :]}
