"""The reporter's figures against Qiskit's own, and against what is counted where circuits really run."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from qiskit import QuantumCircuit
from qiskit.transpiler.preset_passmanagers import generate_preset_pass_manager

from qrkt_hw.backends import aer
from qrkt_hw.backends.budget import usage
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.registry import resolve
from qrkt_hw.circuits import build, names
from qrkt_hw.commands import group
from qrkt_hw.compiler import derive
from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.resources import devices as reporter
from qrkt_hw.resources.subject import of_options, of_template
from qrkt_hw.resources.tables import summarize
from qrkt_hw.runs.config import Config

pytestmark = pytest.mark.acceptance
DEVICES = ["fake_torino", "fake_marrakesh", "fake_miami"]
SMALL = {"hidden": 4, "heads": 2, "qubits": 2, "mlp": 2, "layers": 1, "rk_blocks": 1, "encoder_blocks": 1}


def evaluated(name, qubits, layers):
    """What runs: every angle is linear, and a unary encoding is its angles."""
    return derive(build(name, qubits, layers)).template


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def by_hand(template, device, level):
    """Depth, gates, two-qubit gates and depth, duration and success of Qiskit's transpiled circuit."""
    circuit = QuantumCircuit(template.num_qubits, template.num_qubits)
    circuit.compose(template.circuit, inplace=True)
    whole = template.circuit.copy()
    if template.encoding != "angle" or (template.source is not None and template.source.encoding != "angle"):
        whole.h(range(whole.num_qubits))  # X is read on every qubit
    whole.measure_all()
    manager = generate_preset_pass_manager(optimization_level=level, backend=device, seed_transpiler=reporter.SEED)
    isa = manager.run(whole)
    success = 1.0
    for instruction in isa.data:
        if instruction.operation.name != "barrier":
            qubits = tuple(isa.find_bit(q).index for q in instruction.qubits)
            success *= 1 - (device.target[instruction.operation.name][qubits].error or 0.0)
    return {
        "depth": isa.depth(),
        "two_qubit_depth": isa.depth(lambda i: i.operation.name == "cz"),
        "two_qubit_gates": isa.count_ops().get("cz", 0),
        "gates": {k: v for k, v in isa.count_ops().items() if k != "barrier"},
        "duration": isa.estimate_duration(device.target),
        "success": success,
    }


NOW = {("fake_torino", 1), ("fake_marrakesh", 3)}  # the others nightly


@pytest.mark.parametrize(
    ("device", "level"),
    [
        pytest.param(*case, marks=() if case in NOW else pytest.mark.slow)
        for case in itertools.product(DEVICES, (0, 1, 2, 3))
    ],
)
def test_transpile_figures_are_those_of_the_preset_pass_manager(device, level, monkeypatch):
    for module in ("layout", "packing"):  # where replicas go is no figure of these
        monkeypatch.setattr(f"qrkt_hw.backends.device.{module}.place_replicas", lambda *_, **__: [])
    for name in names():
        template = evaluated(name, 4, 1)
        found = reporter.place_circuit(template, fake_device(device), level)
        expected = by_hand(template, fake_device(device), level)
        success = expected.pop("success")
        assert {key: getattr(found, key) for key in expected} == expected, name
        assert found.success == pytest.approx(success, rel=1e-9)
        assert all(found.success <= s <= 1 for s in found.output_success)


@pytest.fixture
def aer_counts(monkeypatch):
    """Experiments, shots and jobs that Aer reports; every circuit sampled by Aer itself."""
    from qiskit_aer import AerSimulator

    counted = {"circuits": 0, "executions": 0}
    original = AerSimulator.run

    def run(self, *args, **kwargs):
        job = original(self, *args, **kwargs)
        for experiment in job.result().results:
            counted["circuits"] += 1
            counted["executions"] += experiment.shots
        return job

    monkeypatch.setattr(AerSimulator, "run", run)
    monkeypatch.setattr(aer, "LARGEST_TABLE", 0)
    return counted


def model_and_report(ansatz, images, steps):
    options = Config(**SMALL, ansatz=ansatz, rk="rk2", batch_size=3, dropout=0.0)
    report = of_options("small", options, DataShape(1, 8, 10)).report(
        ["fake_torino"],
        [1],
        shots=5,
        images=images,
        training_steps=steps,
    )
    return options, {(c.task, c.way): c for c in report.costs}


@pytest.mark.parametrize("ansatz", ["qrkt", "ry_rz_ring", "reuploading", "orthogonal_brick"])
def test_executions_of_inference_are_those_in_aers_results(ansatz, aer_counts):
    options, costs = model_and_report(ansatz, images=7, steps=0)
    backend = resolve("aer_cpu", shots=5)
    with torch.no_grad():
        build_model(options, DataShape(1, 8, 10), backend).eval()(torch.randn(7, 1, 8, 8))
    predicted = costs["infer 7", "broadcast"]
    assert (predicted.circuits, predicted.executions) == (aer_counts["circuits"], aer_counts["executions"])
    assert predicted.rounds == backend.counters.rounds


