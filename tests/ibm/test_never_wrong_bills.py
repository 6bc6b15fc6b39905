"""Nothing is billed that is not asked for, journalled and counted; against the service on loopback."""

import json
import sqlite3

import numpy as np
import pytest
import torch
import yaml

from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.errors import UserError
from qrkt_hw.nn.quantum import QuantumLayer
from tests.acceptance.conftest import loopback, service  # noqa: F401
from tests.acceptance.test_gan import TRAIN
from tests.command_line import qrkt, refused

pytestmark = pytest.mark.timeout(300)
ENTRY = {
    "provider": "ibm", "name": "ibm_fez", "optimization_level": 1, "submissions_per_minute": 100_000, "patience": 5,
    "grace": 2, "shots": 64,
}  # fmt: skip
TINY = ["--hidden", 4, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1, "--ansatz", "brickwork", "--heads", 2]
ASKED = ["infer", "run", "--backend", "mine", "--limit", 4]


@pytest.fixture(scope="module")
def home(service, tmp_path_factory):  # noqa: F811
    """A small run and ``backends.yaml``."""
    folder = tmp_path_factory.mktemp("bills")
    (folder / "backends.yaml").write_text(yaml.safe_dump({"mine": ENTRY}))
    found = qrkt("train", "--limit", 32, "--epochs", 1, *TINY, "--rk", "rk1", "--out", "run", cwd=folder)
    assert found.returncode == 0, found.stderr
    return folder


@pytest.fixture
def mine(home, service):  # noqa: F811
    service.reset()
    (home / "run" / "journal.sqlite").unlink(missing_ok=True)
    return resolve("mine", file=home / "backends.yaml")


def submitted(service):  # noqa: F811
    return len(service.report()["jobs"])


def test_python_says_that_it_pays(mine, service):  # noqa: F811
    layer = QuantumLayer(2, qubits=2, backend=mine)
    with pytest.raises(UserError, match=r"bills what it runs.*backend.open"):
        layer(torch.zeros(1, 2))
    assert not submitted(service)
    with mine.open():
        assert layer(torch.ones(1, 2, dtype=torch.int64)).dtype == torch.float32
    assert submitted(service) == 1 and mine.billed == pytest.approx(service.report()["seconds"], abs=0.01)


def test_the_limit_of_an_entry_counts_wherever_it_is_opened(mine, service):  # noqa: F811
    mine.max_seconds = 1
    template = circuits.build("brickwork", 2, 1)
    with mine.open(), pytest.raises(UserError, match="max_seconds of backend mine"):
        mine.run([Call(template, np.zeros((1, len(template.parameters))))])
    assert not submitted(service)


def test_a_file_that_makes_exact_bill_stops_every_command(mine, home, service, tmp_path):  # noqa: F811
    (tmp_path / "backends.yaml").write_text(yaml.safe_dump({"exact": ENTRY}))
    for command in (["infer", home / "run", "--limit", 2], ["train", "--limit", 32, "--epochs", 1, *TINY]):
        refused(qrkt(*command, cwd=tmp_path), "backends.yaml", "exact")
    assert not submitted(service)


def test_everything_billed_is_in_the_journal_and_announced(mine, home, service):  # noqa: F811
    refused(qrkt(*ASKED, "--ablate", "sine", cwd=home), "--ablate", "mine")
    assert not submitted(service)
    found = qrkt(*ASKED, "--value-errors", "--json", cwd=home)
    assert found.returncode == 0, found.stderr
    assert "backends.yaml of this folder" in found.stderr
    report, record = service.report(), json.loads(found.stdout)["backend_details"]
    with Journal(home / "run" / "journal.sqlite", write=False) as journal:
        kept = [s.job for s in journal.submissions()]
    assert sorted(kept) == sorted(job["id"] for job in report["jobs"]) and record["jobs"] == len(kept) > 1
    assert record["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)


def test_a_resume_shows_the_whole_bill_and_pays_only_what_its_flags_say(mine, home, service, monkeypatch):  # noqa: F811
    from qrkt_hw.backends.ibm.jobs import Jobs

    send, sent = Jobs._send, []

    def twice(self, one):
        if len(sent) == 1:
            raise KeyboardInterrupt
        sent.append(one)
        return send(self, one)

    monkeypatch.setattr(Jobs, "_send", twice)
    assert qrkt(*ASKED, cwd=home).returncode not in (0, 2)
    monkeypatch.undo()
    before = service.report()
    assert len(before["jobs"]) == 1
    refused(qrkt(*ASKED, cwd=home), "--resume", "--restart")
    # another's journal, or another's flags: told, and nothing is sent
    refused(qrkt("infer", "run", "--resume", cwd=home), "--resume", "--backend mine --limit 4")
    base = sqlite3.connect(home / "run" / "journal.sqlite")
    (kept,) = base.execute("select arguments from activities").fetchone()
    for change in (
        {"shots": 10_000_000},
        {"limit": None},
        {"backend": "ibm_fez"},
        {"shots": ["many"]},
        {"x": {"y": 1}},
    ):
        base.execute("update activities set arguments = ?", (json.dumps({**json.loads(kept), **change}),))
        base.commit()
        refused(qrkt(*ASKED, "--resume", cwd=home), "--resume")
    base.execute("update activities set arguments = ?, device = 'ibm_miami'", (kept,))
    base.commit()
    refused(qrkt(*ASKED, "--resume", cwd=home), "ibm_miami")
    base.execute("update activities set device = 'ibm_fez', plan = substr(plan, 1, 200)")
    base.commit()
    refused(qrkt(*ASKED, "--resume", cwd=home), "plan", "--replan")
    assert submitted(service) == 1
    found = qrkt(*ASKED, "--resume", "--replan", "--json", cwd=home)
    assert found.returncode == 0, found.stderr
    base.close()
    report, record = service.report(), json.loads(found.stdout)["backend_details"]
    assert record["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)
    assert report["seconds"] > before["seconds"] > 2
    assert record["jobs"] == len(report["jobs"]) == 2
    assert record["estimated_seconds"] == pytest.approx(record["billed_seconds"], rel=0.2)


def test_a_run_folder_does_not_decide_that_a_training_is_billed(mine, home, service, tmp_path):  # noqa: F811
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(home / "run", copy)
    options = yaml.safe_load((copy / "config.yaml").read_text())
    options["backend"]["name"], options["training"]["epochs"] = "mine", 2
    (copy / "config.yaml").write_text(yaml.safe_dump(options, explicit_end=True))
    refused(qrkt("train", "--resume", copy, cwd=home), "billed", "--backend mine")
    refused(qrkt("train", "--resume", copy, "--backend", "exact", cwd=home), "--backend", "mine")
    assert not submitted(service)


@pytest.mark.slow
def test_drawing_images_is_journalled_and_not_paid_for_twice(mine, home, service):  # noqa: F811
    found = qrkt(*TRAIN, "--out", "gan", cwd=home)
    assert found.returncode == 0, found.stderr
    asked = ["generate", "gan", "--count", 2, "--backend", "mine"]
    assert qrkt(*asked, cwd=home).returncode == 0
    with Journal(home / "gan" / "journal.sqlite", write=False) as journal:
        assert [s.job for s in journal.submissions()] == [job["id"] for job in service.report()["jobs"]]
