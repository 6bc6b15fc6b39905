"""Values of the packed primitives against Qiskit's exact ones, on circuits of every kind."""

import copy
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner
from qiskit import qpy
from qiskit.circuit import ClassicalRegister, Clbit, Parameter, QuantumCircuit, QuantumRegister
from qiskit.circuit.library import PauliEvolutionGate, real_amplitudes, zz_feature_map
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2, StatevectorEstimator, StatevectorSampler
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer import AerSimulator

from qrkt_hw import estimate
from qrkt_hw.backends import fake
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.commands.resources import resources
from qrkt_hw.errors import UserError
from qrkt_hw.primitives import PackedEstimator, PackedSampler, PrimitiveError, PubError
from tests.packed import branching

A, B, C = (Parameter(name) for name in "abc")


def noiseless(device="fake_guadalupe", **keys):
    return FakeBackend("noiseless", device, shots=1, seed=3, noise="none", **keys)


def registers():
    """Two registers, an unread qubit, an idle one, expressions that are not linear, a gate that is synthesised."""
    circuit = QuantumCircuit(QuantumRegister(6, "q"), ClassicalRegister(3, "x"), ClassicalRegister(2, "y"))
    circuit.ry(A * B, 4)
    circuit.cx(4, 1)
    circuit.rx(2 * C + 1, 3)
    circuit.append(PauliEvolutionGate(SparsePauliOp(["XX", "ZY"]), B), [3, 1])
    circuit.measure([4, 3, 1], [2, 3, 0])
    return circuit


def distance(found, wanted):
    """The largest total variation distance of any parameter set's joint counts."""
    first, second = found.data, wanted.data
    assert first.shape == second.shape and list(first) == list(second)
    joined = found.join_data(), wanted.join_data()
    worst = 0.0
    for place in np.ndindex(first.shape):
        one, two = (bits.get_counts(place or None) for bits in joined)
        shots = sum(one.values()), sum(two.values())
        worst = max(worst, sum(abs(one.get(k, 0) / shots[0] - two.get(k, 0) / shots[1]) for k in {*one, *two}) / 2)
    return worst


def test_samples_are_those_of_the_exact_sampler():
    rng = np.random.default_rng(1)
    bell = QuantumCircuit(2)
    bell.h(0)
    bell.cx(0, 1)
    bell.measure_all()
    values = {("a", "b"): rng.uniform(-2, 2, (3, 2, 2)), "c": rng.uniform(-2, 2, (3, 2))}
    pubs = [(registers(), values), bell, (registers(), rng.uniform(-2, 2, (2, 3)), 9000), bell]
    found = PackedSampler(noiseless()).run(pubs, shots=8000).result()
    exact = StatevectorSampler(seed=2).run(pubs, shots=8000).result()
    assert max(distance(one, two) for one, two in zip(found, exact, strict=True)) < 0.04
    assert found[2].data.x.num_shots == 9000 and found[2].metadata["shots"] == 9000
    assert found[1].data.meas.get_counts() != found[3].data.meas.get_counts()  # measured twice
    halves = found[1].data.meas.slice_shots(range(4000)).get_counts()
    assert abs(halves["00"] - 2000) < 200  # shots are in no order


@pytest.mark.parametrize("make", [noiseless, AerSimulator])
def test_expectation_values_are_exact_ones_within_their_errors(make):
    rng = np.random.default_rng(4)
    body = registers().remove_final_measurements(inplace=False)
    many = SparsePauliOp.from_list([("IXXIZZ", 1.5), ("IIIIIZ", -0.5), ("IIIIII", 2)])
    rows, last = rng.uniform(-2, 2, (4, 3)), (body, "XIIXII", [0.1, 0.2, 0.3])
    strings = [many, SparsePauliOp("IYIIXI"), "IIIIII"]
    pubs = [(body, [[o] for o in (*strings, {"Z+IIII": 1.0})], rows, 0.01), last]  # a projector is a sum of strings
    known = [(body, [[o] for o in (*strings, {"ZIIIII": 0.5, "ZXIIII": 0.5})], rows), last]
    found = PackedEstimator(make(), seed=1).run(pubs).result()
    for one, two in zip(found, StatevectorEstimator().run(known).result(), strict=True):
        assert one.data.evs.shape == two.data.evs.shape == one.data.stds.shape
        assert (np.abs(one.data.evs - two.data.evs) < 5 * one.data.stds + 1e-3).all()
    assert found[0].metadata["shots"] == 10_000 and found[1].metadata["shots"] == 4096


