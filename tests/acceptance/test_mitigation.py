"""Ways of mitigation side by side: as planned, within the budget, and what does not run with its reason."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from qrkt_hw import QuantumLayer, circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.commands import main
from qrkt_hw.errors import UserError
from qrkt_hw.experiments import devices
from qrkt_hw.experiments.devices import plan_mitigations
from qrkt_hw.models.factory import check_mitigation

pytestmark = pytest.mark.acceptance
TINY = ["--limit", 32, "--epochs", 1, "--hidden", 4, "--mlp", 2, "--rk-blocks", 1, "--rk", "rk1", "--heads", 2]
THERE = ["--shots", 64, "--limit", 3, "--compare-mitigation"]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code or 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A model of orthogonal circuits, and a device with errors that its calibration does not have."""
    folder = tmp_path_factory.mktemp("mitigation")
    assert run("train", "--out", folder / "run", *TINY, "--qubits", 2, "--ansatz", "orthogonal_brick") == 0
    entry = {"provider": "fake", "name": "fake_manila", "coherent": 0.05, "idle": 0.5}
    (folder / "backends.yaml").write_text(yaml.safe_dump({"loud": entry}))
    return folder


def compared(capsys, *arguments):
    capsys.readouterr()
    assert run("infer", *arguments, "--json") == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    return record, {row["mitigation"]: row for row in record["mitigations"]}


def test_every_way_is_compared_as_planned(runs, capsys):
    there = [runs / "run", "--backend", "fake_manila", *THERE]
    _, planned = compared(capsys, *there, "--dry-run")
    record, found = compared(capsys, *there)
    assert list(found) == list(planned) and record["count"] == 3
    ran = [name for name, row in found.items() if "not_run" not in row]
    wanted = ["none", "mthree", "trex", "postselection", "zne", "dynamical_decoupling", "twirl_gates"]
    assert ran == wanted
    for name in ran:
        assert found[name]["executions"] == planned[name]["executions"], name
        assert found[name]["seconds"] == pytest.approx(planned[name]["seconds"])
        low, high = found[name]["rms_interval"]
        assert 0 <= low <= found[name]["rms_error"] <= high and len(found[name]["interval"]) == 2
    # calibrations, the folded circuits, and a circuit for each feature
    assert found["mthree"]["executions"] == found["trex"]["executions"] >= found["none"]["executions"] + 32_768
    assert found["zne"]["executions"] == 2 * found["none"]["executions"]
    assert found["postselection"]["executions"] > found["none"]["executions"]
    total = sum(planned[name]["seconds"] for name in ran)
    assert record["backend_details"]["estimated_seconds"] == pytest.approx(total, abs=0.01)
    assert found["fractional_gates"]["not_run"] == "the target of fake_manila has none"
    assert run("infer", *there) == 0
    said = capsys.readouterr().out
    assert "no coherent, idle or crosstalk errors" in said and "not run: the target of" in said


def test_a_budget_holds_for_all_together(runs, capsys):
    there = [runs / "run", "--backend", "fake_manila", *THERE]
    assert run("infer", *there, "--max-qpu-seconds", 30) == 2
    assert "--max-qpu-seconds 30 s: the comparison takes" in capsys.readouterr().err
    for more in (["--mitigation", "trex"], ["--fine-tune", 2], ["--shots-per-stage", "auto"], ["--twirl-gates"]):
        assert run("infer", *there, *more) == 2
        said = capsys.readouterr().err
        assert "leave out paths" in said and more[0] in said
    assert run("infer", runs / "run", "--compare-mitigation") == 2
    assert "--compare-mitigation applies only to devices that sample" in capsys.readouterr().err


def test_readout_is_corrected_by_default_where_calibrations_are_a_small_part(runs, capsys, monkeypatch):
    there = ["infer", runs / "run", "--backend", "fake_manila", "--shots", 64, "--limit", 3]

    def executions(*more):
        capsys.readouterr()
        assert run(*there, *more, "--json") == 0
        found = capsys.readouterr()
        return json.loads(found.out.splitlines()[-1])["executions"], "readout is corrected by trex" in found.err

    plain = executions()
    assert not plain[1]
    monkeypatch.setattr(devices, "ENOUGH", 1)
    corrected, planned = executions(), executions("--dry-run")
    assert corrected == planned and corrected[1] and corrected[0] >= plain[0] + 32_768
    assert executions("--mitigation", "none") == plain
    entry = {"provider": "fake", "name": "fake_manila", "mitigation": "none"}
    (runs / "none.yaml").write_text(yaml.safe_dump({"fake_manila": entry}))
    assert executions("--backends-file", runs / "none.yaml") == plain
    assert executions("--mitigation", "trex")[0] == corrected[0]


def test_what_cannot_run_is_refused_with_its_reason():
    model = QuantumLayer(4, "brickwork", qubits=2)
    shape = SimpleNamespace(vocabulary=0, channels=1, image_size=2)
    model.input_shape = (4,)
    backend = resolve("fake_manila", shots=2)
    planned = plan_mitigations(model, shape, 3, backend, None)
    assert str(planned["postselection"]).startswith("no circuit of the model keeps its Hamming weight")
    backend = resolve("fake_manila", shots=100, device={"mitigation": "postselection"})
    with pytest.raises(UserError, match="mitigation: no circuit of the model keeps its Hamming weight"):
        check_mitigation(model, backend)
    check_mitigation(QuantumLayer(2, "orthogonal_brick", qubits=2), backend)


@pytest.mark.slow
def test_errors_that_the_calibration_does_not_have_are_named(runs, capsys):
    there = [runs / "run", "--backends-file", runs / "backends.yaml", "--backend", "loud", *THERE]
    record, _ = compared(capsys, *there)
    assert (record["backend_details"]["coherent"], record["backend_details"]["idle"]) == (0.05, 0.5)
    assert run("infer", *there) == 0
    said = capsys.readouterr().out
    assert (
        "errors added that the calibration does not have: two-qubit gates over-rotate by 5.0% and idle qubits" in said
    )


def test_twirling_and_decoupling_take_away_the_errors_they_are_for():
    template = circuits.build("ry_rz_ring", 4, 2)
    rng = np.random.default_rng(1)
    call = Call(template, rng.uniform(-3, 3, (20, template.num_inputs + template.num_weights)))
    exact = resolve("exact").run([call])[0]

    def error(**keys):
        backend = FakeBackend("f", "fake_lagos", **keys)
        return np.sqrt(np.mean((backend.run([call])[0] - exact) ** 2))

    plain, coherent, idle = error(), error(coherent=0.05), error(idle=1.0)
    print(plain, coherent, idle, error(coherent=0.05, twirl_gates=True), error(idle=1.0, dynamical_decoupling=True))
    assert error(coherent=0.05, twirl_gates=True) - plain < 0.7 * (coherent - plain)
    assert error(idle=1.0, dynamical_decoupling=True) - plain < 0.3 * (idle - plain)
    # without the errors there is nothing to gain, and nothing but the noise of the gates added is lost
    assert abs(error(twirl_gates=True) - plain) < 0.1 * plain
    assert abs(error(dynamical_decoupling=True) - plain) < 0.1 * plain
    # and without any noise they change nothing
    for more in ({"twirl_gates": True}, {"dynamical_decoupling": True}):
        assert error(noise="none", **more) < 1e-9