@pytest.mark.parametrize("method", ["adjoint", "parameter_shift", "spsa"])
@pytest.mark.parametrize("ansatz", ["ry_rz_ring", "orthogonal_brick"])
def test_executions_of_a_training_step_are_those_in_aers_results(ansatz, method, aer_counts):
    options, costs = model_and_report(ansatz, images=1, steps=1)
    backend = resolve("aer_cpu", shots=5, gradient=method)
    torch.manual_seed(0)
    model = build_model(options, DataShape(1, 8, 10), backend).train()
    torch.nn.functional.cross_entropy(model(torch.randn(3, 1, 8, 8)), torch.tensor([0, 1, 2])).backward()
    predicted = costs[f"train 1 {method}", "broadcast"]
    assert (predicted.circuits, predicted.executions) == (aer_counts["circuits"], aer_counts["executions"])
    assert predicted.rounds == backend.counters.rounds


def test_estimator_column_is_what_estimator_qnn_does(aer_counts):
    from qiskit.primitives import BackendEstimatorV2
    from qiskit_aer import AerSimulator
    from qiskit_machine_learning.neural_networks import EstimatorQNN

    template, samples = build("ry_rz_ring", 3, 1), 4
    estimator = BackendEstimatorV2(backend=AerSimulator(), options={"default_precision": 1 / 8})
    network = EstimatorQNN(
        circuit=template.circuit,
        estimator=estimator,
        observables=list(template.observables),
        input_params=list(template.inputs),
        weight_params=list(template.weights),
        default_precision=1 / 8,
    )
    rng = np.random.default_rng(0)
    network.forward(rng.normal(size=(samples, 3)), rng.normal(size=template.num_weights))
    report = of_template("ry_rz_ring", 3, 1).report(["fake_torino"], [1], shots=64, images=samples, training_steps=0)
    (predicted,) = [c for c in report.costs if c.way == "estimator"]
    assert predicted.executions == aer_counts["executions"]


def test_time_formulas_give_the_published_examples():
    """260 samples x 1,024 shots of a circuit with 6 outputs: 561 s, 95 s and 8 s by the quick form."""
    assert usage(260 * 6 * 1024, 250e-6, 3e-6).seconds_quick == pytest.approx(561.1, abs=0.1)
    assert usage(260 * 1024, 250e-6, 3e-6).seconds_quick == pytest.approx(95.2, abs=0.1)
    assert usage(16 * 1024, 250e-6, 3e-6).seconds_quick == pytest.approx(7.7, abs=0.1)
    assert usage(1000, 4e-3, 5e-6).seconds == pytest.approx(2 + 1000 * 4.005e-3)
    assert usage(1000, 250e-6, 3e-6).seconds == pytest.approx(2 + 1000 * 350e-6)  # the larger form
    assert usage(25_000_000, 0, 0).jobs == 3


def test_packed_executions_follow_from_the_copies():
    subject = of_template("brickwork", 6, 1)
    report = subject.report(["fake_torino"], [3], shots=1024, images=260, training_steps=0)
    copies = report.devices[0].circuits[0].good_copies
    (packed,) = [c for c in report.costs if c.way == "packed"]
    assert copies > 1 and packed.circuits == math.ceil(260 / copies) and packed.executions == packed.circuits * 1024


@pytest.mark.parametrize("style", ["table", "json", "markdown"])
def test_command_line(style):
    arguments = ["resources", "--ansatz", "qrkt", "--qubits", "12", "--backend", "fake_torino", "--format", style]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    verdict = "11 of 12 outputs depend on one input each: an element-wise function"
    if style == "json":
        assert json.loads(result.output)["verdicts"][0]["sentence"].startswith(verdict)
    else:
        assert verdict in " ".join(result.output.split())
    if style == "table":
        assert max(map(len, result.output.splitlines())) <= 80


def test_second_call_builds_nothing(monkeypatch):
    arguments = ["resources", "--preset", "digits", "--backend", "fake_miami", "--format", "json"]
    first = CliRunner().invoke(group, arguments, catch_exceptions=False).output

    def refuse(*args, **kwargs):
        raise AssertionError("transpiled again")

    monkeypatch.setattr(reporter, "place_circuit", refuse)
    monkeypatch.setattr(reporter, "device_of", refuse)
    assert CliRunner().invoke(group, arguments, catch_exceptions=False).output == first


def test_train_and_infer_say_what_they_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    result = CliRunner().invoke(group, ["train", *small, "--epochs=1", "--limit=20", "--out=r"], catch_exceptions=False)
    assert "10 quantum layers of ry_rz_ring on 2 qubits" in result.stderr
    assert "per image 108 circuits in 7 sequential stages" in result.stderr
    result = CliRunner().invoke(group, ["infer", "r", "--limit=2", "--json", "--backend=aer_cpu", "--shots=4"])
    assert "per image 108 circuits in 7 sequential stages of 4 shots: 432 executions" in result.stderr
    record = json.loads(result.stdout)
    assert record["executions"] == 2 * 432


