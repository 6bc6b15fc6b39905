"""Anybody's PUBs on devices: fewer executions, the same values, a price before, no second bill, clear refusals."""

import copy
import json
import multiprocessing

import numpy as np
import pytest
import yaml
from qiskit.circuit import ClassicalRegister, IfElseOp, Parameter, QuantumCircuit, QuantumRegister
from qiskit.circuit.library import real_amplitudes, zz_feature_map
from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2, StatevectorEstimator, StatevectorSampler
from qiskit.providers import BackendV2, JobV1, Options
from qiskit.result import Result
from qiskit_machine_learning.algorithms import VQC, NeuralNetworkClassifier
from qiskit_machine_learning.neural_networks import EstimatorQNN
from qiskit_machine_learning.optimizers import COBYLA, SPSA

from qrkt_hw import estimate
from qrkt_hw.backends import resolve
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.backends.ibm.jobs import Jobs
from qrkt_hw.primitives import PackedEstimator, PackedSampler, PrimitiveError, PubError
from tests.packed import branching

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]
A = Parameter("a")


def counting(kind, made):
    """The primitive with a count of the executions that it takes where nothing is packed or shared."""

    class Counting(kind):
        stock = 0

        def run(self, pubs, **how):
            job = made.run(pubs, **how)
            self.stock += sum(one.data.size * one.metadata["shots"] for one in job.result())
            return job

        def saved(self):
            return self.stock / made.backend.counters.executions

    return Counting()


def noiseless():
    return FakeBackend("noiseless", "fake_torino", shots=1, seed=3, noise="none", method="density_matrix")


def iris():
    from sklearn.datasets import load_iris
    from sklearn.preprocessing import MinMaxScaler

    features, labels = load_iris(return_X_y=True)
    return MinMaxScaler().fit_transform(features), labels


@pytest.mark.parametrize(
    "optimizer", [SPSA(1, learning_rate=0.01, perturbation=0.1), pytest.param(COBYLA(1), marks=pytest.mark.slow)]
)
def test_a_vqc_takes_twenty_times_fewer_executions_with_the_same_values(optimizer):
    features, labels = iris()
    weights, found = np.random.default_rng(0).uniform(-1, 1, 16), []
    for sampler in (StatevectorSampler(seed=1), counting(BaseSamplerV2, PackedSampler(noiseless()))):
        model = VQC(
            feature_map=zz_feature_map(4, reps=1), ansatz=real_amplitudes(4, reps=3), sampler=sampler,
            optimizer=optimizer, initial_point=weights,
        )  # fmt: skip
        model.fit(features[::6], labels[::6])
        found.append(model.neural_network.forward(features[::6], weights))
    assert np.abs(found[1] - found[0]).max() < 0.11  # each of 1024 shots
    assert np.sqrt(np.mean((found[1] - found[0]) ** 2)) < 0.03
    assert sampler.saved() >= 20


@pytest.mark.slow
def test_a_classifier_with_four_observables_takes_seventy_five_times_fewer_executions():
    features, labels = iris()
    circuit, found = zz_feature_map(4, reps=1).compose(real_amplitudes(4, reps=3)), []
    inputs, weights = ([p for p in circuit.parameters if p.name[0] == letter] for letter in "xθ")
    for made in (StatevectorEstimator(), counting(BaseEstimatorV2, PackedEstimator(noiseless()))):
        qnn = EstimatorQNN(
            circuit=circuit, estimator=made, observables=["IIIZ", "IIZI", "IZII", "ZIII"], input_params=inputs,
            weight_params=weights, default_precision=1 / 32,
        )  # fmt: skip
        point = np.linspace(0, 1, len(weights))
        model = NeuralNetworkClassifier(qnn, optimizer=COBYLA(maxiter=1), one_hot=True, initial_point=point)
        model.fit(features[::6], np.eye(4)[labels[::6]])
        found.append(qnn.forward(features[::6], point))
    assert np.abs(found[1] - found[0]).max() < 5 / 32
    assert np.sqrt(np.mean((found[1] - found[0]) ** 2)) < 1 / 20  # both are noisy
    assert made.saved() >= 75


