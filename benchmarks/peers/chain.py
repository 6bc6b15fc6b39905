"""A step of the RY-RZ-CX chain of ``benchmarks/chain.py`` in one peer, set up as its authors would.

python chain.py PEER SECONDS < FILES

Each line of standard input names a file (.npz) that holds x and w, and gets the values and both gradients of
``sum(values**2)``. Prints a line of JSON for each: milliseconds of the fastest step and of the first, by the clock and
of CPU time, in repeats of at most SECONDS.
"""

import json
import sys
import time

import numpy as np


def gates(n, w):
    """(name, qubits, index of a weight) in order of time; -1 - j stands for input j."""
    found = [("ry", (j,), -1 - j) for j in range(n)]
    for layer in range(len(w) // (2 * n)):
        for j in range(n):
            found += [("ry", (j,), 2 * (layer * n + j)), ("rz", (j,), 2 * (layer * n + j) + 1)]
        found += [("cx", (j, j + 1), None) for j in range(n - 1)]
    return found


def qulacs(x, w):
    """A parametric circuit, differentiated by its own backpropagation, a sample at a time."""
    from qulacs import Observable, ParametricQuantumCircuit, QuantumState

    n, (batch, _) = x.shape[1], x.shape
    circuit, order, operators = ParametricQuantumCircuit(n), [], []
    for name, qubits, index in gates(n, w):
        if name == "cx":
            circuit.add_CNOT_gate(*qubits)
        else:
            getattr(circuit, f"add_parametric_{name.upper()}_gate")(*qubits, 0.0)
            order.append(index)
    order = np.array(order)
    for j in range(n):
        operators.append(Observable(n))
        operators[-1].add_operator(1.0, f"Z {j}")

    def step():
        values, grad_x, grad_w = np.zeros((batch, n)), np.zeros_like(x), np.zeros_like(w)
        state = QuantumState(n)
        for row in range(batch):
            for place, index in enumerate(order):  # Qulacs rotates the other way round
                circuit.set_parameter(place, -(w[index] if index >= 0 else x[row, -1 - index]))
            state.set_zero_state()
            circuit.update_quantum_state(state)
            values[row] = [o.get_expectation_value(state) for o in operators]
            loss = Observable(n)  # the vjp in one pass: the observables weighted by their cotangents
            for j in range(n):
                loss.add_operator(2 * values[row, j], f"Z {j}")
            gradient = -np.array(circuit.backprop(loss))
            np.add.at(grad_w, order[order >= 0], gradient[order >= 0])
            np.add.at(grad_x[row], -1 - order[order < 0], gradient[order < 0])
        return values, grad_x, grad_w

    return step


def pennylane_circuit(device, method, n):
    import pennylane as qml

    @qml.qnode(device, interface="jax" if method == "backprop" else "autograd", diff_method=method)
    def circuit(x, w):
        for name, qubits, index in gates(n, w):
            if name == "cx":
                qml.CNOT(wires=qubits)
            else:
                angle = w[index] if index >= 0 else x[..., -1 - index]
                {"ry": qml.RY, "rz": qml.RZ}[name](angle, wires=qubits)
        return [qml.expval(qml.PauliZ(j)) for j in range(n)]

    return circuit


def lightning(x, w):
    """lightning.qubit by the adjoint method; the batch is broadcast, observables are batched over threads."""
    import pennylane as qml
    from pennylane import numpy as pnp

    n = x.shape[1]
    device = qml.device("lightning.qubit", wires=n, batch_obs=True, c_dtype=np.complex64)
    circuit = pennylane_circuit(device, "adjoint", n)
    found = {}

    def loss(x, w):
        values = pnp.stack(circuit(x, w))
        found["values"] = values
        return pnp.sum(values**2)

    gradient = qml.grad(loss, argnums=[0, 1])

    def step():
        grad_x, grad_w = gradient(pnp.array(x, requires_grad=True), pnp.array(w, requires_grad=True))
        return np.array(getattr(found["values"], "_value", found["values"]), dtype=float).T, grad_x, grad_w

    return step


def on_jax(values_of, x, w):
    import jax
    import jax.numpy as jnp

    x, w = jnp.asarray(x, dtype=jnp.float32), jnp.asarray(w, dtype=jnp.float32)

    def loss(x, w):
        values = values_of(x, w)
        return (values**2).sum(), values

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    def step():
        (_, values), (grad_x, grad_w) = jax.block_until_ready(gradient(x, w))
        return np.asarray(values), np.asarray(grad_x), np.asarray(grad_w)

    return step


def pennylane(x, w):
    """default.qubit, vectorised and jitted by JAX, differentiated by backpropagation."""
    import jax
    import jax.numpy as jnp
    import pennylane as qml

    n = x.shape[1]
    circuit = pennylane_circuit(qml.device("default.qubit", wires=n), "backprop", n)
    return on_jax(lambda x, w: jax.vmap(lambda row: jnp.stack(circuit(row, w)))(x), x, w)


def tensorcircuit(x, w):
    """The state once, vectorised and jitted by JAX; the values are a product with the signs of Z."""
    import jax
    import jax.numpy as jnp
    import tensorcircuit as tc

    tc.set_backend("jax")
    tc.set_dtype("complex64")
    n = x.shape[1]

    def values(row, w):
        circuit = tc.Circuit(n)
        for name, qubits, index in gates(n, w):
            if name == "cx":
                circuit.cx(*qubits)
            else:
                getattr(circuit, name)(*qubits, theta=w[index] if index >= 0 else row[-1 - index])
        chances = (jnp.abs(circuit.state()) ** 2).reshape((2,) * n)
        marginal = [chances.sum(axis=tuple(k for k in range(n) if k != j)) for j in range(n)]
        return jnp.stack([m[0] - m[1] for m in marginal])

    return on_jax(lambda x, w: jax.vmap(values, in_axes=(0, None))(x, w), x, w)


def measure(peer, seconds, file):
    given = np.load(file)
    started, used = time.perf_counter(), time.process_time()
    step = globals()[peer](given["x"], given["w"])
    values, grad_x, grad_w = step()
    first, cpu = time.perf_counter() - started, time.process_time() - used
    np.savez(file, values=values, grad_x=grad_x, grad_w=grad_w)
    compiled = peer in ("pennylane", "tensorcircuit")
    best, least = (float("inf"),) * 2 if compiled else (first, cpu)
    end = time.perf_counter() + seconds
    for repeat in range(30):
        if (repeat or not compiled) and time.perf_counter() > end:
            break
        before, used = time.perf_counter(), time.process_time()
        step()
        best, least = min(best, time.perf_counter() - before), min(least, time.process_time() - used)
    return {"ms": 1e3 * best, "cpu_ms": 1e3 * least, "first_ms": 1e3 * first}


def main():
    peer, seconds = sys.argv[1:]
    for file in map(str.strip, sys.stdin):
        try:
            print(json.dumps(measure(peer, float(seconds), file)), flush=True)
        except Exception as error:  # out of memory comes under many names
            print(json.dumps({"error": str(error)[:200]}), flush=True)


main()
