# %% [markdown]
# # A quantum layer in twenty lines
#
# A circuit of Qiskit becomes a torch module in one call. This notebook puts it beside `EstimatorQNN` with
# `TorchConnector`, the usual way: same values, same gradients, another speed. Then it trains.

# %%
import time

import torch
from matplotlib import pyplot as plt
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.neural_networks import EstimatorQNN
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from qrkt_hw import QuantumLayer

# %% [markdown]
# The circuit has four inputs `x` and eight trained angles `w`. Its outputs are the expectation values of Z on each
# qubit.

# %%
x, w = ParameterVector("x", 4), ParameterVector("w", 8)
circuit = QuantumCircuit(4)
for qubit in range(4):
    circuit.ry(x[qubit], qubit)
for layer in range(2):
    for qubit in range(4):
        circuit.ry(w[4 * layer + qubit], qubit)
    for qubit in range(3):
        circuit.cx(qubit, qubit + 1)
observables = ["IIIZ", "IIZI", "IZII", "ZIII"]
circuit.draw("mpl", fold=-1, scale=0.7).set_label("the circuit: RY of the data, then two layers of RY and CX")

# %% [markdown]
# Both layers are made of this circuit, and start at the same angles.

# %%
quantum = QuantumLayer.from_circuit(circuit, inputs=x, weights=w, observables=observables)
network = EstimatorQNN(
    circuit=circuit,
    observables=[SparsePauliOp(name) for name in observables],
    input_params=list(x),
    weight_params=list(w),
    input_gradients=True,
    estimator=StatevectorEstimator(),
    default_precision=0.0,
)
stock = TorchConnector(network, initial_weights=quantum.weight.detach().flatten())

# %% [markdown]
# They return the same values and the same gradients.

# %%
features = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
seconds = {}
for name, layer in {"QuantumLayer": quantum, "EstimatorQNN": stock}.items():
    times = []
    for _ in range(100 if layer is quantum else 1):
        layer.zero_grad()
        started = time.perf_counter()
        layer(features).square().sum().backward()
        times.append(time.perf_counter() - started)
    seconds[name] = min(times)
ours, theirs = quantum(features), stock(features)
gap = (quantum.weight.grad.flatten() - stock.weight.grad.flatten()).abs().max()
print(f"largest difference: values {(ours - theirs).abs().max():.0e}, gradients {gap:.0e}")
for name, taken in seconds.items():
    print(f"{name:13} {1000 * taken:10.2f} ms for 4 samples, forward and backward")
print(f"ratio {seconds['EstimatorQNN'] / seconds['QuantumLayer']:,.0f}")

# %%
figure, axes = plt.subplots(figsize=(6, 1.8), num="milliseconds of a training step, on a logarithmic axis")
axes.scatter([1000 * taken for taken in seconds.values()], list(seconds), s=120, color=["#2b6cb0", "#dd6b20"])
axes.set(xscale="log", xlabel="a step of 4 samples (ms)", ylim=(-0.5, 1.5))
axes.grid(axis="x", alpha=0.3)
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Is it a layer like any other? It stands between two linear layers here, and tells threes from eights.

# %%
images, digits = load_digits(return_X_y=True)
chosen = (digits == 3) | (digits == 8)
inputs = torch.tensor(PCA(4, random_state=0).fit_transform(images[chosen] / 16), dtype=torch.float32)
labels = torch.tensor(digits[chosen] == 8, dtype=torch.float32)
train, test = slice(0, 240), slice(240, None)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), quantum, torch.nn.Linear(4, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
losses, started = [], time.perf_counter()
for _ in range(150):
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs[train])[:, 0], labels[train])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
right = ((model(inputs[test])[:, 0] > 0) == labels[test].bool()).float().mean()
print(f"150 steps of 240 samples in {time.perf_counter() - started:.2f} s; test accuracy {right:.3f}")
print(f"the same with EstimatorQNN, by the time above: {150 * 240 / 4 * seconds['EstimatorQNN'] / 60:,.0f} minutes")

# %%
figure, axes = plt.subplots(figsize=(6, 2.6), num="training loss over steps")
axes.semilogy(losses, color="#2b6cb0")
axes.set(xlabel="step", ylabel="training loss")
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# More: [your own program](../library.md), and the measured comparison with other libraries on [speed](../speed.md).