class Recorder(BackendV2):
    """A device of somebody else: the chip of a fake one, which counts what it is asked to run."""

    def __init__(self):
        super().__init__(name="recorder")
        self.executed, self.runs = 0, 0
        self._chip = copy.deepcopy(fake_device("fake_guadalupe").target)
        self._chip.add_instruction(IfElseOp, name="if_else")

    @property
    def target(self):
        return self._chip

    @property
    def max_circuits(self):
        return None

    @classmethod
    def _default_options(cls):
        return Options(shots=100)

    def run(self, run_input, shots=100, **_):
        self.executed += shots * len(run_input)
        self.runs += 1
        data = [{"counts": {"0x0": shots}} for _ in run_input]
        results = [
            {"shots": shots, "success": True, "data": one, "header": {
                "creg_sizes": [[r.name, r.size] for r in c.cregs], "memory_slots": c.num_clbits}}
            for c, one in zip(run_input, data, strict=True)
        ]  # fmt: skip
        return Done(self, results)


class Done(JobV1):
    def __init__(self, backend, results):
        super().__init__(backend, "1")
        self._results = results

    def result(self):
        return Result.from_dict({
            "backend_name": "recorder", "backend_version": "1", "job_id": "1", "success": True,
            "results": self._results})  # fmt: skip

    def submit(self):
        pass

    def status(self):
        return "DONE"


