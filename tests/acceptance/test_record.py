"""``qrkt-hw jobs export``: a record without secrets, from whose counts anybody computes the figures again."""

import hashlib
import io
import json
import shutil
import sqlite3
import zipfile

import pytest
import yaml
from qiskit.primitives import BitArray

from qrkt_hw.backends.device.journal import packed, unpacked
from qrkt_hw.experiments import devices
from tests.acceptance.test_several_devices import ENTRY, TINY, several
from tests.command_line import qrkt, refused, trained
from tests.ibm_service.process import KEY

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
NAMES = ("ibm_fez", "ibm_kingston")
OWN = """# by alice@example.org, kept in /home/alice/mine.py
from qrkt_hw import circuits

def chain(qubits, layers):
    return circuits.build("brickwork", qubits, layers)
"""


@pytest.fixture(scope="module")
def home(service, tmp_path_factory):
    """An inference on one device, corrected by default, one on two with mitigation, of which one fails half-way, and
    what nobody may see."""
    folder = tmp_path_factory.mktemp("alice-secret-home") / "project"
    folder.mkdir()
    entry = {**ENTRY, "instance": service.environment()["QISKIT_IBM_INSTANCE"]}
    (folder / "backends.yaml").write_text(yaml.safe_dump({name: {**entry, "name": name} for name in NAMES}))
    (folder / "mine.py").write_text(OWN)
    own = [folder / "mine.py:chain" if word == "brickwork" else word for word in TINY]
    trained(folder, "--limit", 32, "--epochs", 1, *own, "--rk", "rk1")
    service.reset()
    asked = ["--backends-file", folder / "backends.yaml"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "ENOUGH", 1)
        corrected = several(folder, *asked, names="ibm_fez")
    assert json.loads(corrected.stdout)["backend_details"]["mitigation"] == "trex", corrected.stderr
    service.misbehave("fail", skip=2, times=99, where="ibm_kingston", code=1517)  # after the calibrations
    found = several(folder, *asked, "--mitigation", "mthree")
    assert found.returncode == 0 and json.loads(found.stdout)["devices"][0]["taken_over"], found.stderr
    return folder


