"""What packing must show: the same values, the capacity of three chips, what it saves, and what mitigation brings."""

import json
import time

import numpy as np
import pytest
import torch
from qiskit.circuit import QuantumCircuit

from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.device.layout import DEAD, UNREADABLE, active_qubits, couplings, place_replicas
from qrkt_hw.backends.device.measurement import bases
from qrkt_hw.backends.device.packing import Packer
from qrkt_hw.backends.device.transpile import fake_device, transpiled
from qrkt_hw.circuits import build, names
from qrkt_hw.commands import main
from tests.packed import component_values

pytestmark = pytest.mark.acceptance
DEVICES = ["fake_torino", "fake_marrakesh", "fake_miami"]
CAPACITY = {("fake_torino", 6): 17, ("fake_marrakesh", 6): 20, ("fake_miami", 6): 20}


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code or 0


def draw(template, samples, rng, tag=""):
    return Call(template, rng.uniform(-3, 3, (samples, template.num_inputs + template.num_weights)), tag)


def check_equal(name, device, qubits, layers, rounds, seed):
    """Calls of random sizes and orders, on random copies in a random order; the exact values to 1e-9."""
    rng = np.random.default_rng(seed)
    packer = Packer(fake_device(device).target, device=device, level=2, shots=100)
    for _ in range(rounds):
        chosen = rng.permutation(qubits)[: rng.integers(1, min(4, len(qubits) + 1))]
        templates = [build(name, int(n), int(rng.choice(layers))) for n in chosen]
        packer.plan(templates)
        for kind in packer.groups.values():
            some = rng.permutation(len(kind.replicas))[: rng.integers(1, len(kind.replicas) + 1)]
            kind.replicas = tuple(kind.replicas[k] for k in some)
        calls = [draw(template, int(rng.integers(1, 60)), rng) for template in templates]
        for call, values in zip(calls, component_values(packer, calls), strict=True):
            np.testing.assert_allclose(values, resolve("exact").run([call])[0], atol=1e-9)
        packer = Packer(packer.target, device=device, level=2, shots=100)