@pytest.mark.parametrize("lists", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_on_random_lists_what_was_estimated_is_what_the_device_was_asked_to_run(lists):
    rng, device = np.random.default_rng(8), Recorder()
    sampler, estimator = PackedSampler(device, shots=64), PackedEstimator(device, precision=0.1)
    circuits = [zz_feature_map(2), real_amplitudes(3, reps=1), zz_feature_map(3, entanglement="linear"), branching()]
    for _ in range(lists):
        chosen = [circuits[k] for k in rng.integers(4, size=rng.integers(1, 4))]
        shapes = [tuple(rng.integers(1, 8, rng.integers(1, 3))) for _ in chosen]
        values = [rng.choice([-0.5, 0.1, 0.7], (*s, c.num_parameters)) for s, c in zip(shapes, chosen, strict=True)]
        letters = [["".join(rng.choice(list("IXYZ"), c.num_qubits)) for _ in range(s[-1])] for s, c in
                   zip(shapes, chosen, strict=True)]  # fmt: skip
        expected = [(c, o, v, float(rng.choice([0.1, 0.2]))) for c, o, v in zip(chosen, letters, values, strict=True)]
        measured = [c if c.num_clbits else c.measure_all(inplace=False) for c in chosen]
        counted = [(c, v, int(rng.integers(60, 62))) for c, v in zip(measured, values, strict=True)]
        for primitive, pubs in ((sampler, counted), (estimator, expected)):
            before, said = device.executed, estimate(pubs, primitive)
            primitive.run(pubs).result()
            assert device.executed - before == said.executions


@pytest.mark.parametrize("moments", [(3,), pytest.param(range(5), marks=pytest.mark.slow, id="all")])
def test_killed_and_started_again_only_the_rest_is_executed(tmp_path, moments):
    from tests.acceptance.program_of_primitives import MOMENTS, started

    assert max(moments) < len(MOMENTS) == 5
    journal, file = tmp_path / "journal.sqlite", tmp_path / "said.json"
    # of a server without threads of ours, as it forks
    program = multiprocessing.get_context("forkserver").Process(target=started, args=(journal, moments, file))
    program.start()
    program.join()
    assert program.exitcode == 0
    said = json.loads(file.read_text())
    *killed, last = said["starts"]
    assert killed == [None] * len(moments) and last["found"] == said["whole"]["found"] == said["again"]["found"]
    assert last["executed"] < said["whole"]["executed"] * (0.8 if len(moments) == 1 else 0.125)
    assert said["again"]["executed"] == 0
    circuit = real_amplitudes(2)
    estimator = PackedEstimator("fake_guadalupe", seed=2, journal=tmp_path / "journal.sqlite")
    with pytest.raises(PrimitiveError, match=r"run 1 of this program differs.*another takes another journal"):
        estimator.run([(circuit, "ZZ", np.zeros(circuit.num_parameters))])
    with pytest.raises(PrimitiveError, match="begun with"):
        PackedEstimator("fake_guadalupe", seed=3, journal=estimator.journal)
    assert estimator.backend.counters.executions == 0


ENTRY = {
    "provider": "ibm", "name": "ibm_fez", "optimization_level": 1, "submissions_per_minute": 100_000, "patience": 5,
    "grace": 2,
}  # fmt: skip


@pytest.fixture
def fez(service, tmp_path):
    service.reset()
    (tmp_path / "backends.yaml").write_text(yaml.safe_dump({"mine": ENTRY}))
    return lambda: resolve("mine", file=tmp_path / "backends.yaml")


def pubs_of_a_user():
    circuit = zz_feature_map(2).measure_all(inplace=False)
    rows = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    middle = QuantumCircuit(QuantumRegister(2, "q"), ClassicalRegister(1, "m"), ClassicalRegister(1, "o"))
    middle.ry(A, 0)
    middle.measure(0, 0)
    middle.cx(0, 1)
    middle.measure(1, 1)
    return [(circuit, rows, 200), (middle, [[0.1], [2.0]]), circuit.assign_parameters(rows[0]), (circuit, rows[:3])]


def test_the_service_bills_what_was_estimated(fez, service):
    pubs = pubs_of_a_user()
    with PackedSampler(fez(), shots=100) as sampler:
        said = estimate(pubs, sampler, plan="open")
        assert not service.report()["jobs"] and said.usd == 0
        found = sampler.run(pubs).result()
    billed = service.report()
    assert billed["executions"] == said.executions and len(billed["jobs"]) == said.jobs
    assert billed["seconds"] == pytest.approx(said.seconds, rel=0.01)
    counts = found[1].join_data().get_counts(1)
    assert set(counts) <= {"00", "11"} and found[0].data.meas.num_shots == 200


@pytest.mark.slow
def test_stopped_while_a_job_runs_its_result_is_taken_and_nothing_is_sent_twice(fez, service, tmp_path, monkeypatch):
    pubs = pubs_of_a_user()[:2]

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, PackedSampler(fez(), shots=100, journal=tmp_path / "j.sqlite") as sampler:
        patch.setattr(Jobs, "_await", stop)
        with pytest.raises(KeyboardInterrupt):
            sampler.run(pubs)
    sent = len(service.report()["jobs"])
    with PackedSampler(fez(), shots=100, journal=tmp_path / "j.sqlite") as sampler:
        sampler.run(pubs).result()
        assert len(service.report()["jobs"]) == sent
        sampler.run(pubs).result()  # the same PUBs at another position are run
        assert len(service.report()["jobs"]) == 2 * sent
    with Journal(tmp_path / "j.sqlite", write=False) as journal:
        assert len(journal.submissions()) == 2 * sent


def test_two_primitives_on_one_device_that_bills_are_refused_and_not_mixed_up(fez):
    backend, pub = fez(), (zz_feature_map(2), ["ZI"], [0.3, 0.4])
    with PackedEstimator(backend, precision=0.5) as first, PackedEstimator(backend, precision=0.5) as second:
        first.run([pub])
        with pytest.raises(PrimitiveError, match="is held open already; close what holds it"):
            second.run([pub])
        first.run([pub])
        first.close()
        second.run([pub])


def test_a_budget_ends_it_before_anything_too_dear_is_sent(fez, service):
    with PackedEstimator(fez(), precision=0.1, budget=Budget(qpu_seconds=3)) as estimator:
        pub = (zz_feature_map(2), ["ZI", "XX"], [0.3, 0.4])
        assert not estimate([pub], estimator).limits
        estimator.run([pub])
        assert "the run takes" in estimate([pub], estimator).limits[0]
        with pytest.raises(PrimitiveError, match="more than the limit"):
            estimator.run([pub])
    assert len(service.report()["jobs"]) == 1
    with pytest.raises(PrimitiveError, match="is closed"):
        estimator.run([pub])
    with PackedSampler(fez()) as sampler, pytest.raises(PubError, match="PUB 0: The number of values"):
        sampler.run([zz_feature_map(2).measure_all(inplace=False)])
    assert len(service.report()["jobs"]) == 1


def test_a_fake_device_keeps_a_budget_too():
    estimator = PackedEstimator("fake_guadalupe", precision=0.1, budget=Budget(qpu_seconds=3))
    pub = (zz_feature_map(2), "ZI", [0.3, 0.4])
    estimator.run([pub])
    with pytest.raises(PrimitiveError, match="more than the limit"):
        estimator.run([pub])
