"""QPUs that a cluster hands a job, against a stand-in of the package qrmi: numbers, bills, trouble, kills."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from qrkt_hw import circuits
from qrkt_hw.backends import Call, listing, resolve
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.qrmi import decoded, sampler_options
from qrkt_hw.errors import UserError
from qrkt_hw.primitives import PackedSampler
from tests.acceptance.killing_jobs import forked
from tests.command_line import qrkt, refused

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
STAND_INS = Path(__file__).parents[1] / "stand_ins"
SECRET = "a-key-that-must-appear-nowhere"
TINY = ["--hidden", 4, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1, "--rk", "rk1", "--ansatz", "brickwork",
        "--heads", 2, "--limit", 32, "--epochs", 1]  # fmt: skip
INFER = ["infer", "run", "--backend", "qrmi", "--shots", 64, "--limit", 3]
MOMENTS = ["planned, not sent", "before it arrives", "started, not answered", "waiting", "downloading",
           "writing the journal"]  # fmt: skip


class Cluster:
    """What the stand-in keeps in its folder."""

    def __init__(self, folder):
        self.folder = folder

    def how(self, **settings):
        (self.folder / "how.json").write_text(json.dumps(settings))

    def reset(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def executed(self):
        path = self.folder / "executed.txt"
        return sorted(path.read_text().split("\n")[:-1]) if path.is_file() else []

    def count(self, what):
        path = self.folder / "log.txt"
        return path.read_text().split("\n").count(what) if path.is_file() else 0

    def inputs(self):
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("task-*.json"))]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One QPU in the job, of seven qubits."""
    found = Cluster(tmp_path_factory.mktemp("cluster") / "tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STAND_INS)
        patch.setenv("PYTHONPATH", str(STAND_INS))
        patch.setenv("QRMI_STAND_IN", str(found.folder))
        patch.setenv("QRMI_JOB_QPU_RESOURCES", "qpu_lagos")
        patch.setenv("QRMI_JOB_QPU_TYPES", "ibm-quantum-compute-service")
        for name in ("qpu_lagos", "qpu_fez"):
            patch.setenv(f"{name}_QRMI_ENDPOINT", "http://nowhere")
            patch.setenv(f"{name}_QRMI_IAM_APIKEY", SECRET)
        yield found
    sys.modules.pop("qrmi", None)


@pytest.fixture
def cluster(environment):
    environment.reset()
    return environment


@pytest.fixture(scope="module")
def home(environment, tmp_path_factory):
    """A folder with a small run."""
    folder = tmp_path_factory.mktemp("home")
    found = qrkt("train", *TINY, "--out", "run", cwd=folder)
    assert found.returncode == 0, found.stderr
    (folder / "backends.yaml").write_text("qrmi: {provider: qrmi, shots: 64, patience: 1, optimization_level: 1}\n")
    return folder


@pytest.fixture
def run(home):
    """Its run folder without a journal."""
    (home / "run" / "journal.sqlite").unlink(missing_ok=True)
    return home / "run"


def inferred(run):
    """The numbers of the newest inference."""
    newest = max((run / "inference").iterdir(), key=lambda path: path.name)
    record = json.loads(newest.read_text())
    return {key: record[key] for key in ("accuracy", "loss", "f1", "agreement", "count")}


def calls(samples=3, seed=0):
    template = circuits.build("brickwork", 3, 2)
    values = np.random.default_rng(seed).uniform(-2, 2, (samples, template.num_inputs + template.num_weights))
    return [Call(template, values)]


def small(**keys):
    backend = resolve("qrmi", shots=400)
    backend.place.patience = 0.5
    for key, value in keys.items():
        setattr(backend, key, value)
    return backend


# numbers -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["qpu_lagos", pytest.param("qpu_fez", marks=pytest.mark.slow)])
def test_values_equal_exact_ones_within_shot_noise(name, cluster, monkeypatch):
    kinds = {"qpu_lagos": "ibm-quantum-compute-service", "qpu_fez": "ibm-quantum-system"}
    monkeypatch.setenv("QRMI_JOB_QPU_RESOURCES", ",".join(kinds))
    monkeypatch.setenv("QRMI_JOB_QPU_TYPES", ",".join(kinds.values()))
    backend, asked = resolve(f"qrmi_{name}", shots=2000), calls(12)
    with backend.open():
        found = backend.run(asked)[0]
    exact = resolve("exact").run(asked)[0]
    z = (found - exact) / np.sqrt(np.maximum(1 - exact**2, 1e-3) / 2000)
    assert np.abs(z).max() < 5 and 0.3 < np.mean(z**2) < 2.5
    assert cluster.count("started") == 1 and cluster.count("acquired") == cluster.count("released") == 1
    assert backend.billed == backend.estimated > 2 and backend.num_qubits == (7 if name == "qpu_lagos" else 156)
    assert sum(int(line.split()[1]) for line in cluster.executed()) == backend.counters.executions
    assert {"device": name, "resource": kinds[name], "jobs": 1}.items() <= backend.about().items()


def test_what_is_sent_is_the_input_of_the_sampler(cluster):
    backend = resolve("qrmi", shots=100, device={"dynamical_decoupling": True, "twirl_gates": True, "rep_delay": 1e-4})
    with backend.open():
        backend.run(calls())
    (sent,) = cluster.inputs()
    assert {key: value for key, value in sent.items() if key != "pubs"} == {
        "version": 2, "support_qiskit": True, "shots": 100,
        "options": {
            "dynamical_decoupling": {"enable": True, "sequence_type": "XpXm"},
            "twirling": {"enable_gates": True, "enable_measure": False}, "execution": {"rep_delay": 1e-4},
        },
    }  # fmt: skip
    circuit, values, shots = sent["pubs"][0]
    assert circuit["__type__"] == "QuantumCircuit" and values["__type__"] == "ndarray" and shots == 100
    assert sampler_options(resolve("qrmi").options) == {}


def test_readout_is_calibrated_and_circuits_without_parameters_come_back(cluster):
    backend, asked = resolve("qrmi", shots=2000, device={"mitigation": "mthree"}), calls()
    with backend.open():
        found = backend.run(asked)[0]
    assert np.abs(found - resolve("exact").run(asked)[0]).max() < 5 / np.sqrt(2000)
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.delay(160, 0, "dt")  # what waits is not packed
    circuit.measure_all()
    cluster.reset()
    with PackedSampler("qrmi", shots=50) as sampler:
        assert sampler.run([circuit]).result()[0].data.meas.get_counts() == {"1": 50}
    assert cluster.inputs()[0]["pubs"][0][1] is None


def test_parameters_keep_their_order(cluster):
    vector = ParameterVector("p", 12)  # p[10] comes before p[2] in the alphabet
    circuit = QuantumCircuit(2)
    for k, parameter in enumerate(vector):
        circuit.rx(parameter, k % 2)
        circuit.cx(0, 1)
    circuit.measure_all()
    values = np.where(np.arange(12) == 2, np.pi, 0.0)
    with PackedSampler("qrmi", shots=200) as sampler:
        found = sampler.run([(circuit, values)]).result()[0].data.meas.get_counts()
    bound = circuit.remove_final_measurements(inplace=False).assign_parameters(values)
    from qiskit.quantum_info import Statevector

    assert found == {Statevector(bound).measure()[0]: 200}


def test_text_that_is_no_result_is_refused_by_the_decoder():
    for text in ("", "[]x", "null", "3", '{"__type__": "PrimitiveResult"}', '[{"data": 3}]'):
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
            decoded(text)


# commands ------------------------------------------------------------------------------------------------------------
def test_an_inference_is_journalled_and_says_what_it_used(cluster, home, run):
    found = qrkt(*INFER, cwd=home)
    assert found.returncode == 0, found.stderr
    assert "estimates, as QRMI reports no bill" in found.stdout
    with Journal(run / "journal.sqlite", write=False) as journal:
        submissions = journal.submissions()
        (activity,) = journal.activities()
    assert [one.job for one in submissions] == [f"task-{k + 1}" for k in range(cluster.count("started"))]
    assert {one.state for one in submissions} == {"done"} and activity.finished and activity.device == "qpu_lagos"
    assert {one.session for one in submissions} == {"session-1"}
    listed = qrkt("jobs", "list", "run", cwd=home)
    assert "task-1" in listed.stdout
    for text in (found.stdout, found.stderr, listed.stdout, (run / "journal.sqlite").read_bytes().decode("latin1")):
        assert SECRET not in text
    shown = qrkt("infer", "run", "--backend", "qrmi", "--limit", 3, "--dry-run", cwd=home)
    assert (
        shown.returncode == 0
        and "nothing is submitted" in shown.stdout
        and cluster.count("started") == len(submissions)
    )
    planned = qrkt("resources", "run", "--backend", "qrmi", cwd=home)
    assert planned.returncode == 0, planned.stderr


def test_other_commands_know_it(cluster, home):
    assert next(one for one in listing() if one.name == "qrmi")[1:] == (
        "QPU of the cluster (QRMI)",
        None,
        1024,
        True,
        "",
    )
    checked = qrkt("backends", "check", "qrmi", cwd=home)
    assert checked.returncode == 0 and "qpu_lagos" in checked.stdout, checked.stderr
    refused(qrkt(*INFER, "--mode", "job", cwd=home), "--mode", "devices of IBM Quantum", "a QPU of the cluster")
    refused(qrkt(*INFER, "--ablate", "sine", cwd=home), "--ablate", "bills")


def test_doctor_says_what_the_job_has(cluster, monkeypatch):
    from qrkt_hw.commands.doctor import _qrmi

    assert _qrmi().state == "ok" and "qpu_lagos (ibm-quantum-compute-service)" in _qrmi().text
    monkeypatch.delenv("QRMI_JOB_QPU_RESOURCES")
    assert _qrmi().state == "warning" and "sbatch --qpu=NAME" in _qrmi().text


def test_python_says_that_it_pays(cluster):
    backend = small()
    with pytest.raises(UserError, match=r"bills what it runs.*backend.open"):
        backend.run(calls())
    assert not cluster.count("started") and not cluster.count("acquired")


# what is not there ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("variables", "name", "words"),
    [
        ({"QRMI_JOB_QPU_RESOURCES": None}, "qrmi", ["names no QPU", "sbatch --qpu=NAME"]),
        ({"QRMI_JOB_QPU_RESOURCES": ""}, "qrmi", ["names no QPU"]),
        ({"QRMI_JOB_QPU_TYPES": None}, "qrmi", ["names 1 QPUs", "0 types"]),
        ({"QRMI_JOB_QPU_TYPES": "pasqal-cloud"}, "qrmi", ["'pasqal-cloud'", "ibm-quantum-system"]),
        ({"QRMI_JOB_QPU_TYPES": "direct-access"}, "qrmi", ["knows no direct-access", "--upgrade"]),
        ({}, "qrmi_qpu_fez", ["no QPU 'qpu_fez'", "qpu_lagos", "--qpu=qpu_fez"]),
        ({}, "qrmi_a b", ["'qrmi_a b' is not a name"]),
        (
            {"QRMI_JOB_QPU_RESOURCES": "qpu_lagos,qpu_fez", "QRMI_JOB_QPU_TYPES": "direct-access,direct-access"},
            "qrmi", ["2 QPUs (qpu_lagos, qpu_fez)", "take backend='qrmi_qpu_lagos'"],
        ),
        ({"qpu_lagos_QRMI_ENDPOINT": None}, "qrmi", ["qpu_lagos_QRMI_ENDPOINT environment variable is not set"]),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_sentence(variables, name, words, cluster, monkeypatch):
    for key, value in variables.items():
        monkeypatch.delenv(key) if value is None else monkeypatch.setenv(key, value)
    with pytest.raises(UserError) as stop:
        resolve(name)
    assert all(word in str(stop.value) for word in words) and "\n" not in str(stop.value), stop.value


def test_the_variables_of_versions_before(cluster, monkeypatch):
    monkeypatch.delenv("QRMI_JOB_QPU_RESOURCES")
    monkeypatch.setenv("SLURM_JOB_QPU_RESOURCES", "qpu_lagos; qpu_fez")
    monkeypatch.setenv("SLURM_JOB_QPU_TYPES", "ibm-quantum-compute-service;ibm-quantum-system")
    monkeypatch.setenv("QRMI_LIST_DELIMITER", ";")
    assert resolve("qrmi_qpu_fez").num_qubits == 156


def test_without_the_package(cluster, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "qrmi", raising=False)
    refused(qrkt("backends", "check", "qrmi", cwd=tmp_path), "the package qrmi is not installed", "pip install qrmi")


def test_a_fallback_and_the_name_of_a_simulator_are_refused(tmp_path):
    for text in (
        "mine: {provider: qrmi, fallback: exact}",
        "aer_cpu: {provider: qrmi}",
        "mine: {provider: qrmi, mode: job}",
    ):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(UserError, match=r"own\.yaml"):
            resolve("exact", file=tmp_path / "own.yaml")


# trouble -------------------------------------------------------------------------------------------------------------
def test_a_device_that_says_nothing_or_is_offline(cluster):
    cluster.how(no_target=True)
    with pytest.raises(UserError, match="no configuration and calibration"):
        small()
    cluster.how(offline=True)
    backend = small()
    with backend.open(), pytest.raises(UserError, match=r"takes no tasks now.*calibrating"):
        backend.run(calls())
    assert not cluster.count("started") and not cluster.count("acquired")


def test_a_task_that_is_refused_fails_or_is_cancelled(cluster):
    cluster.how(refuse=True)
    backend = small()
    with backend.open(), pytest.raises(UserError, match=r"starting a task on qpu_lagos: rejected with key \*\*\*"):
        backend.run(calls())
    for how, said in (({"fail": ["task-1"]}, r"failed on qpu_lagos: the fridge is warm, key \*\*\*"),
                      ({"cancel": ["task-2"]}, "task-2 on qpu_lagos was cancelled")):  # fmt: skip
        cluster.how(**how)
        with Journal(None) as journal:
            activity = journal.start("run", "qpu_lagos", {})
            with backend.open(journal, activity=activity):
                with pytest.raises(UserError, match=said):
                    backend.run(calls())
                assert [one.state for one in journal.submissions()] == ["failed"]
                cluster.how()
                backend.run(calls())  # sends its circuits again
            assert [one.state for one in journal.submissions()] == ["failed", "done"]
        cluster.reset()
        (cluster.folder / "log.txt").write_text("started\n")


def test_a_lost_answer_is_held_and_sent_again_only_on_the_users_word(cluster, tmp_path):
    cluster.how(lose="task-1")
    backend = small()
    with Journal(tmp_path / "journal.sqlite") as journal:
        activity = journal.start("run", "qpu_lagos", {})
        with backend.open(journal, activity=activity):
            for _ in range(2):
                with pytest.raises(UserError, match=r"its id did not come back.*held.*resubmit"):
                    backend.run(calls())
        assert [one.state for one in journal.submissions()] == ["held"] and cluster.count("started") == 1
        assert not cluster.count("released")  # it may be running, and a release would cancel it
        cluster.how()
        with backend.open(journal, activity=activity, resubmit=True):
            backend.run(calls())
        assert [one.state for one in journal.submissions()] == ["failed", "done"]
        assert cluster.count("started") == 2 and cluster.count("released") == 1


@pytest.mark.parametrize("text", ["", "null", "{", '{"__type__": "PrimitiveResult", "__value__": {"pub_results": []}}'])
def test_garbage_is_not_used_and_asked_for_again(text, cluster):
    cluster.how(garbage={"task-1": text})
    backend = small()
    with Journal(None) as journal:
        activity = journal.start("run", "qpu_lagos", {})
        with backend.open(journal, activity=activity):
            with pytest.raises(UserError, match="task-1"):
                backend.run(calls())
            assert [one.state for one in journal.submissions()] == ["submitted"]
            cluster.how()
            backend.run(calls())
        assert cluster.count("started") == 1


def test_a_budget_stops_before_a_task_is_started(cluster):
    backend = small()
    with backend.open(budget=Budget(qpu_seconds=1)), pytest.raises(UserError, match="max_qpu_seconds 1 s"):
        backend.run(calls())
    with small(max_seconds=5).open() as held:
        held.run(calls())
        held.run(calls(seed=1))
        with pytest.raises(UserError, match=r"max_seconds of backend qrmi 5 s: 4.* s are billed"):
            held.run(calls(seed=2))
    assert cluster.count("started") == 2


def test_a_resource_that_the_job_acquired_is_not_released(cluster, monkeypatch):
    monkeypatch.setenv("qpu_lagos_QRMI_JOB_ACQUISITION_TOKEN", "of-the-plug-in")
    with small().open() as backend:
        backend.run(calls())
    assert not cluster.count("acquired") and not cluster.count("released")


def test_tasks_are_waited_for_and_the_session_of_those_under_way_is_left(cluster):
    cluster.how(slow=10_000)
    backend = small()
    backend.entry = backend.entry.model_copy(update={"max_wait": 0.3})
    with Journal(None) as journal:
        activity = journal.start("run", "qpu_lagos", {})
        with (
            backend.open(journal, activity=activity),
            pytest.raises(UserError, match=r"is not done.*resume takes its result"),
        ):
            backend.run(calls())
        assert not cluster.count("released") and not cluster.count("stopped")
        cluster.how(slow=2)
        with backend.open(journal, activity=activity):
            backend.run(calls())
    assert cluster.count("started") == 1


# kills ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def undisturbed(environment, home):
    environment.reset()
    (home / "run" / "journal.sqlite").unlink(missing_ok=True)
    assert qrkt(*INFER, cwd=home).returncode == 0
    return inferred(home / "run"), environment.executed(), environment.count("started")


def kill(cluster, home, moment, nth, *flags):
    inside = moment in ("planned, not sent", "writing the journal")
    cluster.how(**({} if inside else {"die": [moment, nth + cluster.count(f"at {moment}")]}))
    found = forked([*INFER, *flags], home, moment if inside else None, nth)
    cluster.how()
    return found


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=() if m in MOMENTS[2:3] else pytest.mark.slow) for m in MOMENTS]
)
@pytest.mark.parametrize("nth", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_undisturbed(moment, nth, undisturbed, cluster, home, run):
    status, text = kill(cluster, home, moment, nth)
    assert status == -9, text
    flags, sent_again = ["--resume"], 0
    if moment in ("before it arrives", "started, not answered"):  # nobody knows whether it arrived
        status, text = forked([*INFER, "--resume"], home)
        assert status == 2 and "its id did not come back" in text and "Traceback" not in text
        flags, sent_again = ["--resume", "--resubmit"], 1
    status, text = forked([*INFER, *flags], home)
    assert status == 0, text
    found, executed, started = undisturbed
    assert inferred(run) == found and cluster.executed() == executed
    # a task that was started and whose id was lost is the only one that may run twice, and on the user's word
    assert cluster.count("started") == started + (sent_again if moment == "started, not answered" else 0)


def test_what_a_cluster_cancels_as_a_job_ends_is_sent_again_by_resume(undisturbed, cluster, home, run):
    status, _ = kill(cluster, home, "waiting", 1)
    assert status == -9
    found = qrkt("jobs", "adopt", "run", "--number", 1, "--job", "task-1", cwd=home)
    assert found.returncode == 0 and "no job of" in found.stdout
    cluster.how(cancel=["task-1"])
    found = qrkt(*INFER, "--resume", cwd=home)
    assert found.returncode == 0 and "task-1 was cancelled after its process ended" in found.stderr.replace("\n", " ")
    assert inferred(run) == undisturbed[0] and cluster.executed() == undisturbed[1]


def test_a_lost_task_is_adopted_by_its_id_and_another_is_cancelled(undisturbed, cluster, home, run):
    assert kill(cluster, home, "started, not answered", 1)[0] == -9
    refused(qrkt("jobs", "adopt", "run", "--number", 1, "--job", "task-9", cwd=home), "--job", "no task task-9")
    found = qrkt("jobs", "adopt", "run", "--number", 1, "--job", "task-1", cwd=home)
    assert found.returncode == 0 and "adopted job task-1" in found.stdout
    found = qrkt(*INFER, "--resume", cwd=home)
    assert found.returncode == 0 and inferred(run) == undisturbed[0], found.stderr
    assert cluster.executed() == undisturbed[1] and cluster.count("started") == undisturbed[2]
    cluster.reset()
    (run / "journal.sqlite").unlink()
    assert kill(cluster, home, "waiting", 1)[0] == -9
    cluster.how(slow=10_000)
    found = qrkt("jobs", "cancel", "run", cwd=home)
    assert found.returncode == 0 and "task-1 is cancelled" in found.stdout and cluster.count("stopped") == 1


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["spsa", "adjoint"])
def test_a_training_killed_at_many_moments_equals_one_that_was_not(gradient, cluster, home):
    train = ["train", *TINY, "--backend", "qrmi", "--gradient", gradient, "--batch-size", "16", "--shots", "16"]
    status, text = forked([*train, "--out", f"whole-{gradient}"], home)
    assert status == 0, text
    wanted, executed = home / f"whole-{gradient}" / "model.safetensors", cluster.executed()
    cluster.reset()
    name, arguments = f"stopped-{gradient}", [*train, "--out", f"stopped-{gradient}"]
    for deaths, moment in enumerate(MOMENTS[1:5]):
        cluster.how(die=[moment, 1 + deaths % 2 + cluster.count(f"at {moment}")])
        status, text = forked(arguments, home)
        arguments = ["train", "--resume", name, "--backend", "qrmi"]
        if status == 2 and "its id did not come back" in text:
            status, text = forked([*arguments, "--resubmit"], home)
        assert status == -9 and "Traceback" not in text, (status, text)
    cluster.how()
    status, text = forked(arguments, home)
    assert status == 0, text
    assert (home / name / "model.safetensors").read_bytes() == wanted.read_bytes()
    assert cluster.executed() == executed