def test_random_pubs_take_what_was_estimated_and_have_the_exact_values():
    rng = np.random.default_rng(7)
    backend = noiseless("fake_torino")
    sampler, estimator = PackedSampler(backend, shots=64), PackedEstimator(backend, precision=0.05)
    circuits = [zz_feature_map(2), zz_feature_map(3, entanglement="linear"), real_amplitudes(2)]
    for _ in range(8):
        chosen = [circuits[k] for k in rng.integers(3, size=rng.integers(1, 4))]
        shapes = [tuple(rng.integers(1, 4, rng.integers(1, 3))) for _ in chosen]
        sets = [rng.uniform(-2, 2, (*s, c.num_parameters)) for s, c in zip(shapes, chosen, strict=True)]
        letters = ["".join(rng.choice(list("IXYZ"), c.num_qubits)) for c in chosen]
        expected = list(zip(chosen, letters, sets, [0.05, 0.1, 0.05], strict=False))
        measured = [c.measure_all(inplace=False) for c in chosen]
        counted = [(c, s, int(rng.integers(50, 52))) for c, s in zip(measured, sets, strict=True)]
        for primitive, pubs in ((sampler, counted), (estimator, expected)):
            said = estimate(pubs, primitive)
            result = primitive.run(pubs).result()
            assert result.metadata["executions"] == said.executions
    for pub, one in zip(expected, result, strict=True):
        exact = StatevectorEstimator().run([pub[:3]]).result()[0].data.evs
        assert (np.abs(one.data.evs - exact) < 5 * pub[3]).all()


def test_observables_of_several_pubs_share_their_shots_and_no_string_is_measured_for_two():
    circuit, rows = zz_feature_map(2), np.random.default_rng(0).uniform(-1, 1, (3, 2))
    estimator = PackedEstimator(noiseless(pack=False), precision=0.1)
    three = estimator.run([(circuit, text, rows) for text in ("ZI", "IZ", "ZZ")]).result()
    assert three.metadata["executions"] == 3 * 100
    twice = estimator.run([(circuit, "ZI", rows)] * 2).result()
    assert twice.metadata["executions"] == 2 * 3 * 100
    assert not np.array_equal(twice[0].data.evs, twice[1].data.evs)
    same = np.tile(rows[:1], (8, 1))  # equal rows of one PUB are measured apart too
    assert len(set(estimator.run([(circuit, "ZI", same)]).result()[0].data.evs)) > 1


def test_what_measures_and_branches_on_its_way_runs_whole():
    backend = noiseless("fake_torino")
    plain = QuantumCircuit(1)
    plain.x(0)
    plain.measure_all()
    found = PackedSampler(backend, shots=3000).run([(branching(), [[0.3], [2.0]]), plain]).result()
    assert found.metadata["executions"] == 3 * 3000
    for place, angle in enumerate((0.3, 2.0)):
        counts = found[0].join_data().get_counts(place)
        assert set(counts) <= {"00", "11"} and abs(counts["11"] / 3000 - np.sin(angle / 2) ** 2) < 0.05
    assert found[1].data.meas.get_counts() == {"1": 3000}
    measured = QuantumCircuit(2, 1)
    measured.ry(A, 0)
    measured.measure(0, 0)
    measured.cx(0, 1)
    values = PackedEstimator(backend, precision=0.02).run([(measured, ["ZZ", "XX", "IZ", "II"], [0.7])]).result()[0]
    assert np.allclose(values.data.evs, [1, 0, np.cos(0.7), 1], atol=0.08)


def test_a_circuit_with_a_layout_stays_where_it_is():
    body = registers().remove_final_measurements(inplace=False)
    target = fake_device("fake_guadalupe").target
    isa = generate_preset_pass_manager(2, target=target, initial_layout=[5, 3, 2, 1, 0, 4]).run(body)
    texts = [SparsePauliOp("IXXIZZ"), SparsePauliOp("ZIIIII"), SparsePauliOp("IIIXIY")]
    moved = [one.apply_layout(isa.layout) for one in texts]
    backend = noiseless()
    found = PackedEstimator(backend, precision=0.01).run([(isa, moved, [0.1, 0.2, 0.3])]).result()[0].data
    exact = StatevectorEstimator().run([(body, texts, [0.1, 0.2, 0.3])]).result()[0].data.evs
    assert (np.abs(found.evs - exact) < 5 * found.stds + 1e-3).all()
    used = {isa.find_bit(q).index for one in isa.data for q in one.qubits}
    assert all(used <= set(group.placed.physical) for group in backend.packer.groups.values())


