"""Damaged plans and journals are one sentence, and nothing in them decides what is paid."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from qiskit.primitives import BitArray

from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.packing import Packer
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.registry import command, same
from qrkt_hw.commands.jobs import _service
from qrkt_hw.errors import UserError
from tests.command_line import qrkt


def packer():
    return Packer(fake_device("fake_guadalupe").target, device="fake_guadalupe", level=1, shots=10)


@pytest.fixture(scope="module")
def plan():
    made = packer()
    template = circuits.build("brickwork", 2, 1)
    made.plan([template])
    return template, made.to_bytes()


def keys_of(packed, template):
    values = np.zeros((3, len(template.parameters)))
    return [work.key for work in packed.pack([Call(template, values)])]


def test_a_plan_gives_the_same_work_or_is_refused(plan):
    template, data = plan
    wanted = keys_of(packer().from_bytes(data), template)
    rng = np.random.default_rng(0)
    mutants = [data[:k] for k in (0, 7, 40, len(data) // 2, len(data) - 1)]
    for sealed in (True, False):  # plans of versions before have no checksum
        for _ in range(60):
            start = 0 if sealed else data.index(b'[{"key"') - 8
            mutant = bytearray(data[start:])
            place = int(rng.integers(len(mutant)))
            mutant[place] ^= 1 << int(rng.integers(8))
            mutants.append(bytes(mutant))
    refused = 0
    for mutant in mutants:
        try:
            found = packer().from_bytes(mutant)
            keys = keys_of(found, template)
        except (ValueError, UserError) as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert len(keys) == len(wanted)
    assert refused > 60  # every one that has a checksum, and more
    assert keys_of(packer().from_bytes(data[data.index(b'[{"key"') - 8 :]), template) == wanted


def test_a_plan_of_another_device_is_refused(plan):
    _, data = plan
    other = Packer(fake_device("fake_torino").target, device="fake_torino", level=1, shots=10)
    with pytest.raises(ValueError, match="read"):
        other.from_bytes(data)


# journals ------------------------------------------------------------------------------------------------------------
def written(path):
    with Journal(path) as journal:
        activity = journal.start("infer", "ibm_fez", {"backend": "ibm_fez", "limit": 3})
        journal.keep_plan(activity, b"plan", "2026-01-01T00:00:00+00:00")
        one = journal.intend(activity, "ibm_fez", ["a"], 100, 2.5)
        one = journal.mark(one, "submitted", job="job-1", remark="of the service:\x1b[31m\nred")
        journal.done(one, [{"c0": BitArray(np.zeros((1, 10, 1), np.uint8), 2)}], 2.4)
    return path


CELLS = [
    *[("activities", column, value) for column in ("name", "device", "kind", "arguments", "created")
      for value in (b"\xff\xfe", "\x1b[31m", 7)],
    ("activities", "arguments", "[1, 2]"), ("activities", "arguments", "{"), ("activities", "plan", "text"),
    ("activities", "calibrated", b"\x00"), ("activities", "arguments", '{"instance": 5}'),
    ("activities", "created", 1e300),
    *[("submissions", column, value) for column in ("state", "tag", "job", "device", "keys", "executions", "estimated",
                                                     "billed", "created", "changed", "activity", "session", "remark")
      for value in (b"\xff\xfe", "\x1b[31m", -7, 1e300)],
    ("submissions", "keys", "{}"), ("submissions", "keys", "[1]"), ("submissions", "keys", "[" * 5000),
    ("submissions", "activity", 99), ("outcomes", "data", "text"), ("outcomes", "data", b"PK\x03\x04zip"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "column", "value"), CELLS)
def test_an_odd_cell_is_one_sentence(table, column, value, tmp_path):
    path = written(tmp_path / "journal.sqlite")
    for name in ("config.yaml", "data.json"):  # a run folder
        (tmp_path / name).write_text("{}")
    assert qrkt("jobs", "list", tmp_path, cwd=tmp_path).returncode == 0
    with closing(sqlite3.connect(path)) as base, base:
        assert base.execute(f"update {table} set {column} = ?", (value,)).rowcount > 0
    for how in (["list"], ["list", "--json"], ["show"]):
        found = qrkt("jobs", *how, tmp_path, cwd=tmp_path)
        assert found.returncode in (0, 2) and "Traceback" not in found.stderr, found.stderr
        assert "\x1b" not in found.stdout + found.stderr
    with Journal(path) as journal:
        try:
            activity = journal.unfinished("infer")
            if activity is not None:
                journal.plan(activity)
                journal.outcome(activity, "a")
                command("infer", "run", activity.arguments)
                for one in journal.submissions(activity):
                    journal.mark(one, "held")
                    if column == "arguments":
                        _service(journal, one)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_damaged_page_is_one_sentence(tmp_path):
    path = written(tmp_path / "journal.sqlite")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(100, len(whole), size=20):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            with Journal(path) as journal:
                for activity in journal.activities():
                    journal.plan(activity), journal.outcome(activity, "a"), journal.totals(activity)
        except UserError as error:
            assert "\n" not in str(error)


def test_totals_count_what_was_sent_by_any_process(tmp_path):
    path = written(tmp_path / "journal.sqlite")
    with Journal(path) as journal:
        activity = journal.unfinished("infer")
        journal.intend(activity, "ibm_fez", ["b"], 100, 9.0)  # never sent
        failed = journal.mark(journal.intend(activity, "ibm_fez", ["c"], 100, 1.0), "submitting")
        journal.mark(failed, "failed", job="job-2", billed=0.5)
        assert journal.totals(activity) == (pytest.approx(2.9), pytest.approx(3.5), 2)


def test_a_journal_that_another_may_not_write(tmp_path):
    (tmp_path / "journal.lock").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "journal.sqlite")


# what a resume agrees to ---------------------------------------------------------------------------------------------
def test_a_resume_is_of_the_same_flags():
    kept = {"backend": "ibm_fez", "limit": 20, "images": [], "texts": [], "split": None, "shots": 100}
    assert same(kept, {"backend": "ibm_fez", "limit": 20, "images": [], "shots": 100, "gradient": None})
    assert same({**kept, "backends_file": "there.yaml"}, {"backend": "ibm_fez", "limit": 20, "shots": 100})
    for change in (
        {"shots": 10_000_000},
        {"backend": "ibm_other"},
        {"limit": None},
        {"limit": "20"},
        {"instance": "crn"},
    ):
        assert not same({**kept, **change}, {"backend": "ibm_fez", "limit": 20, "shots": 100})


def test_the_command_that_goes_on_can_be_typed():
    told = command("infer", "my run", {"backend": "ibm_fez", "texts": ["a b", "c"], "pack": False, "limit": None})
    assert told == "qrkt-hw infer 'my run' --resume --backend ibm_fez --text 'a b' --text c --no-pack"
    assert command("train", "run", {"backend": "ibm_fez"}) == "qrkt-hw train --resume run --backend ibm_fez"
    assert command("infer", "run", {"backend": "\x1b[31m"}).isprintable()


def test_a_resume_of_a_journal_with_flags_of_versions_before():
    assert same(
        {"backend": "ibm_fez", "guard": 1, "quality": 0.3}, {"backend": "ibm_fez", "spacing": 1, "min_fidelity": 0.3}
    )
    assert not same({"guard": 1}, {"spacing": 2})


def test_a_local_job_that_ended_with_its_process_is_run_again(tmp_path):
    """In the client's local testing mode no service keeps jobs."""
    (tmp_path / "backends.yaml").write_text("local: {provider: ibm, name: fake_manila, shots: 16, grace: 1}")
    template = circuits.build("brickwork", 2, 1)
    call = Call(template, np.zeros((1, len(template.parameters))))
    for state in ("submitting", "submitted"):
        backend = resolve("local", file=str(tmp_path / "backends.yaml"))
        with Journal(tmp_path / f"{state}.sqlite") as journal:
            activity = journal.start("infer", "fake_manila", {})
            (pub,) = backend.pack([call])
            stopped = journal.intend(activity, "fake_manila", [pub.key], pub.executions, 1.0)
            journal.mark(stopped, state, job="gone")
            with backend.open(journal=journal, activity=activity):
                assert np.isfinite(backend.run([call])[0]).all()
            assert [one.state for one in journal.submissions()] == ["failed", "done"]


def test_each_activity_of_a_backend_keeps_its_plan(tmp_path):
    (tmp_path / "backends.yaml").write_text("local: {provider: ibm, name: fake_manila, shots: 16}")
    backend = resolve("local", file=tmp_path / "backends.yaml")
    template = circuits.build("brickwork", 2, 1)
    plans = []
    with Journal(tmp_path / "journal.sqlite") as journal:
        for _ in range(2):
            activity = journal.start("infer", "fake_manila", {})
            with backend.open(journal=journal, activity=activity):
                backend.run([Call(template, np.zeros((1, len(template.parameters))))])
            plans.append(journal.plan(activity))
    assert plans[0] == plans[1] != (None, None)


@pytest.mark.parametrize("limit", [float("nan"), -1.0])
def test_a_limit_that_is_none_is_refused(limit):
    """No comparison with NaN holds, so it would let everything through."""
    for keys in ({"qpu_seconds": limit}, {"usd": limit}):
        with pytest.raises(UserError, match="is no limit"):
            Budget(**keys)
