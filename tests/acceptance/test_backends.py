"""One model, any backend: the same values, the right gradients, honest noise."""

import json

import numpy as np
import pytest
import torch
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.neural_networks import EstimatorQNN

from qrkt_hw import QuantumLayer, circuits
from qrkt_hw.ansatz import by_angles
from qrkt_hw.backends import BackendWarning, Call, resolve
from qrkt_hw.commands import main
from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model, set_backend
from qrkt_hw.runs.config import Config

pytestmark = pytest.mark.acceptance
GPU = torch.cuda.is_available()
NO_GPU = "torch sees no CUDA GPU here"


def run(*arguments):
    """The command line; its exit status."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return stopped.value.code


def logits_differ(images):
    torch.manual_seed(0)
    model = build_model(Config(dtype="complex128"), DataShape(1, 8, 10)).eval()
    x = torch.randn(images, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        exact = model(x)
        backend = resolve("aer_cpu")
        set_backend(model, backend)
        found = model(x)
    assert backend.counters.circuits > 0
    return (found - exact).abs().max().item()


def test_default_model_has_the_same_logits_on_aer():
    assert logits_differ(images=4) < 1e-6


@pytest.mark.slow
def test_default_model_has_the_same_logits_on_aer_for_a_whole_test_set():
    assert logits_differ(images=360) < 1e-6


@pytest.mark.parametrize("name", ["aer_cpu", "fake_torino"])
def test_error_falls_as_one_over_root_shots(name):
    template = circuits.build("brickwork", 3, 1)
    call = Call(template, np.random.default_rng(0).normal(size=(400, len(template.parameters))))
    truth = resolve(name, shots=0).run([call])[0]
    counts = [256, 1024, 4096, 16384]
    where = {"pack": False} if name.startswith("fake_") else {}  # copies have errors of their own
    errors = [np.abs(resolve(name, shots=n, seed=n, device=where).run([call])[0] - truth).mean() for n in counts]
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.1, (slope, errors)


@pytest.mark.parametrize("ansatz", circuits.names())
def test_exact_aer_and_the_stock_estimator_qnn_agree(ansatz):
    from qiskit_aer.primitives import EstimatorV2

    torch.manual_seed(1)
    template = by_angles(circuits.build(ansatz, 3, 1))  # the stock network knows angles only
    options = {"features": template.num_inputs, "ansatz": template, "dtype": torch.complex128}
    exact = QuantumLayer(**options)
    aer = QuantumLayer(**options, backend=resolve("aer_cpu"), initial_weights=exact.weight)
    stock = TorchConnector(
        EstimatorQNN(
            circuit=template.circuit.decompose("xx_plus_yy", reps=3),  # Aer's primitives know no such gate
            estimator=EstimatorV2(options={"default_precision": 0.0}),
            observables=list(template.observables),
            input_params=list(template.inputs),
            weight_params=list(template.weights),
            input_gradients=True,
            default_precision=0.0,
        ),
        initial_weights=exact.weight.detach().numpy(),
    )
    x = torch.randn(2, template.num_inputs, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, template.num_outputs, dtype=torch.float64)
    layers = (exact, aer, stock)
    values = [layer(x) for layer in layers]
    gradients = [torch.autograd.grad(v, (x, layer.weight), cotangent) for v, layer in zip(values, layers, strict=True)]
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        torch.testing.assert_close(value.double(), values[0], atol=2e-6, rtol=0)  # the stock connector is float32
        for found, wanted in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(found.double(), wanted, atol=5e-6, rtol=0)
    torch.testing.assert_close(values[1], values[0], atol=1e-10, rtol=0)


def test_weights_do_not_depend_on_the_backend(tmp_path, capsys):
    tiny = ["--limit", 32, "--epochs", 1, "--hidden", 4, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1, "--rk", "rk1"]
    out = tmp_path / "run"
    assert run("train", "--out", out, "--backend", "fake_torino", *tiny) == 0
    held = (out / "model.safetensors").read_bytes()
    for backend in ("exact", "aer_cpu", "fake_fez"):
        assert run("infer", out, "--backend", backend, "--limit", 8, "--json") == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert record["backend"] == backend and record["count"] == 8
    assert (out / "model.safetensors").read_bytes() == held
    assert json.loads((out / "backend.json").read_text())["calibrated"].startswith("2025-02-26")


@pytest.mark.parametrize("limit", [90, pytest.param(360, marks=pytest.mark.slow)])
def test_inference_of_digits_on_fake_torino_with_shots(limit, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", "--out", out, "--limit", 64, "--epochs", 1) == 0
    capsys.readouterr()
    there = ["infer", out, "--backend", "fake_torino", "--shots", 1024, "--limit", limit, "--json"]
    assert run(*there, "--dry-run") == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert run(*there) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["count"] == limit
    # a ring routed on heavy-hex: 18 good copies side by side
    assert record["executions"] == planned["executions"] < 1024 * record["circuits"] / 17
    assert record["rounds"] > 0 and record["backend_details"]["calibrated"].startswith("2025-02-26")
    low, high = record["interval"]
    assert low <= record["accuracy"] <= high
    assert record["wall_seconds"] < 360


def test_inference_prints_the_report(tmp_path, capsys):
    tiny = ["--limit", 32, "--epochs", 1, "--hidden", 4, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1, "--rk", "rk2"]
    out = tmp_path / "run"
    assert run("train", "--out", out, *tiny) == 0
    capsys.readouterr()
    assert run("infer", out, "--backend", "fake_miami", "--shots", 128, "--limit", 10) == 0
    seen = capsys.readouterr()
    for part in ("accuracy there", "exact, same images", "95 % interval", "128 shots", "executions",
                 "circuit batches     4\n", "wall time", "fake_miami", "2026-04-17"):  # fmt: skip
        assert part in seen.out
    assert "circuit batch 1 of 4: waiting for" in seen.err


def test_a_gpu_that_is_not_there_falls_back_visibly_and_on_record(tmp_path, capsys, monkeypatch):
    from qiskit_aer import AerSimulator

    monkeypatch.setattr(AerSimulator, "available_devices", lambda self: ("CPU",))  # also where there is a card
    tiny = ["--limit", 8, "--epochs", 1, "--hidden", 2, "--heads", 1, "--qubits", 2, "--mlp", 2, "--rk-blocks", 1,
            "--rk", "rk1", "--patch", 8]  # fmt: skip
    out = tmp_path / "run"
    assert run("train", "--out", out, "--backend", "aer_gpu", *tiny) == 0
    assert capsys.readouterr().err.count("WARNING") == 2
    for file, key in (("backend.json", None), ("results.json", "backend_details")):
        held = json.loads((out / file).read_text())
        assert (held[key] if key else held)["fell_back_from"] == "aer_gpu"
    assert run("infer", out, "--backend", "aer_gpu", "--strict-backend") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "aer_gpu" in error and "--strict-backend" in error
    with pytest.warns(BackendWarning, match="aer_gpu"):
        resolve("aer_gpu")


def test_a_retired_device_says_what_works_instead(tmp_path, capsys):
    out = tmp_path / "run"
    tiny = ["--limit", 8, "--epochs", 1, "--rk", "rk1", "--rk-blocks", 1]
    assert run("train", "--out", out, *tiny) == 0
    capsys.readouterr()
    assert run("infer", out, "--backend", "ibm_torino") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "retired" in error and "2026-04-01" in error and "fake_torino" in error
    assert run("train", "--backend", "ibm_torino", "--out", tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()


def test_list_check_and_doctor(capsys):
    assert run("backends", "list") == 0
    seen = capsys.readouterr().out
    assert all(name in seen for name in ("exact", "aer_cpu", "fake_torino", "ibm_least_busy", "133"))
    for name in ("exact", "aer_cpu", "fake_torino"):
        assert run("backends", "check", name) == 0
        assert "<Z0>" in capsys.readouterr().out
    run("doctor")
    seen = capsys.readouterr().out
    missing = [part for part in ("aer wheel", "torch", "IBM account", "versions") if part not in seen]
    assert not missing, seen


@pytest.mark.skipif(not GPU, reason=NO_GPU)
def test_exact_on_cuda_agrees_with_the_cpu(tmp_path):
    template = circuits.build("ry_rz_ring", 4, 2)
    call = Call(template, np.random.default_rng(0).normal(size=(64, len(template.parameters))))
    file = tmp_path / "b.yaml"
    file.write_text("gpu: {provider: exact, device: cuda}\ncpu: {provider: exact, device: cpu}")
    found, wanted = (resolve(name, file=file).run([call])[0] for name in ("gpu", "cpu"))
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_aer_on_a_gpu_agrees_with_the_cpu():
    from qiskit_aer import AerSimulator

    if "GPU" not in AerSimulator().available_devices():
        pytest.skip("Aer sees no GPU here: the CPU wheel is installed, or there is none")
    template = circuits.build("ry_rz_ring", 4, 2)
    call = Call(template, np.random.default_rng(0).normal(size=(64, len(template.parameters))))
    np.testing.assert_allclose(
        resolve("aer_gpu", strict=True).run([call])[0], resolve("aer_cpu").run([call])[0], atol=1e-6
    )