def test_mitigation_brings_values_nearer_on_a_noisy_device():
    ghz = QuantumCircuit(3)
    ghz.x([0, 1, 2])
    pubs = [(ghz, ["IIZ", "ZZZ"])]
    raw, better = (
        PackedEstimator("fake_guadalupe", precision=0.01, seed=1, mitigation=how).run(pubs).result()[0].data.evs
        for how in ("none", "mthree")
    )
    assert (np.abs(better + 1) < np.abs(raw + 1)).all()
    ghz.measure_all()
    samples = PackedSampler("fake_guadalupe", shots=4000, seed=1, mitigation="mthree").run([ghz]).result()[0].data.meas
    assert samples.num_shots == 4000 and samples.get_counts()["111"] > 3950


def test_reference_behaviour_of_errors_and_metadata():
    circuit = zz_feature_map(2)
    circuit.metadata = {"mine": 1}
    pub = (circuit, ["ZI", "XX"], [0.3, 0.4])
    ours = PackedEstimator(noiseless(), precision=0.05).run([pub]).result()[0]
    theirs = BackendEstimatorV2(backend=AerSimulator(), options={"default_precision": 0.05}).run([pub]).result()[0]
    assert ours.metadata == theirs.metadata and np.allclose(ours.data.stds, theirs.data.stds, atol=0.02)


WRONG = [
    (lambda body: (body, "ZZZZZZ"), "number of values"),
    (lambda body: (body, "ZZ", [0.1, 0.2, 0.3]), "number of qubits"),
    (lambda body: (body, "ZZZZZZ", [0.1, np.nan, 0.3]), "not finite"),
    (lambda body: (body, "ZZZZZZ", [0.1, 0.2, 0.3], 0), "precision is 0"),
    (lambda body: (body, "ZZZZZZ", [0.1, 0.2, 0.3], 1e-5), "more than a job may hold"),
    (lambda body: (QuantumCircuit(17), "Z" * 17), "17 qubits"),
]


@pytest.mark.parametrize(("pub", "said"), WRONG)
def test_a_wrong_pub_is_one_sentence_and_nothing_is_sent(pub, said):
    estimator = PackedEstimator(noiseless())
    body = registers().remove_final_measurements(inplace=False)
    good = (body, "ZIIIII", [0.1, 0.2, 0.3])
    with pytest.raises(PubError, match=said) as caught:
        estimator.run([good, pub(body)])
    assert str(caught.value).startswith("PUB 1: ") and isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value) and estimator.backend.counters.executions == 0


def test_a_layout_of_another_device_and_a_closed_primitive_are_refused():
    isa = generate_preset_pass_manager(1, target=fake_device("fake_torino").target).run(registers())
    with PackedSampler(noiseless()) as sampler:
        with pytest.raises(PubError, match=r"another device|133 qubits"):
            sampler.run([(isa, [1, 2, 3])])
        other = GenericBackendV2(16, basis_gates=["cz", "rz", "sx", "x", "id"], seed=1)
        small = generate_preset_pass_manager(1, target=other.target).run(zz_feature_map(2).measure_all(inplace=False))
        with pytest.raises(PubError, match=r"another device: fake_guadalupe has no"):
            sampler.run([(small, [1, 2])])
    with pytest.raises(PrimitiveError, match="is closed"):
        sampler.run([(registers(), [1, 2, 3])])
    assert sampler.backend.counters.executions == 0


def test_primitives_that_share_a_journal_have_one_sequence_and_a_failed_run_may_be_another(tmp_path):
    circuit = real_amplitudes(2, reps=1)
    pub, dear = (circuit, "ZZ", [0.1, 0.2, 0.3, 0.4]), (circuit, ["ZZ", "XX"], [0.1, 0.2, 0.3, 0.4], 1e-3)
    values = []
    for _ in range(2):
        with Journal(tmp_path / "j.sqlite") as journal:
            keys = {"seed": 1, "journal": journal, "precision": 0.1}
            first = PackedEstimator("fake_guadalupe", **keys, budget=Budget(qpu_seconds=100))
            second = PackedEstimator("fake_guadalupe", **keys)
            with pytest.raises(PrimitiveError):  # beyond the budget; the second time, not what was answered there
                first.run([dear])
            runs = [one.run([pub]).result() for one in (first, second, first)]
            values.append([float(run[0].data.evs) for run in runs])
    assert values[0] == values[1] and len(set(values[0])) > 1
    assert all(run.metadata["from_journal"] for run in runs) and first.backend.counters.executions == 0


