"""The journal: states, outcomes, plans, and one writer at a time."""

import errno
import sqlite3

import numpy as np
import pytest
from qiskit.primitives import BitArray

from qrkt_hw.backends.device import cache
from qrkt_hw.backends.device.journal import Journal, begun_terms, packed, unpacked
from qrkt_hw.errors import UserError


def outcome(seed, rows=3, shots=5):
    rng = np.random.default_rng(seed)
    return {
        f"c{k}": BitArray.from_bool_array(rng.integers(0, 2, (rows, shots, 4 + k)).astype(bool), order="little")
        for k in range(2)
    }


def test_bits_survive_packing():
    bits = outcome(1)
    again = unpacked(packed(bits))
    assert set(again) == set(bits)
    for name, found in again.items():
        assert found.num_bits == bits[name].num_bits
        np.testing.assert_array_equal(found.array, bits[name].array)


def test_a_submission_goes_from_intention_to_outcome(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        activity = journal.start("infer", "ibm_fez", {"limit": 3})
        one = journal.intend(activity, "ibm_fez", ["a", "b"], 100, 2.5)
        assert one.state == "planned" and journal.outcome(activity, "a") is None
        one = journal.mark(one, "submitting", session="s")
        one = journal.mark(one, "submitted", job="j")
        assert (one.job, one.session) == ("j", "s")
        journal.done(one, [outcome(1), outcome(2)], 2.75)
        journal.keep_plan(activity, b"plan", "today")
    with Journal(path) as journal:  # on disk
        activity = journal.unfinished("infer")
        assert activity.arguments == {"limit": 3} and journal.plan(activity) == (b"plan", "today")
        assert journal.billed(activity) == 2.75
        assert [s.state for s in journal.submissions(activity)] == ["done"]
        np.testing.assert_array_equal(journal.outcome(activity, "b")["c1"].array, outcome(2)["c1"].array)
        other = journal.start("infer", "ibm_fez", {})
        assert journal.outcome(other, "a") is None  # samples belong to one inference
        journal.finish(other)
        assert journal.unfinished("infer") is None and journal.unfinished("train") is None


def test_results_and_bill_are_kept_together_or_not_at_all(tmp_path, monkeypatch):
    from qrkt_hw.backends.device import journal as module

    with Journal(tmp_path / "journal.sqlite") as journal:
        activity = journal.start("infer", "ibm_fez", {})
        one = journal.intend(activity, "ibm_fez", ["a", "b"], 1, 1.0)
        calls = []

        def fails_at_the_second(bits):
            calls.append(bits)
            if len(calls) == 2:
                raise RuntimeError
            return packed(bits)

        monkeypatch.setattr(module, "packed", fails_at_the_second)
        with pytest.raises(RuntimeError):
            journal.done(one, [outcome(1), outcome(2)], 1.0)
        assert journal.outcome(activity, "a") is None and journal.submission(one.id).state == "planned"


def test_one_writes_and_others_may_read(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.start("train", "ibm_fez", {})
        with pytest.raises(UserError, match="locked by another process"):
            Journal(path)
        with Journal(path, write=False) as reader:
            assert reader.unfinished("train").device == "ibm_fez"
    Journal(path).close()


def test_a_half_written_journal_can_be_read(tmp_path):
    import os
    import signal

    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.start("infer", "ibm_fez", {})
    child = os.fork()
    if child == 0:  # dies inside a transaction whose pages are on disk already
        base = sqlite3.connect(path, isolation_level=None)
        base.execute("pragma cache_size = 1")
        base.execute("pragma cache_spill = 1")
        base.execute("begin immediate")
        for _ in range(200):
            base.execute("insert into outcomes values (1, hex(randomblob(8)), 1, zeroblob(9000))")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert path.with_name(path.name + "-journal").is_file()
    with Journal(path, write=False) as reader:
        assert reader.unfinished("infer").device == "ibm_fez"


def test_a_damaged_journal_is_one_sentence(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"no database at all, and long enough to be read as one" * 30)
    with pytest.raises(UserError, match="is damaged"):
        Journal(path)
    path.unlink()
    with Journal(path) as journal:
        activity = journal.start("infer", "ibm_fez", {})
        one = journal.intend(activity, "ibm_fez", ["a"], 1, 1.0)
        journal.done(one, [outcome(1)], 1.0)
    with sqlite3.connect(path) as base:
        base.execute("update outcomes set data = x'00'")
    with Journal(path) as journal, pytest.raises(UserError, match="damaged"):
        journal.outcome(journal.activities()[0], "a")


def test_a_journal_of_another_version_is_not_read_as_one_of_this(tmp_path):
    Journal(tmp_path / "j.sqlite").close()
    with sqlite3.connect(tmp_path / "j.sqlite") as base:
        base.execute("pragma user_version = 2")
    base.close()
    for write in (True, False):
        with pytest.raises(UserError, match="another version of qrkt-hw"):
            Journal(tmp_path / "j.sqlite", write)


def test_a_journal_cut_anywhere_is_damaged_or_read(tmp_path):
    with Journal(tmp_path / "whole.sqlite") as journal:
        begun = journal.start("infer", "fez", {"terms": {"batch": 500}})
        for k in range(200):
            journal.intend(begun, "fez", [f"{k:064}"], 1, 1.0)
    whole, half = (tmp_path / "whole.sqlite").read_bytes(), tmp_path / "half.sqlite"
    damaged = 0
    for end in range(0, len(whole), 1000):
        half.write_bytes(whole[:end])
        try:
            with Journal(half, write=False) as journal:
                journal.submissions()
            terms = begun_terms(half, "infer")
        except UserError as error:
            assert "is damaged" in str(error) or "cannot be read" in str(error)
            damaged += 1
        else:
            pytest.fail(f"{end} bytes of {len(whole)} were read: {terms}")
    assert damaged > 5


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache.fcntl, "flock", refuse)
    with pytest.raises(UserError, match="No locks available"):
        Journal(tmp_path / "j.sqlite")