def test_summary_leaves_the_model_and_the_random_numbers_of_training_alone():
    model = build_model(Config(**SMALL, dropout=0.5), DataShape(1, 8, 10), resolve("aer_cpu", shots=5)).train()
    model.blocks[0].eval()
    modes, backends = [m.training for m in model.modules()], [layer.backend for layer in quantum_layers(model)]
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    summarize(model, DataShape(1, 8, 10), None)
    assert torch.rand(1) == before
    assert [m.training for m in model.modules()] == modes
    assert [layer.backend for layer in quantum_layers(model)] == backends and backends[0].counters.rounds == 0


def test_summary_names_what_the_model_reads():
    options = {**SMALL, "model": "text", "positions": "none"}
    images, texts = DataShape(1, 8, 10), DataShape(0, 0, 2, vocabulary=50, length=9)
    assert summarize(build_model(Config(**SMALL), images), images, None)[1].startswith("per image ")
    assert summarize(build_model(Config(**options), texts), texts, None)[1].startswith("per text ")


@pytest.mark.parametrize("sizes", [(3,), pytest.param((3, 4), marks=pytest.mark.slow)])
def test_predicted_error_ranks_circuits_by_their_true_noisy_error(sizes, monkeypatch):
    """Short form of benchmarks/predicted_error.py: every template on few qubits with one and two layers."""
    import importlib.util
    from pathlib import Path

    from scipy.stats import spearmanr

    path = Path(__file__).parents[2] / "benchmarks" / "predicted_error.py"
    spec = importlib.util.spec_from_file_location("predicted_error", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    templates = [evaluated(name, qubits, layers) for name in names() for qubits in sizes for layers in (1, 2)]
    with monkeypatch.context() as usual:
        usual.delenv("XDG_CACHE_HOME")  # the device's noise may be kept from another test
        truth = [benchmark.true_error(t, "fake_torino", 3, samples=10)[0] for t in templates]
    monkeypatch.setattr("qrkt_hw.backends.device.layout.solved", lambda *_, **__: None)  # no best packing is needed
    predicted = [reporter.place_circuit(t, fake_device("fake_torino"), 3).predicted_error for t in templates]
    assert spearmanr(predicted, truth).statistic > 0.8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ansatz", "qrkt", "--qubits", "6", "--backend", "fake_nowhere"], ["fake_nowhere", "qrkt-hw backends list"]),
        (["--ansatz", "nothing"], ["nothing", "qrkt"]),
        (["--qubits", "6"], ["--ansatz"]),
        (["--preset", "nothing"], ["nothing", "qrkt-hw presets list"]),
        (["--ansatz", "qrkt", "--plot", "x.jpg"], ["x.jpg", ".png"]),
        (["--ansatz", "qrkt", "--plot", "x.png"], ["--backend"]),
        (["--ansatz", "qrkt", "--qubits", "200", "--backend", "fake_torino"], ["200", "133", "fake_torino"]),
        (["qrkt:4:1", "qrkt:4:2"], ["--compare"]),
    ],
)
def test_wrong_use_is_one_sentence(arguments, words, capsys, tmp_path, monkeypatch):
    from qrkt_hw.commands import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["resources", *arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1
    assert all(word in message for word in words), message


def test_comparison_is_sorted_by_cost_and_fits_the_screen():
    arguments = [
        "resources",
        "--compare",
        "qrkt:4:1",
        "ry_rz_ring:4:3",
        "--backend",
        "fake_torino",
        "--backend",
        "fake_miami",
    ]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert max(map(len, result.output.splitlines())) <= 80
    rows = [line for line in result.output.splitlines() if " O3 " in line]
    prices = [float(line.split()[-1].replace(",", "")) for line in rows]
    assert len(rows) == 4 and prices == sorted(prices)


def test_table_of_the_docs_on_a_small_case():
    """The command that makes the table of docs/resources.md, with one preset instead of the thesis' ones."""
    arguments = ["resources", "--compare", "--preset", "dig*ts", "--format", "markdown"]
    arguments += [part for name in DEVICES for part in ("--backend", name)]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    rows = [line for line in result.output.splitlines() if line.startswith("| digits")]
    assert {row.split("|")[6].strip() for row in rows} == {"torino O3", "marrakesh O3", "miami O3"}


def test_schema_describes_the_json():
    schema = json.loads(CliRunner().invoke(group, ["resources", "--schema"]).output)
    arguments = ["resources", "--ansatz", "qrkt", "--backend", "fake_miami", "--format", "json"]
    report = json.loads(CliRunner().invoke(group, arguments, catch_exceptions=False).output)
    assert set(report) == set(schema["properties"])
    for key, name in {"costs": "Cost", "verdicts": "Simulability", "devices": "Device"}.items():
        assert set(report[key][0]) == set(schema["$defs"][name]["properties"])


@pytest.mark.parametrize("ansatz", ["activation_reuploading", "compound", "higher_order", "orthogonal_butterfly"])
def test_an_ansatz_of_any_encoding_has_a_report_on_a_device(ansatz):
    report = of_template(ansatz, 3, 1).report(["fake_torino"], [1], shots=64, images=1, training_steps=1)
    (circuit,) = report.logical.circuits
    assert circuit.inputs == 3 and report.costs and report.verdicts[0].sentence