def test_primitives_on_one_backend_keep_their_budgets_and_in_threads_their_seeds():
    circuit = real_amplitudes(2, reps=1)
    backend, budgets, pub = noiseless(), [Budget(qpu_seconds=100), Budget(qpu_seconds=100)], (circuit, "ZZ", [0.3] * 4)
    first, second = (PackedEstimator(backend, precision=0.1, seed=1, budget=budget) for budget in budgets)
    for primitive in (first, second, first):
        primitive.run([pub])
    first.close()
    second.run([pub])
    assert budgets[0].billed == budgets[1].billed > 0

    def values(primitive):
        return [float(primitive.run([pub]).result()[0].data.evs) for _ in range(8)]

    wanted = values(PackedEstimator(backend, precision=0.1, seed=1))
    with ThreadPoolExecutor(3) as threads:
        made = [PackedEstimator(backend, precision=0.1, seed=1) for _ in range(3)]
        assert list(threads.map(values, made)) == [wanted] * 3
    assert not backend.packer.options


def test_resources_of_the_circuits_of_a_file(tmp_path):
    with (tmp_path / "mine.qpy").open("wb") as file:
        qpy.dump([zz_feature_map(2), branching()], file)
    asked = list(map(str, ["--circuits", tmp_path / "mine.qpy", "--shots", 10]))
    found = CliRunner().invoke(resources, [*asked, "--backend", "fake_torino", "--plan", "flex", "--format", "json"])
    (one,) = json.loads(found.output)
    assert one["executions"] == 20 and one["jobs"] == 1 and one["plan"] == "flex" and len(one["pubs"]) == 2
    refused = CliRunner().invoke(resources, asked[:2]).exception
    assert isinstance(refused, UserError) and "name one with backend" in str(refused)


def test_a_primitive_is_pickled_without_what_is_open_and_a_copy_of_a_model_shares_it(tmp_path):
    pub = (real_amplitudes(2, reps=1), "ZZ", np.full(4, 0.1))
    estimator = PackedEstimator("fake_guadalupe", seed=1, precision=0.1)
    estimator.run([pub])
    again = pickle.loads(pickle.dumps(estimator))
    assert again.run([pub]).result()[0].data.evs == estimator.run([pub]).result()[0].data.evs
    assert copy.deepcopy(estimator) is estimator
    kept = PackedEstimator("fake_guadalupe", journal=tmp_path / "j.sqlite")
    with kept, pytest.raises(PrimitiveError, match="keeps a journal, which cannot be pickled"):
        pickle.dumps(kept)


def test_simulators_by_name():
    circuit, values = real_amplitudes(2, reps=1), np.random.default_rng(0).uniform(-2, 2, (3, 4))
    pub = (circuit, [["ZI"], ["XX"]], values)
    exact = StatevectorEstimator().run([pub], precision=0).result()[0].data.evs
    found = [
        PackedEstimator("aer_cpu", precision=0.02, seed=seed).run([pub]).result()[0].data.evs for seed in (1, 1, 2)
    ]
    assert np.abs(found[0] - exact).max() < 0.1
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()
    with pytest.raises(PrimitiveError, match="'exact' gives exact values; aer_cpu and the fake devices sample"):
        PackedSampler("exact")


def test_circuits_too_wide_for_a_density_matrix_are_sampled_with_their_noise(monkeypatch):
    circuit = QuantumCircuit(3)
    circuit.append(real_amplitudes(3, reps=1, entanglement="linear"), range(3))
    values = np.random.default_rng(1).uniform(-2, 2, (2, circuit.num_parameters))
    pubs = [(circuit, [["ZZI"], ["IXX"], ["IIZ"]], values)]
    found = []
    for widest in (11, 2):
        monkeypatch.setattr(fake, "LARGEST_DENSITY", widest)
        found.append(PackedEstimator("fake_torino", precision=0.02, seed=4).run(pubs).result()[0].data)
    assert np.abs(found[0].evs - found[1].evs).max() < 5 * np.hypot(found[0].stds, found[1].stds).max()
    wide = real_amplitudes(12, reps=1, entanglement="linear").measure_all(inplace=False)
    counts = PackedSampler("fake_torino", shots=8, seed=1).run([(wide, np.zeros(24))]).result()[0].data.meas
    assert counts.num_bits == 12 and counts.num_shots == 8
    monkeypatch.setattr(fake, "LARGEST_TRAJECTORY", 10)
    with pytest.raises(PrimitiveError, match=r"touches 12 qubits .*; noise is simulated on at most 10"):
        PackedSampler("fake_torino", shots=8).run([(wide, np.zeros(24))])