def opened(file):
    """Every byte of a record: its files, and within the journal all arrays and circuits unpacked."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    base = sqlite3.connect(":memory:")
    base.deserialize(members["journal.sqlite"])
    for table in ("activities", "submissions", "outcomes", "devices", "answers"):
        for number, row in enumerate(base.execute(f"select * from {table}")):
            for place, value in enumerate(row):
                content = value if isinstance(value, bytes) else str(value).encode()
                members[f"{table}/{number}/{place}"] = content
                if content[:2] == b"PK":
                    with zipfile.ZipFile(io.BytesIO(content)) as arrays:
                        members |= {f"{table}/{number}/{place}/{n}": arrays.read(n) for n in arrays.namelist()}
    return members


def test_a_record_holds_no_secret_and_its_counts_give_the_same_predictions(home, service, monkeypatch, tmp_path):
    instance = "crn:v1:bluemix:public:quantum-computing:us-east:a/planted:1234::"
    config = tmp_path / ".qiskit" / "qiskit-ibm.json"
    config.parent.mkdir()
    saved = {"alice-at-work": {"channel": "ibm_quantum_platform", "token": "saved-token-9f8e", "instance": instance}}
    config.write_text(json.dumps(saved))
    monkeypatch.setenv("HOME", str(tmp_path))
    base = sqlite3.connect(home / "run" / "journal.sqlite")  # what a service might have answered
    said = f"refused for {instance} of alice@example.org by saved-token-9f8e in /home/alice/project/journal.sqlite"
    base.execute("update submissions set remark = ? where state = 'failed'", (said,))
    base.commit()
    base.close()
    done = qrkt("jobs", "export", "run", cwd=home)
    assert done.returncode == 0 and "jobs check run-record.zip" in done.stdout, done.stderr
    words = [KEY, "eyJ", "saved-token-9f8e", "crn:v1", "planted", "alice-at-work", "alice", "secret-home", str(home),
             "/home/", service.environment()["QISKIT_IBM_INSTANCE"]]  # fmt: skip
    members = opened(home / "run-record.zip")
    assert len(members) > 50 and "record.json" in members
    for name, content in members.items():
        for word in words:
            assert word.encode() not in content, (word, name)
    assert b"refused for crn:*** of *** by *** in journal.sqlite" in b"".join(members.values())
    assert '"calibrated": "20' in "".join(members[n].decode() for n in members if n.startswith("devices/"))
    # somebody else, without an account and without the service
    for variable in ("QISKIT_IBM_TOKEN", "QISKIT_IBM_URL"):
        monkeypatch.delenv(variable)
    config.unlink()
    found = qrkt("jobs", "check", home / "run-record.zip", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert [line.split(":")[0] for line in found.stdout.splitlines()] == [
        "test, 9 samples on ibm_fez", "test, 9 samples on ibm_fez,ibm_kingston"
    ]  # fmt: skip
    assert found.stdout.count("as recorded") == 2 and "rounding" not in found.stdout
    # unpacked it is a run
    shutil.unpack_archive(home / "run-record.zip", tmp_path / "theirs")
    assert qrkt("infer", "theirs", "--limit", 9, cwd=tmp_path).returncode == 0
    assert qrkt("jobs", "list", "theirs", cwd=tmp_path).returncode == 0
    refused(qrkt("jobs", "export", "run", cwd=home), "--out", "exists already")


def test_a_record_that_was_changed_is_refused(home, tmp_path):
    record = home / "changed.zip"
    assert qrkt("jobs", "export", "run", "--out", record, cwd=home).returncode == 0
    refused(qrkt("jobs", "check", home / "backends.yaml", cwd=home), "is no record")
    refused(qrkt("jobs", "check", home / "nowhere.zip", cwd=home), "no file")
    with zipfile.ZipFile(record) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in ("journal.sqlite", "model.safetensors"):
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            for other, content in members.items():
                archive.writestr(other, content[:-1] + b"x" if other == name else content)
        refused(qrkt("jobs", "check", tmp_path / "other.zip", cwd=tmp_path), name, "another sha256")
    # counts that somebody made up, with the sums to go with them
    base = sqlite3.connect(":memory:")
    base.deserialize(members["journal.sqlite"])
    for activity, key, data in base.execute("select activity, key, data from outcomes").fetchall():
        wiped = {name: BitArray(bits.array * (bits.num_shots > 64), bits.num_bits)  # calibrations have more shots
                 for name, bits in unpacked(data).items()}  # fmt: skip
        base.execute("update outcomes set data = ? where activity = ? and key = ?", (packed(wiped), activity, key))
    base.commit()
    head = json.loads(members["record.json"])
    members["journal.sqlite"] = base.serialize()
    head["files"]["journal.sqlite"] = hashlib.sha256(members["journal.sqlite"]).hexdigest()
    members["record.json"] = json.dumps(head).encode()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(qrkt("jobs", "check", tmp_path / "other.zip", cwd=tmp_path), "by the counts, and was recorded as")


@pytest.mark.slow
def test_counts_are_found_by_their_order_where_angles_differ_in_rounding(home, monkeypatch):
    from qrkt_hw.backends.device.pubs import PUB

    record = home / "order.zip"
    assert qrkt("jobs", "export", "run", "--out", record, cwd=home).returncode == 0
    key = PUB.key.func
    monkeypatch.setattr(PUB, "key", property(lambda self: "0" * 24 + key(self)[24:]))
    found = qrkt("jobs", "check", record, cwd=home)
    assert "on ibm_fez: accuracy" in found.stdout and "by their order" in found.stdout
    refused(found, "holds no result")  # where several devices shared an inference, orders are not enough
