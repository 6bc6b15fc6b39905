"""A run keeps the circuits it computes with as data; hostile or misused runs are refused in a sentence."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from qiskit.circuit import Gate, ParameterVector, QuantumCircuit

import qrkt_hw
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.circuits import CircuitTemplate, build, names
from qrkt_hw.compiler import derive
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config, flattened
from qrkt_hw.simulator import simulator
from tests.command_line import qrkt, refused
from tests.random_templates import random_template
from tests.runs.trained import MINE, SMALL, copied, loss

EVIL = MINE.replace("circuit.rx(w", "circuit.ry(2 * w") + "\nPath({marker!r}).touch()\n"


def reconfigured(run: Path, **keys: object) -> None:
    """Other values of flat keys in the run's configuration."""
    values = {**flattened(yaml.safe_load((run / "config.yaml").read_text())), **keys}
    (run / "config.yaml").write_text(yaml.safe_dump(values))


def named(run: Path, ansatz: object) -> Path:
    """The run with another ansatz in its configuration, and in its index where it has one."""
    reconfigured(run, ansatz=str(ansatz))
    index = run / "circuits" / "circuits.json"
    if index.is_file():
        index.write_text(json.dumps({**json.loads(index.read_text()), "ansatz": str(ansatz)}))
    return run


# circuits as data -----------------------------------------------------------------------------------------------------
def test_an_edited_moved_or_absent_file_changes_nothing(home, tmp_path):
    run = copied(home / "mine", tmp_path / "run")
    expected, said = loss(run, tmp_path)
    assert "changed" not in said
    edited = tmp_path / "mine.py"
    named(run, f"{edited}:f")
    edited.write_text(EVIL.replace("{marker!r}", repr(str(tmp_path / "imported"))))
    found, said = loss(run, tmp_path)
    assert found == expected
    assert len([line for line in said.splitlines() if line.startswith("warning: ")]) == 1 and "mine.py" in said
    before = (run / "model.safetensors").read_bytes()
    assert qrkt("train", "--resume", run, cwd=tmp_path).returncode == 0
    assert (run / "model.safetensors").read_bytes() == before
    edited.write_text(MINE)
    assert "changed" not in loss(run, tmp_path)[1]
    edited.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert loss(run, elsewhere)[0] == expected
    assert not (tmp_path / "imported").exists()


COMMANDS = {
    "infer": ("mine", ["infer", "{run}"]),
    "resources": ("mine", ["resources", "{run}"]),
    "resume": ("mine", ["train", "--resume", "{run}"]),
    "compare": ("mine", ["compare", "{run}"]),
    "baseline": ("mine", ["baseline", "{run}", "--trials", "1", "--epochs", "1"]),
    "generate": ("gan", ["generate", "{run}", "--count", "1"]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "old"])
def test_no_command_runs_python_of_a_shared_run(command, keeps, home, tmp_path):
    name, words = COMMANDS[command]
    run, marker = copied(home / name, tmp_path / "run"), tmp_path / "imported"
    (run / "plots").mkdir(exist_ok=True)
    (run / "plots" / "style.py").write_text(EVIL.replace("{marker!r}", repr(str(marker))))
    named(run, run / "plots" / "style.py") if command == "compare" else named(run, f"{run}/plots/style.py:f")
    if not keeps:
        shutil.rmtree(run / "circuits")
    found = qrkt(*[word.format(run=run) for word in words], cwd=tmp_path)
    if keeps or command == "compare":
        assert found.returncode == 0, found.stderr
    else:
        refused(found, "--trust-ansatz", "style.py")
    assert not marker.exists()


def test_a_file_is_run_as_python_runs_it(tmp_path):
    from qrkt_hw import circuits as registry

    (tmp_path / "typed.py").write_text(
        MINE + "\nclass Typed:\n    size: int\n\nassert Typed.__annotations__['size'] is int\n"
    )
    name = f"{tmp_path / 'typed.py'}:f"
    assert build(name, 3, 1).num_weights == 3
    assert registry.source(name) == (tmp_path / "typed.py").read_text() and registry.source("qrkt") is None


def test_an_old_run_imports_its_file_where_that_is_trusted(home, tmp_path):
    run, marker = copied(home / "mine", tmp_path / "run"), tmp_path / "imported"
    shutil.rmtree(run / "circuits")
    (tmp_path / "old.py").write_text(MINE + f"\nPath({str(marker)!r}).touch()\n")
    named(run, f"{tmp_path}/old.py:f")
    with pytest.raises(UserError, match="trust=True"):
        qrkt_hw.load(run)
    assert not marker.exists()
    assert qrkt("infer", run, "--trust-ansatz", cwd=tmp_path).returncode == 0 and marker.exists()
    images = torch.rand(3, 1, 8, 8) - 0.5
    assert torch.equal(qrkt_hw.load(run, trust=True)(images), qrkt_hw.load(home / "mine")(images))


@pytest.mark.parametrize("name", names())
def test_a_kept_template_computes_the_same_bits_by_the_same_method(name):
    from qrkt_hw.runs.circuits import keep

    for qubits, layers in ((2, 1), (4, 2), (6, 1)):
        kept = keep(build(name, qubits, layers), qubits, layers).template
        same(derive(build(name, qubits, layers)).template, derive(kept).template)


