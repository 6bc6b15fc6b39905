"""One layer step in TensorCircuit-NG on jitted JAX, state computed once. Prints JSON. Run by ``layer_step.py``."""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorcircuit as tc

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import SIZES, median_ms

tc.set_backend("jax")
tc.set_dtype("complex64")


def probabilities(x, w, template):
    n = len(x)
    circuit = tc.Circuit(n)
    for j in range(n):
        circuit.ry(j, theta=x[j])
    if template == "qrkt":
        for row in w.reshape(-1, n):
            for j in range(n):
                circuit.rx(j, theta=row[j])
                circuit.rz(j, theta=row[j])
            for j in range(n):
                circuit.h(j)
                circuit.cx(j, (j + 1) % n)
    else:
        rows = w.reshape(-1, 2, n)
        for k, (ry, rz) in enumerate(rows):
            for j in range(n):
                circuit.ry(j, theta=ry[j])
                circuit.rz(j, theta=rz[j])
            if k + 1 < len(rows):
                for j in range(n):
                    circuit.cx(j, (j + 1) % n)
    return jnp.abs(circuit.state()) ** 2


def main():
    template, names = sys.argv[1], sys.argv[2].split(",")
    found = {}
    for name in names:
        n, layers, batch = SIZES[name]
        count = layers * n if template == "qrkt" else 2 * (layers + 1) * n
        bits = (np.arange(2**n)[:, None] >> (n - 1 - np.arange(n))) & 1
        signs = jnp.asarray(1.0 - 2.0 * bits, dtype=jnp.float32)

        def loss(x, w, signs=signs):
            values = jax.vmap(lambda row: probabilities(row, w, template))(x) @ signs
            return (values**2).sum()

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        rng = np.random.default_rng(0)

        def make(rng=rng, batch=batch, n=n, count=count):
            pair = (rng.normal(size=(batch, n)), rng.normal(size=count))
            return tuple(jax.block_until_ready(jnp.asarray(a, dtype=jnp.float32)) for a in pair)

        started = time.perf_counter()
        found[name] = median_ms(make, lambda a, step=step: jax.block_until_ready(step(*a)))
        found[name]["total_s"] = time.perf_counter() - started
    print(json.dumps(found))


main()
