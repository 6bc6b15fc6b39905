"""Noise at the outputs of circuits: that of a device's values, and what training does with it."""

import numpy as np
import pytest
import torch

from qrkt_hw import backends
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.data import load_data
from qrkt_hw.data.ranks import Share, set_share
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.models.noise import (
    OutputNoise,
    Response,
    add_hooks,
    allocated,
    check_strings,
    device_damping,
    inject,
    sensitivities,
    training_noise,
)
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.resources.logical import stages_of
from qrkt_hw.runs.config import Config
from qrkt_hw.training.fit import fresh_model

MANY = 4000  # samples of a variance, whose relative error is then 2 per cent


def layer(ansatz: str = "brickwork", features: int = 3) -> QuantumLayer:
    torch.manual_seed(1)
    return QuantumLayer(features, ansatz=ansatz).double()


def moments(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = values.detach().numpy()
    return values.mean(0), values.var(0)


@pytest.mark.parametrize("ansatz", ["brickwork", "orthogonal_brick"])
def test_shot_noise_has_the_moments_of_sampled_values(ansatz):
    quantum, shots = layer(ansatz), 32
    x = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64).expand(MANY, 3)
    hook = training_noise(shots, 0.0, None)(quantum)
    ours = moments(hook(quantum, (x,), quantum(x)))
    quantum.backend = FakeBackend("sampled", "fake_lima", shots=shots, seed=3, noise="none", pack=False)
    theirs = moments(quantum(x))
    np.testing.assert_allclose(ours[0], theirs[0], atol=5 * (theirs[1].max() / MANY) ** 0.5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0.15, atol=1e-4)


def test_readout_errors_damp_a_string_by_each_of_its_qubits():
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import NoiseModel, ReadoutError

    angles, circuit = ParameterVector("x", 2), QuantumCircuit(2)
    for qubit in range(2):
        circuit.rx(angles[qubit], qubit)
    circuit.cx(0, 1)
    quantum = QuantumLayer.from_circuit(circuit, inputs=angles, observables=["IZ", "ZZ"])
    x, p, noise = torch.tensor([[0.4, 0.9]]).expand(MANY // 4, 2), 0.08, NoiseModel()
    noise.add_all_qubit_readout_error(ReadoutError([[1 - p, p], [p, 1 - p]]))
    ours = moments(training_noise(64, p, None)(quantum)(quantum, (x,), quantum(x)))
    quantum.backend = backends.of(AerSimulator(noise_model=noise, seed_simulator=5), shots=64)
    theirs = moments(quantum(x))
    np.testing.assert_allclose(ours[0], theirs[0], atol=0.02)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0.25)


def test_the_damping_of_a_device_is_that_of_its_noise():
    quantum = layer("brickwork", 4)
    x = torch.randn(64, 4, dtype=torch.float64)
    exact = quantum(x).detach()
    quantum.backend = FakeBackend("noisy", "fake_torino", shots=4096, seed=2)
    noisy = quantum(x).detach()
    slope = ((exact * noisy).sum(0) / exact.square().sum(0)).numpy()
    np.testing.assert_allclose(device_damping(quantum.template, "fake_torino"), slope, atol=0.05)


def test_gradients_go_through_the_noise():
    quantum = layer()
    hook = OutputNoise([0.9, 0.8, 0.7], shots=8)

    def noisy(x):
        torch.manual_seed(7)
        return hook(quantum, (x,), quantum(x))

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(noisy, x) and torch.autograd.gradgradcheck(noisy, x)


@pytest.mark.parametrize("ansatz", ["rx_ring", "orthogonal_brick"])
def test_gradients_are_finite_where_nothing_varies(ansatz):
    quantum = layer(ansatz)
    with torch.no_grad():
        quantum.weight.zero_()
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    values = training_noise(16, 0.0, None)(quantum)(quantum, (x,), quantum(x))
    values.sum().backward()
    assert bool(x.grad.isfinite().all()) and values.std() < 0.01


def test_each_rank_has_the_noise_of_its_samples():
    quantum, x = layer(), torch.randn(6, 3, dtype=torch.float64)
    hook = training_noise(16, 0.0, None)(quantum)

    def noisy(start, stop):
        torch.manual_seed(4)
        return hook(quantum, (x[start:stop],), quantum(x[start:stop]))

    whole = noisy(0, 6)
    try:
        set_share(Share(2, 5, 6, 0.5))
        assert torch.equal(noisy(2, 5), whole[2:5])
    finally:
        set_share(None)


def test_noise_is_of_training_alone_and_can_be_removed():
    quantum, x = layer(), torch.randn(2, 3, dtype=torch.float64)
    exact = quantum(x)
    remove = add_hooks(quantum, training_noise(16, 0.1, None))
    assert not torch.equal(quantum(x), exact) and torch.equal(quantum.eval()(x), exact)
    remove()
    assert torch.equal(quantum.train()(x), exact)