def same(fresh: CircuitTemplate, kept: CircuitTemplate) -> None:
    for dtype in (torch.complex64, torch.complex128):
        values, found = [], []
        for template in (fresh, kept):
            torch.manual_seed(1)
            real = torch.float32 if dtype == torch.complex64 else torch.float64
            x = torch.randn(5, 1, template.num_features, dtype=real, requires_grad=True)
            w = torch.randn(1, template.num_weights, dtype=real, requires_grad=True)
            function = simulator(template, dtype)
            y = function(x, w)
            values.append([y, *torch.autograd.grad(y.square().sum(), (x, w))])
            found.append(function.method)
        assert found[0] == found[1]
        assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_kept_random_templates_compute_the_same_bits():
    from qrkt_hw.runs.circuits import keep

    rng = np.random.default_rng(19)
    for _ in range(20):
        template = random_template(rng, num_qubits=4)
        same(template, keep(template, 4, 1).template)


def test_a_fingerprint_is_of_what_is_computed():
    from qrkt_hw.runs.circuits import fingerprint

    def made(name, factor=1.0, gate="rx", swapped=False, observable="ZI"):
        x, w = ParameterVector(name, 2), ParameterVector(f"{name}w", 2)
        circuit = QuantumCircuit(2)
        circuit.ry(x[0] * factor + 0.5, 0)
        circuit.ry(x[1], 1)
        getattr(circuit, gate)(w[0], 0)
        circuit.rz(w[1], 1)
        return CircuitTemplate("t", circuit, x, tuple(reversed(list(w))) if swapped else w, (observable,))

    assert fingerprint(made("a")) == fingerprint(made("b"))
    others = [made("a", factor=1.01), made("a", gate="rz"), made("a", swapped=True), made("a", observable="IZ")]
    assert len({fingerprint(t) for t in (made("a"), *others)}) == 5


def test_a_gate_that_cannot_be_data_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "own.py").write_text(MINE.replace("circuit.cx(j, j + 1)", "circuit.append(Own(), [j])") + OWN)
    refused(qrkt("train", *SMALL, "--ansatz", "own.py:f", "--out", "run", cwd=tmp_path), "--ansatz", "own.py", "QPY")
    assert not (tmp_path / "run").exists()


OWN = """
import numpy as np
from qiskit.circuit import Gate
class Own(Gate):
    def __init__(self): super().__init__("own", 1, [])
    def __array__(self, dtype=None, copy=None): return np.diag([1, 1j])
"""


def test_a_gate_under_the_name_of_another_is_kept_as_what_it_is():
    from qrkt_hw.runs.circuits import keep

    class RXGate(Gate):
        def __init__(self, angle):
            super().__init__("rx", 1, [angle])

        def _define(self):
            self.definition = QuantumCircuit(1)
            self.definition.ry(self.params[0], 0)

    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(x[0], 0)
    circuit.append(RXGate(w[0]), [0])
    plain = QuantumCircuit(1)
    plain.ry(x[0], 0)
    plain.ry(w[0], 0)
    inputs, weights = torch.randn(5, 1, 1), torch.randn(1, 1)
    found, expected = (
        simulator(template)(inputs, weights)
        for template in (keep(CircuitTemplate("t", circuit, x, w), 1, 1).template, CircuitTemplate("t", plain, x, w))
    )
    torch.testing.assert_close(found, expected)


def damaged_index(change):
    def apply(run: Path) -> None:
        path = run / "circuits" / "circuits.json"
        value = json.loads(path.read_text())
        change(value, value["circuits"][0])
        path.write_text(json.dumps(value))

    return apply


