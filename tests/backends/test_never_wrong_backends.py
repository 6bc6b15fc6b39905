"""Backends are right or refuse: names that bill nothing, files that were not asked for, dtypes, damaged caches."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qrkt_hw import backends, circuits
from qrkt_hw.backends import Call, budget, noise, resolve
from qrkt_hw.backends.aer import AerBackend
from qrkt_hw.backends.device.cache import remember
from qrkt_hw.backends.entries import layers, read_entries
from qrkt_hw.backends.exact import ExactBackend, evaluate_by_weights
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.backends.ibm.account import mount
from qrkt_hw.errors import UserError
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.simulator.noisy import NoisySimulator, PropagatedCache, PropagatedRows
from tests.command_line import qrkt, refused

DEVICE = "{provider: ibm, name: ibm_fez, shots: 4096}"


# names ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"exact: {DEVICE}", "exact"),
        ("exact: {provider: aer, shots: 1}", "exact"),
        (f"aer_cpu: {DEVICE}", "aer_cpu"),
        (f"fake_torino: {DEVICE}", "fake_torino"),
        (f"fake_kingston: {DEVICE}", "fake_kingston"),  # a name that needs no entry
        (f"paid: {DEVICE}\nmine: {{provider: aer, device: gpu, fallback: paid}}", "mine"),
        ("mine: {provider: aer, device: gpu, fallback: ibm_least_busy}", "mine"),
    ],
)
def test_no_file_makes_a_simulator_bill(text, name, tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as stopped:
        layers(file)
    assert str(file) in str(stopped.value) and name in str(stopped.value) and "\n" not in str(stopped.value)


def test_the_exact_simulator_may_be_set_and_devices_may_be_named(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(f"exact: {{provider: exact, device: cpu}}\nmine: {DEVICE}\nibm_torino: {DEVICE}")
    found = layers(file)
    assert found["exact"][0].device == "cpu" and found["mine"][0].provider == found["ibm_torino"][0].provider == "ibm"


def test_python_reads_no_file_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backends.yaml").write_text("aer_cpu: {provider: aer, shots: 1}\nmine: {provider: aer, shots: 3}")
    assert backends.get("aer_cpu").shots is None
    with pytest.raises(UserError, match="mine"):
        QuantumLayer(2, backend="mine")
    assert resolve("mine", file=tmp_path / "backends.yaml").shots == 3


def test_commands_say_that_they_use_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "backends.yaml").write_text("mine: {provider: aer, shots: 3}\naer_cpu: {provider: aer, device: cpu}")
    said = qrkt("backends", "check", "mine", cwd=tmp_path)
    assert said.returncode == 0 and "backends.yaml of this folder" in said.stderr
    # an entry that says what the shipped one says changes nothing, so there is nothing to announce
    assert "of this folder" not in qrkt("backends", "check", "aer_cpu", cwd=tmp_path).stderr
    entry = "{provider: fake, name: fake_torino, optimization_level: 3, mitigation: none}"  # not corrected by default
    (tmp_path / "backends.yaml").write_text(f"fake_torino: {entry}")
    assert "of this folder" in qrkt("backends", "check", "fake_torino", cwd=tmp_path).stderr
    (tmp_path / "backends.yaml").write_text(f"exact: {DEVICE}")
    refused(qrkt("backends", "list", cwd=tmp_path), "backends.yaml", "exact")


@pytest.mark.parametrize("key", ["timeout", "patience", "grace", "max_wait", "max_seconds", "max_time"])
@pytest.mark.parametrize("value", [".inf", ".nan", "1" + "0" * 400])
def test_waits_without_a_bound_are_refused(key, value):
    with pytest.raises(UserError, match=f"mine.{key}"):
        read_entries(f"mine: {{provider: ibm, name: ibm_fez, {key}: {value}}}", "file")


def test_a_device_in_capitals_is_named_in_small_letters():
    for name, small in (("Fake_Lima", "fake_lima"), ("IBM-Fez", "ibm_fez")):
        with pytest.raises(UserError, match=f"no backend '{name}'; devices are written in small letters: {small}"):
            resolve(name)


def test_a_client_whose_connections_are_not_found_is_refused():
    for service in (SimpleNamespace(), SimpleNamespace(_api_clients={"a": SimpleNamespace()})):
        with pytest.raises(UserError, match="billed twice"):
            mount(service, 1.0)


# dtypes --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_any_dtype_are_evaluated_as_they_are(sampled, dtype):
    def values(x):
        backend = FakeBackend("f", "fake_lima", shots=512, seed=3) if sampled else AerBackend("aer")
        torch.manual_seed(1)
        return QuantumLayer(2, qubits=2, backend=backend)(x).detach()

    x = torch.tensor([[1, 0], [0, 1], [1, 1]])
    found, wanted = values(x.to(dtype)), values(x.to(torch.float64))
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert wanted.dtype == torch.float64 and wanted.abs().max() > 0.01
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)


def test_half_stays_half_and_complex_is_refused():
    layer = QuantumLayer(2, qubits=2, backend=AerBackend("aer"))
    with pytest.raises(ValueError, match="complex64"):
        layer(torch.zeros(1, 2, dtype=torch.complex64))
    layer.weight.data = layer.weight.data.half()
    assert layer(torch.ones(1, 2).half()).dtype == torch.float16
    assert layer(torch.ones(1, 2).double()).dtype == torch.float64


@pytest.mark.parametrize("shots", [None, 16])
@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 4), (0, 3, 4)])
def test_empty_batches_give_empty_values(shots, shape):
    layer = QuantumLayer(4, qubits=2, backend=FakeBackend("f", "fake_lima", shots=shots))
    assert layer(torch.zeros(shape)).shape == shape


# packed noise --------------------------------------------------------------------------------------------------------
def draw(samples, sets, qubits=2, seed=1):
    template = circuits.build("brickwork", qubits, 1)
    rng = np.random.default_rng(seed)
    inputs, weights = (
        rng.uniform(-3, 3, (samples, sets, template.num_inputs)),
        rng.uniform(-3, 3, (sets, template.num_weights)),
    )
    return Call(template, np.concatenate([inputs, np.broadcast_to(weights, (samples, *weights.shape))], axis=-1))


def test_what_depends_on_the_weights_is_computed_once_for_each_place(monkeypatch):
    calls, propagated = [], []
    evaluate, propagate = NoisySimulator.__call__, PropagatedRows.__init__

    def counted(self, inputs, weights):
        calls.append(len(weights))
        return evaluate(self, inputs, weights)

    def watched(self, *arguments):
        propagate(self, *arguments)
        tail = self.tail
        self.tail = lambda *given: propagated.append(len(given[2])) or tail(*given)

    monkeypatch.setattr(NoisySimulator, "__call__", counted)
    monkeypatch.setattr(PropagatedRows, "__init__", watched)
    backend = FakeBackend("f", "fake_guadalupe", shots=32, seed=1)
    call = draw(6, 12)
    backend.run([call])
    places = len({piece.physical for batch in backend.packer.allocate([call]) for piece in batch.slots})
    assert places > 1 and len(calls) <= 3 * len(backend.packer.allocate([call])) * places  # not one for each weight set
    first = sum(propagated)
    backend.run([call])
    assert sum(propagated) == first


def test_packed_chances_are_those_of_each_place_and_weight_set():
    backend = FakeBackend("f", "fake_guadalupe", shots=32, seed=1)
    call = draw(5, 7)
    pub = backend.packer.pack([call])[0]
    sets = call.values.reshape(call.samples, -1)
    for _ in range(2):  # new, and kept
        for place, slot in enumerate(pub.slots[:4]):
            found = backend._chances(pub, place)
            fresh = FakeBackend("g", "fake_guadalupe", shots=32, seed=1)
            for row, sample in enumerate(slot.samples):
                if sample >= 0:
                    alone = Call(call.template, sets[sample][None])
                    placed = slot.group.placed.moved(slot.physical)
                    table = fresh._table(slot, placed)
                    np.testing.assert_allclose(found[row], evaluate_by_weights(alone, table, 4)[0], atol=1e-12)


@pytest.mark.parametrize("counts", [[3, 3, 3], [1, 5, 1, 2], [0], [1]])
def test_weight_sets_with_any_number_of_samples(counts):
    template = circuits.build("brickwork", 2, 1)
    rng = np.random.default_rng(0)
    weights = rng.uniform(-3, 3, (len(counts), template.num_weights))
    which = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    call = Call(
        template, np.concatenate([rng.uniform(-3, 3, (len(which), template.num_inputs)), weights[which]], axis=1)
    )
    together = ExactBackend("exact").run([call])[0]
    for row, values in zip(together, call.values, strict=True):
        np.testing.assert_allclose(row, ExactBackend("exact").run([Call(template, values[None])])[0][0], atol=1e-12)


def test_what_is_kept_has_a_bound():
    kept = PropagatedCache(100)
    for number in range(20):
        kept.put(number, torch.zeros(30))
        assert kept.held <= 100 and kept.get(number) is not None
    kept.put("too large", torch.zeros(101))
    assert kept.get("too large") is None and kept.get(19) is not None and kept.get(0) is None


# caches --------------------------------------------------------------------------------------------------------------
def test_a_flipped_bit_in_the_cached_noise_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    noise.device_noise.cache_clear()
    wanted = noise.device_noise("fake_lima")
    (file,) = (tmp_path / "qrkt-hw" / "noise").iterdir()
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for place in [0, len(whole) - 1, *rng.integers(len(whole), size=40)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        found = noise._read(file, 5)  # None: it is built anew
        if found is not None:
            np.testing.assert_array_equal(found.readout, wanted.readout)
            assert found.gates.keys() == wanted.gates.keys()
            assert all(np.array_equal(found.gates[key], wanted.gates[key]) for key in wanted.gates)
    noise.device_noise.cache_clear()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{}",
        lambda text: text.replace("12", "13"),
        lambda text: text[:-3],
        lambda text: "[" * 100_000,
        lambda text: json.dumps({"copies": [[0, 1]]}),
        lambda text: text.replace("copies", "copied"),
    ],
)
def test_a_damaged_result_is_made_anew(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    value = {"copies": [[[12, 3], 0.5]]}
    assert remember("copies", "key", lambda: value) == value
    file = tmp_path / "qrkt-hw" / "copies" / "key.json"
    file.write_text(damage(file.read_text()))
    assert remember("copies", "key", lambda: value) == value
    assert remember("copies", "key", dict) == value  # and was repaired


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "qrkt-hw").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remember("copies", "key", lambda: {"a": 1}) == {"a": 1}
    noise.device_noise.cache_clear()
    assert noise.device_noise("fake_lima").readout.shape == (5, 2, 2)
    noise.device_noise.cache_clear()


def test_a_price_that_stands_twice_sets_no_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    text = Path(budget.__file__).with_name("prices.yaml").read_text()
    line = next(line for line in text.splitlines() if line.lstrip().startswith("usd_per_second"))
    file = tmp_path / "qrkt-hw" / "prices.yaml"
    file.parent.mkdir()
    budget.prices.cache_clear()
    try:
        file.write_text(text.replace(line, f"{line}\n{line}", 1))
        with pytest.raises(UserError, match=r"prices\.yaml is not YAML: key 'usd_per_second' stands twice"):
            budget.Budget(usd=10)
    finally:
        budget.prices.cache_clear()


def test_who_names_the_cpu_asks_no_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked for a GPU"))
    assert ExactBackend("exact", "cpu").about()["device"] == "cpu"
