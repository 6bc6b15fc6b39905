"""The native kernels give what torch gives; without them everything still works."""

import ctypes
import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import random_unitary

from qrkt_hw import circuits
from qrkt_hw.compiler.litinski import PauliRotation, absorb
from qrkt_hw.simulator import Simulator, native
from qrkt_hw.simulator.propagated import Propagated
from tests.random_templates import gate_by_gate, random_template

TEMPLATES = [
    circuits.build("qrkt", 4, 1),
    circuits.build("qrkt", 3, 3),
    circuits.build("ry_rz_ring", 4, 2),
    circuits.build("reuploading", 3, 2),
    random_template(np.random.default_rng(3), num_qubits=3, must=["ch", "t", "ccx"]),
]
needs_library = pytest.mark.skipif(native.library() is None, reason="the native kernels were not built")


def copied(template):
    """Without what was remembered of it."""
    return dataclasses.replace(template)


def without_library(monkeypatch):
    monkeypatch.setattr(native, "serves", lambda *tensors: False)


@needs_library
@pytest.mark.parametrize("method", ["pauli", "adjoint"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_compiled_and_torch_agree(method, dtype, monkeypatch):
    real = torch.float32 if dtype == torch.complex64 else torch.float64
    compared = 0
    for number, template in enumerate(TEMPLATES):
        if method == "pauli" and not Propagated.supports(template):
            continue
        simulate = Simulator(template, dtype, method)
        torch.manual_seed(number)
        for groups in (1, 2, 6):
            x = (3 * torch.randn(21, groups, template.num_inputs, dtype=real)).requires_grad_()
            w = torch.randn(groups, template.num_weights, dtype=real, requires_grad=True)
            cotangent = torch.randn(21, groups, template.num_outputs, dtype=real)
            found = []
            for use in (True, False):
                with monkeypatch.context() as patch:
                    if not use:
                        without_library(patch)
                    values = simulate(x, w)
                    found.append((values, *torch.autograd.grad(values, (x, w), cotangent)))
            bound = 2e-5 if real == torch.float32 else 1e-11
            for ours, theirs in zip(*found, strict=True):
                assert (ours - theirs).abs().max() <= bound * (1 + theirs.abs().max())
            compared += 1
    assert compared >= 9


def computed(simulate, batch, groups, threads=1, seed=0):
    """Values and gradients."""
    template, real = simulate.template, torch.zeros((), dtype=simulate.dtype).real.dtype
    torch.manual_seed(seed)
    x = (2 * torch.randn(batch, groups, template.num_inputs, dtype=real)).requires_grad_()
    w = torch.randn(groups, template.num_weights, dtype=real, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values = simulate(x, w)
        return values, *torch.autograd.grad(values.square().sum(), (x, w))
    finally:
        torch.set_num_threads(before)


def wide(qubits, layers=2, matrices=()):
    """Flips across the whole width, so that runs of few strings fill a block; some gates stay matrices."""
    x, w = ParameterVector("x", qubits), ParameterVector("w", 2 * qubits * layers)
    circuit, place = QuantumCircuit(qubits), 0
    for qubit in range(qubits):
        circuit.ry(x[qubit], qubit)
    for layer in range(layers):
        for qubit in range(qubits):
            circuit.ry(w[place], qubit)
            circuit.rx(w[place + 1], qubit)
            place += 2
        for qubit in range(qubits):
            circuit.cx(qubit, (qubit + 1) % qubits)
        for on in matrices:
            circuit.unitary(random_unitary(2 ** len(on), seed=layer), on)
    ends = "I" * (qubits - 2)
    return circuits.CircuitTemplate("wide", circuit, x, w, ("Z" * qubits, f"X{ends}Y", f"{ends}ZZ", "Y" * qubits))


@needs_library
@pytest.mark.parametrize(
    "template", [wide(10), wide(10, matrices=[(0, 9), (3, 4, 8)]), wide(12)], ids=["10", "matrices", "12"]
)
def test_a_state_in_blocks_agrees_with_torch(template, monkeypatch):
    for dtype, bound in ((torch.complex64, 3e-5), (torch.complex128, 1e-11)):
        simulate = Simulator(template, dtype, "adjoint")
        ours = computed(simulate, 19, 2)
        with monkeypatch.context() as patch:
            without_library(patch)
            theirs = computed(simulate, 19, 2)
        for one, other in zip(ours, theirs, strict=True):
            assert (one - other).abs().max() <= bound * (1 + other.abs().max())


@needs_library
@pytest.mark.parametrize(
    ("template", "method", "batch", "groups"),
    [(TEMPLATES[0], "pauli", 9000, 3), (TEMPLATES[2], "adjoint", 3000, 1), (TEMPLATES[2], "adjoint", 600, 40),
     (wide(11), "adjoint", 40, 3), (wide(15, 1), "adjoint", 3, 2)],
    ids=["pauli", "samples", "groups", "blocks", "shared"],
)  # fmt: skip
def test_the_same_bits_on_any_number_of_threads(template, method, batch, groups):
    simulate = Simulator(template, torch.complex64, method)
    alone = computed(simulate, batch, groups)
    for threads in (2, 3, 7, 50):
        for one, other in zip(computed(simulate, batch, groups, threads), alone, strict=True):
            assert torch.equal(one, other), threads


@needs_library
@pytest.mark.parametrize("qubits", [4, 11])
def test_states_that_a_hook_gives_back_off_their_alignment(qubits):
    simulate = Simulator(wide(qubits), torch.complex64, "adjoint")
    wanted = computed(simulate, 19, 2)

    def moved(tensor):
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    with torch.autograd.graph.saved_tensors_hooks(moved, lambda tensor: tensor):
        for one, other in zip(computed(simulate, 19, 2), wanted, strict=True):
            assert torch.equal(one, other)


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_threads_leave_nothing_that_a_fork_breaks():
    simulate = Simulator(TEMPLATES[0], torch.complex64, "pauli")
    x, w = torch.randn(9000, 3, 4), torch.randn(3, simulate.template.num_weights)
    before, alive = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(2)
    try:
        wanted = simulate(x, w)
        child = os.fork()
        if not child:
            found = simulate(x, w).numpy()  # torch's own threads do not live in the child
            os._exit(not (found == wanted.numpy()).all())
    finally:
        torch.set_num_threads(before)
    assert threading.active_count() == alive
    for _ in range(300):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0


@needs_library
def test_tensors_with_strides_angles_far_out_and_odd_batches():
    template = circuits.build("qrkt", 4, 2)
    exact = gate_by_gate(template)
    base = torch.randn(4, 2, 37, dtype=torch.float64) * 1e4  # read by strides, and far from the first turn
    x = base.permute(2, 1, 0)
    w = torch.randn(2, template.num_weights, dtype=torch.float64)
    for method in ("pauli", "adjoint"):
        for batch in (1, 7, 16, 37):
            found = Simulator(template, torch.complex128, method)(x[:batch], w)
            assert (found - exact(x[:batch], w)).abs().max() < 1e-9, (method, batch)
        assert Simulator(template, torch.complex128, method)(x[:0], w).shape == (0, 2, 4)


@needs_library
def test_the_adjoint_keeps_no_state_per_gate():
    """What the graph holds does not depend on the depth."""

    def held(layers):
        template = circuits.build("reuploading", 4, layers)
        sizes = []
        x = torch.randn(64, 1, template.num_inputs, requires_grad=True)
        w = torch.randn(1, template.num_weights, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            Simulator(template, method="adjoint")(x, w)
        return sum(sizes) - w.nbytes

    assert held(2) == held(12)


def test_clifford_gates_and_idle_rotations_leave_no_step():
    x, w = ParameterVector("x", 2), ParameterVector("w", 3)
    circuit = QuantumCircuit(2)
    circuit.rz(w[0], 0)  # |0> gets a phase
    circuit.ry(x[0], 0)
    circuit.h(1)
    circuit.rx(x[1], 1)  # |+> gets a phase
    circuit.cx(0, 1)
    circuit.s(0)
    circuit.ry(w[1], 1)
    circuit.rz(w[2], 1)  # does not move Z
    template = circuits.CircuitTemplate("idle", circuit, x, w, ("IZ", "ZI"))
    found = absorb(template)
    assert all(isinstance(step, PauliRotation) for step in found.steps)
    assert len(found.steps) == 2


def test_without_a_compiler_everything_works(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    for template in map(copied, TEMPLATES):
        x = torch.randn(3, 2, template.num_inputs, dtype=torch.float64, requires_grad=True)
        w = torch.randn(2, template.num_weights, dtype=torch.float64, requires_grad=True)
        wanted = torch.autograd.grad(gate_by_gate(template)(x, w).sum(), (x, w))
        for method in ("auto", "adjoint"):
            ours = torch.autograd.grad(Simulator(template, torch.complex128, method)(x, w).sum(), (x, w))
            for a, b in zip(ours, wanted, strict=True):
                torch.testing.assert_close(a, b)


def test_an_unreadable_library_is_no_library(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / f"_kernels{native.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    native.library.cache_clear()
    try:
        assert native.library() is None
        monkeypatch.setenv("QRKT_HW_NATIVE", "0")
        native.library.cache_clear()
        assert native.library() is None
    finally:
        native.library.cache_clear()


@needs_library
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_narrow_vectors_give_the_values_of_wide_ones(monkeypatch, dtype):
    loaded = next(
        f for s in native.EXTENSION_SUFFIXES if (f := Path(native.__file__).with_name(f"_kernels{s}")).is_file()
    )
    library = ctypes.CDLL(str(loaded))
    real = torch.float32 if dtype == torch.complex64 else torch.float64
    found = []
    for generation in range(1, library.qrkt_generation() + 1):
        monkeypatch.setattr(native, "library", lambda g=generation: native.routines(library, g))
        torch.manual_seed(0)
        values = []
        for template in map(copied, [*TEMPLATES[::4], wide(10, 1)]):
            x = torch.randn(19, 2, template.num_inputs, dtype=real, requires_grad=True)
            w = torch.randn(2, template.num_weights, dtype=real, requires_grad=True)
            out = Simulator(template, dtype, "auto")(x, w)
            values += [out, *torch.autograd.grad(out.square().sum(), (x, w))]
        found.append(torch.cat([t.detach().flatten() for t in values]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4 if real == torch.float32 else 1e-10, atol=1e-4)


def test_an_older_build_is_not_used(monkeypatch):
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()
