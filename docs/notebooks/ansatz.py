# %% [markdown]
# # Your own ansatz: from a file to an analysis and a training
#
# A circuit of your own is a function in a file. Every command takes it. This notebook asks what a circuit is worth
# before it is trained, finds a fault in it, and fixes it.

# %%
from pathlib import Path

Path("mine.py").write_text('''
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qrkt_hw.ansatz import CircuitTemplate


def circuit(num_qubits, layers, mended):
    """RY of the data; layers of trained rotations, and a ladder of CX."""
    made = QuantumCircuit(num_qubits)
    x, theta = ParameterVector("x", num_qubits), ParameterVector("theta", 2 * num_qubits * layers)
    angles = iter(theta)
    for qubit in range(num_qubits):
        made.ry(x[qubit], qubit)
    for _ in range(layers):
        for qubit in range(num_qubits):
            first, second = (made.rz, made.ry) if mended else (made.ry, made.rz)
            first(next(angles), qubit)
            second(next(angles), qubit)
        for qubit in range(num_qubits - 1):
            made.cx(qubit, qubit + 1)
    return CircuitTemplate("mended" if mended else "ladder", made, x, theta)


def ladder(num_qubits, layers):
    return circuit(num_qubits, layers, mended=False)


def mended(num_qubits, layers):
    return circuit(num_qubits, layers, mended=True)
''')

# %% [markdown]
# ## The analysis
#
# `circuits analyze` measures how much of the state space the circuit reaches, how much it entangles, and whether its
# gradients vanish. Dead weights move no output; a signal near 0 means that the circuit passes little of its inputs.

# %%
# !qrkt-hw circuits analyze mine.py:ladder --qubits 4 --layers 1,2 --pairs 2000 --samples 100

# %% [markdown]
# There are dead weights: Z is measured after the ladder, and an RZ that is followed by nothing but CX and readout
# changes no probability. With the two rotations in the other order every weight counts.

# %%
# !qrkt-hw circuits analyze mine.py:mended --qubits 4 --layers 1,2 --pairs 2000 --samples 100

# %% [markdown]
# Does the circuit need a quantum computer? `resources` answers that, too.

# %%
# !qrkt-hw resources --ansatz mine.py:mended --qubits 4 --layers 1

# %%
from matplotlib import pyplot as plt

from qrkt_hw import QuantumLayer

layer = QuantumLayer(4, ansatz="mine.py:mended", qubits=4)
layer.circuit(0).draw("mpl", scale=0.7, fold=-1).set_label("the mended circuit with its initial angles")

# %% [markdown]
# ## The training
#
# Both circuits in the smallest preset, three seeds each: the difference is that of the circuits alone, and the seeds
# say how far to trust it.

# %%
import qrkt_hw

names = ("ladder", "mended")
how = {"epochs": 6, "figures": False}
runs = {
    name: [qrkt_hw.train("digits-hardware", ansatz=f"mine.py:{name}", seed=seed, **how) for seed in range(3)]
    for name in names
}
for name in names:
    found = ", ".join(f"{run.results['test.accuracy']:.3f}" for run in runs[name])
    print(f"{name:7} test accuracy of three seeds: {found}")

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), num="validation loss of both circuits, a line for each seed")
for name, colour, style in zip(names, ("#718096", "#2b6cb0"), ("--", "-")):
    for seed, run in enumerate(runs[name]):
        epochs, losses = zip(*((row["epoch"], row["val_loss"]) for row in run.history))
        axes.semilogy(epochs, losses, style, color=colour, label=None if seed else name)
axes.set(xlabel="epoch", ylabel="validation loss")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)

# %% [markdown]
# Where seeds of one circuit differ more than the two circuits do, these trainings show no gain in accuracy. The mended
# circuit still wastes no gate on a device.
#
# More: [circuits](../circuits.md), and [`qrkt-hw bench`](../laboratory.md#benchmark-a-circuit), which sets a circuit
# beside others and classical layers on several tasks.