@pytest.mark.parametrize(
    ("keys", "backend", "words"),
    [
        ({"shot_noise": 8}, {"name": "fake_lima", "shots": 9}, "shot_noise: circuits on 'fake_lima'"),
        ({"readout_error": 0.1}, {"name": "fake_lima"}, "readout_error: values on 'fake_lima' are damped already"),
        ({"noise_device": "aer_cpu"}, {}, "noise_device: aer_cpu is a simulator"),
        ({"noise_device": "fake_nowhere"}, {}, "noise_device: no fake backend"),
    ],
)
def test_noise_that_makes_no_sense_is_refused(keys, backend, words):
    options = Config(hidden=8, mlp=4, rk_blocks=1, rk="rk1", heads=2, backend=backend, **keys)
    with pytest.raises(UserError, match=words):
        fresh_model(options, load_data(options.data), backends.make(options.backend))


def test_sums_of_strings_are_refused():
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector

    angles, circuit = ParameterVector("x", 1), QuantumCircuit(2)
    circuit.rx(angles[0], 0)
    from qiskit.quantum_info import SparsePauliOp

    quantum = QuantumLayer.from_circuit(circuit, inputs=angles, observables=SparsePauliOp(["ZI", "IZ"]))
    for key, value in {"shot_noise": 9, "readout_error": 0.1, "noise_device": "fake_lima"}.items():
        with pytest.raises(UserError, match=f"^{key}: ansatz .* measures sums of Pauli strings"):
            inject(quantum, Config(**{key: value}).training, quantum.backend)
    with pytest.raises(UserError, match=r"^fine_tune: ansatz .* measures sums of Pauli strings"):
        check_strings(quantum, "--fine-tune")


def test_sensitivity_is_the_variance_of_the_margin():
    options = Config(hidden=8, mlp=4, rk_blocks=1, rk="rk2", heads=2, dtype="complex128")
    data = load_data(options.data)
    torch.manual_seed(3)
    model = build_model(options, data.shape).eval()
    stages = [[call.layer for call in stage] for stage in stages_of(model, data.shape)]
    inputs = data.splits["validation"].tensors[0][:2].double()
    with torch.no_grad():
        best = model(inputs).topk(2).indices
        many, shots = inputs.repeat_interleave(500, 0), 10**6  # so many that the first order is all
        for stage, expected in enumerate(sensitivities(model, inputs, stages)):

            def only(layer, stage=stage):
                hook, turns = OutputNoise(shots=shots, always=True), iter(range(9))
                places = [k for k, names in enumerate(stages) if layer.network.tag in names]
                return lambda *given: hook(*given) if places[next(turns)] == stage else given[-1]

            remove = add_hooks(model, only)
            logits = model(many).unflatten(0, (2, 500))
            remove()
            margins = logits.gather(-1, best[:, None].expand(2, 500, 2)) @ torch.tensor([1.0, -1.0]).double()
            assert float(margins.var(1).mean() * shots) == pytest.approx(expected, rel=0.2)
    assert len(quantum_layers(model)) == 5 and len(stages) == 4


def test_shots_of_stages_are_the_best_in_the_same_time():
    rng = np.random.default_rng(0)
    noise, seconds = rng.uniform(0.1, 4, 5), rng.uniform(0.5, 2, 5)
    found = np.array(allocated(noise, seconds, 4000), dtype=float)
    assert 0 <= 4000 * seconds.sum() - found @ seconds < seconds.sum()
    for _ in range(50):
        step = rng.normal(size=5)
        step -= seconds * (step @ seconds) / (seconds @ seconds)  # of the same time
        assert (noise / (found + 40 * step)).sum() >= (noise / found).sum()


def test_no_stage_is_left_without_shots():
    assert allocated([0.0, 1.0, 1e-9], [1.0, 1.0, 1.0], 80) == [10, 220, 10]
    assert allocated([0.0, 0.0], [1.0, 2.0], 3) == [1, 1]


@pytest.mark.parametrize("ansatz", ["brickwork", "orthogonal_brick"])
def test_the_response_of_a_device_is_found_from_its_values(ansatz):
    quantum, damping, offset = layer(ansatz, 4), np.array([0.8, 0.85, 0.9, 0.75]), np.array([0.03, -0.02, 0.0, 0.05])
    x = torch.randn(3000, 4, dtype=torch.float64)
    if quantum.network.unary:
        x /= x.norm(dim=-1, keepdim=True)  # so that its values are those of the circuits
    exact = quantum(x).detach()
    found = OutputNoise(damping, 100, offset)(quantum, (x,), exact)
    response = Response.of(quantum, exact.numpy(), found.numpy())
    assert (np.abs(response.damping - damping) < 4 * 0.1 / 3000**0.5 / exact.std(0).numpy()).all()
    np.testing.assert_allclose(response.offset, offset, atol=0.01)
    assert response.shots == pytest.approx(100, rel=0.1)
    few = Response.of(quantum, exact[:4].numpy(), found[:4].numpy())  # too few: the outputs are like their layer
    assert np.ptp(few.damping) < 0.2


def test_exact_values_are_those_of_many_shots():
    quantum = layer()
    exact = quantum(torch.randn(50, 3, dtype=torch.float64)).detach().numpy()
    response = Response.of(quantum, exact, 0.5 * exact)
    np.testing.assert_allclose(response.damping, 0.5)
    assert response.shots > 1e8
