"""Circuits of Sim, Johnson, Aspuru-Guzik 2019 (figure 2), by their numbers, for comparing published figures."""

from __future__ import annotations

from collections.abc import Callable

from qiskit.circuit import Parameter, QuantumCircuit

from qrkt_hw.circuits import CircuitTemplate


class _Drawing:
    """A circuit that makes a new parameter for every rotation."""

    def __init__(self, qubits: int) -> None:
        self.circuit = QuantumCircuit(qubits)
        self.parameters: list[Parameter] = []

    def angle(self) -> Parameter:
        self.parameters.append(Parameter(f"a{len(self.parameters):03d}"))
        return self.parameters[-1]

    def every(self, *axes: str) -> None:
        for axis in axes:
            for qubit in range(self.circuit.num_qubits):
                getattr(self.circuit, f"r{axis}")(self.angle(), qubit)

    def controlled(self, axis: str, pairs) -> None:
        for control, target in pairs:
            getattr(self.circuit, f"cr{axis}")(self.angle(), control, target)


def _chain(n: int):
    return [(k + 1, k) for k in reversed(range(n - 1))]


def _all(n: int):
    return [(c, t) for c in reversed(range(n)) for t in reversed(range(n)) if c != t]


def _one(d: _Drawing, n: int) -> None:
    d.every("x", "z")


def _two(d: _Drawing, n: int) -> None:
    d.every("x", "z")
    for pair in _chain(n):
        d.circuit.cx(*pair)


def _crossed(axis: str, pairs: Callable, again: bool) -> Callable[[_Drawing, int], None]:
    def draw(d: _Drawing, n: int) -> None:
        d.every("x", "z")
        d.controlled(axis, pairs(n))
        if again:
            d.every("x", "z")

    return draw


def _nine(d: _Drawing, n: int) -> None:
    d.circuit.h(range(n))
    for pair in _chain(n):
        d.circuit.cz(*pair)
    d.every("x")


def _fourteen(d: _Drawing, n: int) -> None:
    d.every("y")
    d.controlled("x", [(k, (k + 1) % n) for k in reversed(range(n))])
    d.every("y")
    d.controlled("x", [(k, (k - 1) % n) for k in [n - 1, *range(n - 1)]])


DRAWN: dict[int, Callable[[_Drawing, int], None]] = {
    1: _one,
    2: _two,
    3: _crossed("z", _chain, False),
    4: _crossed("x", _chain, False),
    5: _crossed("z", _all, True),
    6: _crossed("x", _all, True),
    9: _nine,
    14: _fourteen,
}


def sim_circuit(number: int, qubits: int = 4, layers: int = 1) -> CircuitTemplate:
    """The circuit of that number; all its angles are weights."""
    drawing = _Drawing(qubits)
    for _ in range(layers):
        DRAWN[number](drawing, qubits)
    return CircuitTemplate(f"sim{number}", drawing.circuit, (), tuple(drawing.parameters))