@pytest.mark.parametrize("precision", [0, -1, float("nan"), float("inf"), "a", None, True])
def test_a_precision_is_a_number_above_0(precision):
    with pytest.raises(ValueError, match=r"precision is .*; it must be a number above 0"):
        PackedEstimator("fake_guadalupe", precision=precision)
    if precision not in ("a", None, True):
        with pytest.raises(PubError, match=r"PUB 0: (its precision is|precision must be)"):
            PackedEstimator(noiseless()).run([(zz_feature_map(2), "ZZ", [0.1, 0.2])], precision=precision)


def test_shots_and_seeds_are_whole_numbers():
    for shots in (0, -3, 1.5, "a", None, True):
        with pytest.raises(ValueError, match="it must be a positive whole number"):
            PackedSampler("fake_guadalupe", shots=shots)
    for seed in (-1, 1.5, "a", True):
        with pytest.raises(ValueError, match="it must be a whole number from 0 on, or None"):
            PackedEstimator("fake_guadalupe", seed=seed)


def test_containers_are_shaped_as_qiskits():
    circuit = real_amplitudes(2, reps=1)
    measured = circuit.measure_all(inplace=False)
    sampler, estimator = PackedSampler(noiseless(), shots=9), PackedEstimator(noiseless(), precision=0.5)
    for shape in ((0,), (3, 0), (2, 3), (1, 1, 1), ()):
        values = np.zeros((*shape, circuit.num_parameters))
        wanted = StatevectorSampler().run([(measured, values)], shots=9).result()[0].data
        found = sampler.run([(measured, values)]).result()[0].data
        assert found.meas.array.shape == wanted.meas.array.shape and found.shape == wanted.shape
        for observables in ("ZZ", []) if shape == () else ("ZZ",):
            wanted = StatevectorEstimator().run([(circuit, observables, values)]).result()[0].data
            found = estimator.run([(circuit, observables, values)]).result()[0].data
            assert found.evs.shape == wanted.evs.shape and found.stds.shape == wanted.stds.shape
    bits = [Clbit() for _ in range(3)]
    aliased = QuantumCircuit(QuantumRegister(2, "q"), bits)
    for name, own in (("a", bits[:2]), ("b", bits[1:])):
        aliased.add_register(ClassicalRegister(name=name, bits=own))
    aliased.x(0)
    aliased.measure([0, 1], [1, 2])
    twice = QuantumCircuit(2, 1)
    twice.x(0)
    twice.measure([0, 1], [0, 0])
    for one in (aliased, twice):
        found, wanted = (
            made.run([one], shots=9).result()[0].data for made in (sampler, BackendSamplerV2(backend=AerSimulator()))
        )
        assert {k: v.get_counts() for k, v in found.items()} == {k: v.get_counts() for k, v in wanted.items()}


def test_threads_take_turns():
    circuit, found = real_amplitudes(2, reps=1), {}
    estimator = PackedEstimator(noiseless(), precision=0.03)

    def measure(k):
        found[k] = estimator.run([(circuit, "ZZ", np.full(4, 0.2 * k))]).result()[0].data.evs

    threads = [threading.Thread(target=measure, args=(k,)) for k in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    exact = StatevectorEstimator().run([(circuit, "ZZ", [np.full(4, 0.2 * k) for k in range(6)])], precision=0)
    assert np.abs(np.array([found[k] for k in range(6)]) - exact.result()[0].data.evs).max() < 0.15


@pytest.mark.parametrize(("given", "says"), [(-1, "counted 8 of 9 shots"), (5, None), (-9, "counted nothing")])
def test_a_backend_that_counts_other_shots_than_it_was_asked_for(given, says, monkeypatch):
    device = AerSimulator()
    monkeypatch.setattr(AerSimulator, "run", lambda self, circuits, shots, **_: Other(circuits, max(0, shots + given)))
    measured = QuantumCircuit(1)
    measured.h(0)
    measured.measure_all()
    sampler = PackedSampler(device, shots=9)
    if says is None:
        assert sampler.run([measured]).result()[0].data.meas.num_shots == 9
        return
    with pytest.raises(PrimitiveError, match=says):
        sampler.run([measured])


class Other:
    success = True

    def __init__(self, circuits, shots):
        self.shots = shots

    def result(self):
        return self

    def get_counts(self, _):
        return {"0": self.shots - self.shots // 3, "1": self.shots // 3}
