"""The picture of a layout on its chip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrkt_hw.errors import UserError
from qrkt_hw.resources.devices import device_of
from qrkt_hw.resources.schema import Report


def draw(reports: Sequence[Report], path: Path) -> Path:
    """The widest circuit of the first report on its first device, at the highest optimisation level.

    Raises:
        UserError: no device was named, or the file cannot be written.
    """
    from qrkt_hw.backends.device.calibration import failure
    from qrkt_hw.plots.charts import plot_layout

    report = reports[0]
    device = next((d for d in report.devices if d.circuits), None)
    if device is None:
        raise UserError("--plot: a layout needs a device; name one with --backend, such as fake_torino")
    placed = max(device.circuits, key=lambda p: (p.level, len(p.physical)))
    circuit = report.logical.circuits[placed.circuit]
    target = device_of(device.name).target
    edges = chip_edges(target)
    positions = chip_positions(target.num_qubits, [(a, b) for a, b, _ in edges])
    try:
        return plot_layout(
            f"{circuit.template} on {circuit.qubits} qubits of {device.name}, level {placed.level}: "
            f"{placed.two_qubit_gates} two-qubit gates, success {placed.success:.3f}",
            positions,
            edges,
            [failure(target, "measure", [q]) for q in range(target.num_qubits)],
            placed.physical,
            [(a, b) for a, b in placed.couplings],
            placed.copy_qubits,
            path,
        )
    except OSError as error:
        raise UserError(f"--plot: {path} cannot be written: {error.strerror}") from error


def chip_edges(target: Any) -> list[tuple[int, int, float]]:
    """Coupled pairs, each once, with the error of their two-qubit gate."""
    from qrkt_hw.backends.device.calibration import failure

    found: dict[tuple[int, int], float] = {}
    for name in target.operation_names:
        for qubits in target[name] or {}:
            if qubits is not None and len(qubits) == 2:
                a, b = sorted(qubits)
                found[a, b] = max(found.get((a, b), 0.0), failure(target, name, qubits))
    return [(a, b, error) for (a, b), error in sorted(found.items())]


def chip_positions(size: int, edges: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Where to draw the qubits: rows for IBM's lattices, a spring layout for others.

    IBM numbers its chips row by row, so a row is a chain of consecutive numbers. Between rows of a heavy-hex lattice
    lie single qubits that couple up and down; on a square lattice a row couples to the next directly.
    """
    joined = {tuple(sorted(pair)) for pair in edges}
    rows: list[list[int]] = []
    for qubit in range(size):
        if rows and (rows[-1][-1], qubit) in joined:
            rows[-1].append(qubit)
        else:
            rows.append([qubit])
    neighbours: dict[int, list[int]] = {q: [] for q in range(size)}
    for a, b in joined:
        neighbours[a].append(b)
        neighbours[b].append(a)
    places: dict[int, tuple[float, float]] = {}
    level = 0.0
    was_long: bool | None = None
    for row in rows:
        is_long = len(row) > 1
        if was_long is not None and (is_long or was_long):
            level -= 1.0
        was_long = is_long
        shift = 0.0
        above = [(places[n][0] - k, n) for k, q in enumerate(row) for n in neighbours[q] if n in places]
        if above:
            shift = above[0][0]
        for k, qubit in enumerate(row):
            own = [places[n][0] for n in neighbours[qubit] if n in places]
            places[qubit] = (own[0] if not is_long and own else shift + k, level)
    if len(set(places.values())) < size or len(rows) > size / 2:
        import rustworkx as rx

        graph: rx.PyGraph = rx.PyGraph()
        graph.add_nodes_from(range(size))
        graph.add_edges_from([(a, b, None) for a, b in edges])
        return [tuple(10 * v for v in p) for p in rx.spring_layout(graph, seed=1).values()]  # type: ignore[misc]
    return [places[q] for q in range(size)]