@pytest.mark.parametrize("device", DEVICES)
def test_packed_equals_unpacked_without_noise(device):
    check_equal("brickwork", device, [3, 4], [1], 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", names())
def test_packed_equals_unpacked_for_every_template(name, device):
    check_equal(name, device, [2, 3, 4, 5, 6], [1, 2, 3], 4, 2)


@pytest.mark.slow
def test_a_wide_circuit_as_a_whole_by_matrix_product_states():
    from qiskit_aer import AerSimulator

    template = build("brickwork", 4, 1)
    packer = Packer(fake_device("fake_torino").target, device="fake_torino", level=1, shots=4000)
    call = draw(template, 20, np.random.default_rng(3))
    (pub,) = packer.pack([call])
    assert len(pub.slots) >= 20 and sum(len(p.read) for p in pub.slots) >= 60 and len(pub.values) == 1
    bound = pub.circuit.assign_parameters(dict(zip(pub.circuit.parameters, pub.values[0], strict=True)))
    used = sorted({bound.find_bit(q).index for i in bound.data for q in i.qubits})  # Aer's MPS errs with idle qubits
    place_of = {q: k for k, q in enumerate(used)}
    whole = QuantumCircuit(len(used))
    for instruction in bound.data:
        if instruction.operation.name != "measure":
            whole.append(instruction.operation, [place_of[bound.find_bit(q).index] for q in instruction.qubits])
    exact = resolve("exact").run([call])[0]
    for slot in pub.slots:
        for place, qubit in enumerate(slot.read):
            whole.save_expectation_value(_z(), [place_of[qubit]], label=f"{slot.samples[0]}.{place}")
    data = AerSimulator(method="matrix_product_state").run(whole).result().data()
    for slot in pub.slots:
        for place in range(4):
            assert data[f"{slot.samples[0]}.{place}"] == pytest.approx(exact[slot.samples[0], place], abs=1e-9)


def _z():
    from qiskit.quantum_info import Pauli

    return Pauli("Z")


def test_packed_shots_with_noise_are_draws_from_the_noise_of_each_copy():
    shots, template = 4096, build("brickwork", 4, 1)
    call = draw(template, 50, np.random.default_rng(4))
    backend = resolve("fake_torino", shots=shots, seed=1)
    values = backend.run([call])[0]
    packer = backend.packer
    signs = bases(template)[0].signs(template.num_outputs)
    expected = np.zeros_like(values)
    for batch in packer.pack([call]):
        for place, slot in enumerate(batch.slots):
            busy = slot.samples >= 0
            chances = backend._chances(batch, place)[busy]
            expected[slot.samples[busy]] = chances @ signs.T
    scaled = (values - expected) / np.sqrt((1 - expected**2) / shots)
    assert 0.85 < scaled.std() < 1.15 and np.abs(scaled).max() < 5
    assert np.abs(expected - resolve("fake_torino").run([call])[0]).max() > 0.01  # other qubits, other noise


@pytest.mark.parametrize("device", DEVICES)
def test_capacity_and_what_the_filter_keeps(device):
    target = fake_device(device).target
    for qubits in (4, 6, 8):
        template = build("brickwork", qubits, 1)
        isa = transpiled(template, bases(template)[0], target, 3)
        place_replicas(isa, target, min_fidelity=0)  # the first call of a process imports
        took = [time.process_time()]
        capacity = place_replicas(isa, target, min_fidelity=0)
        took.append(time.process_time())
        filtered = place_replicas(isa, target)
        took.append(time.process_time())
        first, second = np.diff(took)
        print(f"{device} {qubits}: {len(capacity)} fit in {first:.2f} s, {len(filtered)} kept in {second:.2f} s")
        assert len(capacity) >= CAPACITY.get((device, qubits), 1) and max(first, second) < 2
        assert all(copy.success >= 0.5 * filtered[0].success for copy in filtered)
        for copy in filtered:
            assert all(target["measure"][(q,)].error < UNREADABLE for q in copy.physical)
            moved = dict(zip(active_qubits(isa), copy.physical, strict=True))
            for a, b in couplings(isa):
                pair = (moved[a], moved[b])
                assert target["cz"].get(pair, target["cz"].get(pair[::-1])).error < DEAD


def test_saved_against_a_pub_for_every_observable():
    template, shots, samples = build("brickwork", 6, 1), 1024, 260
    rep_delay = 250e-6
    calls = [draw(template, samples, np.random.default_rng(5))]
    before = samples * template.num_outputs * shots
    for device in ("fake_torino", "fake_marrakesh"):
        packer = Packer(fake_device(device).target, device=device, level=3, shots=shots)
        batches = packer.allocate(calls)
        executions = sum(pub.executions for pub in packer.pack(calls))
        seconds = 2 + sum(batch.seconds(rep_delay) for batch in batches)
        print(f"{device}: {before:,} -> {executions:,} executions, {before / executions:.1f}-fold; {seconds:.1f} s")
        assert before / executions >= 75


@pytest.mark.slow
def test_mthree_halves_what_readout_causes(tmp_path, capsys):
    assert run("train", "--preset", "digits-hardware", "--out", tmp_path / "run", "--epochs", 3) == 0
    from qrkt_hw.backends.fake import FakeBackend
    from qrkt_hw.data import load_data
    from qrkt_hw.data.batches import first, loader
    from qrkt_hw.experiments.devices import on_backend
    from qrkt_hw.experiments.loading import load
    from qrkt_hw.runs import RunFolder

    folder = RunFolder.open(tmp_path / "run")
    model = load(folder)
    batches = loader(first(load_data(folder.options().data).splits["test"], 40), 40)
    found = {}
    ways = {"as read": {}, "mthree": {"mitigation": "mthree"}, "no readout error": {"misread": False}}
    for way, keys in ways.items():
        for seed in range(5):
            backend = FakeBackend("fake_torino", "fake_torino", shots=1024, seed=seed, **keys)
            torch.manual_seed(seed)
            logits, labels, report = on_backend(model, batches, backend, None, layers=True)
            rows = report["layers"]
            error = np.average([r["mean_error"] for r in rows], weights=[r["values"] for r in rows])
            found.setdefault(way, []).append((error, (logits.argmax(-1) == labels).double().mean().item()))
    mean = {way: np.mean(rows, axis=0) for way, rows in found.items()}
    with capsys.disabled():
        print(json.dumps({way: [round(float(v), 4) for v in values] for way, values in mean.items()}))
    caused = mean["as read"][0] - mean["no readout error"][0]
    left = mean["mthree"][0] - mean["no readout error"][0]
    assert caused > 0 and left < caused / 2


def test_the_plan_is_what_is_counted(tmp_path, capsys):
    tiny = ["--limit", 32, "--epochs", 1, "--hidden", 4, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1, "--rk", "rk2"]
    out = tmp_path / "run"
    assert run("train", "--out", out, *tiny) == 0
    capsys.readouterr()
    there = ["--backend", "fake_torino", "--shots", 64, "--limit", 30]
    for more in ([], ["--mitigation", "mthree"], ["--no-pack"]):
        assert run("infer", out, *there, *more, "--dry-run", "--json") == 0
        plan = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert run("infer", out, *there, *more, "--value-errors", "--json") == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (plan["executions"], plan["rounds"]) == (record["executions"], record["rounds"])
        assert plan["seconds"] == pytest.approx(record["backend_details"]["estimated_seconds"], abs=0.01)
        assert ("unmitigated_mean_error" in record["layers"][0]) == (more[:1] == ["--mitigation"])
    assert (out / "plots" / "inference-fake_torino.png").stat().st_size > 1000
    assert run("resources", out, "--backend", "fake_torino", "--shots", 64, "--images", 30, "--format", "json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    (packed,) = [c for c in report["costs"] if c["way"] == "packed" and c["task"] == "infer 30"]
    assert run("infer", out, *there, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert packed["executions"] == plan["executions"]
    assert packed["seconds"] == pytest.approx(plan["seconds"], rel=0.01)


def test_a_plan_beyond_the_limit_is_refused_with_what_would_fit(tmp_path, capsys):
    tiny = ["--limit", 32, "--epochs", 1, "--hidden", 4, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1, "--rk", "rk1"]
    out = tmp_path / "run"
    assert run("train", "--out", out, *tiny) == 0
    there = ["--backend", "fake_torino", "--shots", 4000]
    capsys.readouterr()
    assert run("infer", out, *there, "--limit", 200, "--max-qpu-seconds", 8) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--max-qpu-seconds 8 s: the plan takes" in said and "--limit" in said and "--shots" in said
    assert "no cheaper model is known" in said  # one stage and one block, and chains take too long too
    fits = int(said.split("--limit ")[1].split()[0])
    assert run("infer", out, *there, "--limit", fits, "--max-qpu-seconds", 8) == 0
    assert run("infer", out, *there, "--limit", fits, "--max-cost", 0.01) == 2
    assert "would fit" in capsys.readouterr().err
    assert run("infer", out, *there, "--no-pack", "--limit", fits, "--max-qpu-seconds", 8) == 2
    assert "or packing (no --no-pack, pack: true) would fit" in capsys.readouterr().err


def test_a_refusal_names_a_model_that_fits(tmp_path, capsys):
    tiny = ["--limit", 32, "--epochs", 1, "--hidden", 4, "--qubits", 2, "--mlp", 2]
    out, smaller = tmp_path / "run", tmp_path / "smaller"
    assert run("train", "--out", out, *tiny, "--rk-blocks", 2, "--rk", "rk3") == 0
    there = ["--backend", "fake_torino", "--shots", 256, "--limit", 20, "--max-qpu-seconds"]
    capsys.readouterr()
    assert run("infer", out, *there, 15) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    flags = said.split("a model trained with ")[1].split(" would take ")[0].split()
    assert flags == ["--rk", "rk1"]
    seconds = float(said.split(" would take ")[1].split()[0])
    assert run("train", "--out", smaller, *tiny, "--rk-blocks", 2, *flags) == 0
    capsys.readouterr()
    assert run("infer", smaller, *there, 15, "--json") == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["backend_details"]["estimated_seconds"] == pytest.approx(seconds, abs=0.06)
    assert run("infer", out, *there, 6) == 2
    assert "trained with --rk rk1 --rk-blocks 1 would take" in capsys.readouterr().err
