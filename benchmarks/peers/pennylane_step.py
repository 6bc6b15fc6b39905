"""One layer step in PennyLane's default.qubit on jitted JAX. Prints JSON. Run by ``layer_step.py``."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import SIZES, median_ms


def node(n, template):
    @qml.qnode(qml.device("default.qubit", wires=n), interface="jax", diff_method="backprop")
    def circuit(x, w):
        for j in range(n):
            qml.RY(x[:, j], wires=j)
        if template == "qrkt":
            for row in w.reshape(-1, n):
                for j in range(n):
                    qml.RX(row[j], wires=j)
                    qml.RZ(row[j], wires=j)
                for j in range(n):
                    qml.Hadamard(j)
                    qml.CNOT([j, (j + 1) % n])
        else:
            rows = w.reshape(-1, 2, n)
            for k, (ry, rz) in enumerate(rows):
                for j in range(n):
                    qml.RY(ry[j], wires=j)
                    qml.RZ(rz[j], wires=j)
                if k + 1 < len(rows):
                    for j in range(n):
                        qml.CNOT([j, (j + 1) % n])
        return [qml.expval(qml.PauliZ(j)) for j in range(n)]

    return circuit


def main():
    template, names = sys.argv[1], sys.argv[2].split(",")
    found = {}
    for name in names:
        n, layers, batch = SIZES[name]
        count = layers * n if template == "qrkt" else 2 * (layers + 1) * n
        circuit = node(n, template)
        step = jax.jit(jax.value_and_grad(lambda x, w, c=circuit: (jnp.stack(c(x, w)) ** 2).sum(), argnums=(0, 1)))
        rng = np.random.default_rng(0)

        def make(rng=rng, batch=batch, n=n, count=count):
            pair = (rng.normal(size=(batch, n)), rng.normal(size=count))
            return tuple(jax.block_until_ready(jnp.asarray(a, dtype=jnp.float32)) for a in pair)

        found[name] = median_ms(make, lambda a, step=step: jax.block_until_ready(step(*a)))
    print(json.dumps(found))


main()