def flipped(run: Path) -> None:
    file = next((run / "circuits").glob("*.qpy"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def rehashed(data: bytes):
    """A QPY file whose hash in the index is right."""
    import hashlib

    def apply(run: Path) -> None:
        next((run / "circuits").glob("*.qpy")).write_bytes(data)
        mark = hashlib.sha256(data).hexdigest()
        damaged_index(lambda value, one: one.update(sha256=mark))(run)

    return apply


def another_circuit(run: Path) -> None:
    from qrkt_hw.runs.circuits import keep

    rehashed(keep(build("rx_ring", 4, 1), 4, 1).data)(run)


def in_place_of(name: str, made):
    """Something else under the name of a file of ``circuits/``."""

    def apply(run: Path) -> None:
        path = next((run / "circuits").glob(name))
        path.unlink()
        made(path)

    return apply


DAMAGED = {
    "index-gone": in_place_of("circuits.json", lambda path: None),
    "index-fifo": in_place_of("circuits.json", os.mkfifo),
    "index-dangling": in_place_of("circuits.json", lambda path: path.symlink_to("nowhere")),
    "fifo": in_place_of("*.qpy", os.mkfifo),
    "bit": flipped,
    "empty": lambda run: next((run / "circuits").glob("*.qpy")).write_bytes(b""),
    "gone": lambda run: next((run / "circuits").glob("*.qpy")).unlink(),
    "no-qpy": rehashed(b"junk" * 50),
    "old-qpy": rehashed(b"QISKIT\x0a" + bytes(200)),
    "cut": rehashed(b"QISKIT\x0d\x02\x06\x02" + bytes(8) + b"\x01pq" + bytes(40)),
    "other-circuit": another_circuit,
    "index-junk": lambda run: (run / "circuits" / "circuits.json").write_bytes(b"\xff{"),
    "index-list": lambda run: (run / "circuits" / "circuits.json").write_text("[]"),
    "index-large": lambda run: (run / "circuits" / "circuits.json").write_text(" " * (17 * 2**20)),
    "format": damaged_index(lambda value, one: value.update(format=2)),
    "key": damaged_index(lambda value, one: one.update(nope=1)),
    "roles-swapped": damaged_index(lambda value, one: one["weights"].reverse()),
    "role-twice": damaged_index(lambda value, one: one.update(weights=[one["weights"][0]] * len(one["weights"]))),
    "role-unknown": damaged_index(lambda value, one: one.update(inputs=["y[0]", *one["inputs"][1:]])),
    "observable": damaged_index(lambda value, one: one["observables"].reverse()),
    "observable-word": damaged_index(lambda value, one: one.update(observables=[[["QQ", 1.0]]])),
    "observable-nan": damaged_index(lambda value, one: one.update(observables=[[["ZIII", "NaN"]]])),
    "encoding": damaged_index(lambda value, one: one.update(encoding="unary")),
    "path": damaged_index(lambda value, one: one.update(file="../../model.qpy")),
    "qubits": damaged_index(lambda value, one: one.update(num_qubits=5)),
    "another-ansatz": damaged_index(lambda value, one: value.update(ansatz="qrkt")),
    "sizes": damaged_index(lambda value, one: value.update(circuits=[])),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_circuits_are_refused_in_a_sentence(damage, home, tmp_path):
    run = copied(home / "plain", tmp_path / "run")
    DAMAGED[damage](run)
    refused(qrkt("infer", run, cwd=tmp_path), "circuits")


def test_a_configuration_that_asks_for_other_circuits_is_refused(home, tmp_path):
    run = copied(home / "plain", tmp_path / "run")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("\n  layers: 1\n", "\n  layers: 2\n"))
    refused(qrkt("infer", run, cwd=tmp_path), "2 layers", "1 layers", "config.yaml")


def test_copies_of_a_run_keep_its_circuits(home, tmp_path):
    run = copied(home / "mine", tmp_path / "run")
    assert qrkt("baseline", run, "--trials", 1, "--epochs", 2, cwd=tmp_path).returncode == 0
    trial = next((tmp_path / "run-baseline" / "quantum").iterdir())
    ours, theirs = (json.loads((r / "circuits" / "circuits.json").read_text()) for r in (run, trial))
    assert ours == theirs
    assert not (next((tmp_path / "run-baseline" / "size-matched").iterdir()) / "circuits").exists()


def test_options_are_equal_wherever_their_circuits_come_from(home):
    options = RunFolder(home / "plain").options()
    assert options == options.model_copy() == Config.model_validate(options.model_dump())
    assert options != options.replace(layers=2)
    fresh = build_model(Config.model_validate(options.model_dump()), DataShape(1, 8, 10))
    kept = build_model(options, DataShape(1, 8, 10))
    assert len({layer.template for layer in quantum_layers(kept)}) == 1
    kept.load_state_dict(fresh.state_dict())
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(fresh.eval()(images), kept.eval()(images))


def test_a_shared_run_does_not_spend_money(home, tmp_path):
    run = copied(home / "plain", tmp_path / "run")
    (run / "evil.yaml").write_text("cheap: {provider: ibm, name: fake_manila}\n")
    reconfigured(run, backend="cheap", backends_file=str(run / "evil.yaml"))
    refused(qrkt("train", "--resume", run, cwd=tmp_path), "--backend cheap")
    refused(qrkt("train", "--resume", run, "--backend", "exact", cwd=tmp_path), "--backend", "cheap")
    refused(qrkt("twin", run, cwd=tmp_path), "cheap", "bills")
    assert not (run / "journal.sqlite").exists()


def test_a_shared_run_empties_no_file_of_the_user(home, tmp_path):
    run, victim = copied(home / "plain", tmp_path / "run"), tmp_path / "victim"
    for name in (".lock", "journal.lock"):
        victim.write_text("mine")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
    qrkt("train", "--resume", run, cwd=tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        Journal(run / "journal.sqlite")
    assert victim.read_text() == "mine"


def test_circuits_with_classical_bits_that_nothing_uses_are_kept():
    from qrkt_hw.runs.circuits import keep

    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    circuit = QuantumCircuit(2, 2)
    for qubit in range(2):
        circuit.ry(x[qubit], qubit)
        circuit.rz(w[qubit], qubit)
    circuit.cx(0, 1)
    template = CircuitTemplate("t", circuit, x, w)
    inputs, weights = torch.randn(3, 1, 2), torch.randn(1, 2)
    assert simulator(keep(template, 2, 1).template)(inputs, weights).equal(simulator(template)(inputs, weights))
