"""The circuits of a model as written: what they are, how often they run, and in how many dependent rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qiskit.circuit import QuantumCircuit

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.device.cache import digest
from qrkt_hw.resources.schema import Circuit, LayerRow, Logical, Request
from qrkt_hw.resources.trace import Asked


def logical(rounds: Sequence[Sequence[Asked]]) -> tuple[Logical, list[CircuitTemplate]]:
    """Part 1 of the report, and the distinct templates in the order of its ``circuits``."""
    templates = list(dict.fromkeys(asked.template for round_ in rounds for asked in round_))
    layers: dict[str, Asked] = {}
    calls: dict[str, int] = {}
    for asked in (a for round_ in rounds for a in round_):
        layers.setdefault(asked.tag, asked)
        calls[asked.tag] = calls.get(asked.tag, 0) + asked.circuits
    rows: dict[tuple[int, int, int], list[str]] = {}
    for tag, asked in layers.items():
        rows.setdefault((templates.index(asked.template), asked.groups, calls[tag]), []).append(tag)
    return (
        Logical(
            circuits=[describe(template) for template in templates],
            layers=[
                LayerRow(
                    layers=tags,
                    circuit=circuit,
                    groups=groups,
                    weights=groups * as_written(templates[circuit]).num_weights,
                    calls_per_image=count * len(tags),
                )
                for (circuit, groups, count), tags in rows.items()
            ],
            qubits=max((t.num_qubits for t in templates), default=0),
            qubits_summed=sum(a.groups * a.template.num_qubits for a in layers.values()),
            calls_per_image=sum(calls.values()),
            rounds=[_requests(round_, templates) for round_ in rounds],
        ),
        templates,
    )


def _requests(round_: Sequence[Asked], templates: list[CircuitTemplate]) -> list[Request]:
    found: dict[int, Request] = {}
    for asked in round_:
        place = templates.index(asked.template)
        request = found.setdefault(place, Request(circuit=place, layers=0, circuits=0))
        request.layers += 1
        request.circuits += asked.circuits
    return list(found.values())


def as_written(template: CircuitTemplate) -> CircuitTemplate:
    """The template as its author wrote it, before angles became derived inputs."""
    return template.source or template


def describe(template: CircuitTemplate) -> Circuit:
    """The logical figures of one template: the circuit that runs, with the inputs and weights of its author."""
    circuit, written = template.circuit, as_written(template)
    return Circuit(
        fingerprint=fingerprint(template),
        template=template.name,
        topology=template.topology,
        qubits=template.num_qubits,
        inputs=written.num_inputs,
        weights=written.num_weights,
        outputs=template.num_outputs,
        bases=_bases(template),
        gates={str(name): int(count) for name, count in circuit.count_ops().items()},
        shifts=_shifts(template),
        **two_qubit_figures(circuit),
    )


def two_qubit_figures(circuit: QuantumCircuit) -> dict[str, int]:
    """``depth, two_qubit_depth, two_qubit_gates`` of a circuit; barriers count for nothing."""

    def wide(instruction) -> bool:
        return len(instruction.qubits) > 1 and not getattr(instruction.operation, "_directive", False)

    return {
        "depth": circuit.depth(),
        "two_qubit_depth": circuit.depth(wide),
        "two_qubit_gates": sum(1 for instruction in circuit.data if wide(instruction)),
    }


def fingerprint(template: CircuitTemplate) -> str:
    """The same for the same circuit in any process: gates, qubits, parameters by place, observables."""
    place = {parameter.name: f"p{index}" for index, parameter in enumerate(template.parameters)}
    names = sorted(place, key=len, reverse=True)

    def shown(value: object) -> str:
        if isinstance(value, np.ndarray):
            return digest(value.tolist() if value.dtype.kind != "c" else [value.real.tolist(), value.imag.tolist()])
        text = str(value)
        for name in names:
            text = text.replace(name, place[name])
        return text

    gates = [
        (
            i.operation.name,
            [template.circuit.find_bit(q).index for q in i.qubits],
            [shown(p) for p in i.operation.params],
        )
        for i in template.circuit.data
    ]
    observables = [(o.paulis.to_labels(), o.coeffs.real.tolist()) for o in template.observables]
    return digest(template.num_qubits, template.num_inputs, gates, observables)


def _bases(template: CircuitTemplate) -> int:
    from qrkt_hw.backends.device.measurement import bases

    return len(bases(template))


def _shifts(template: CircuitTemplate) -> int:
    from qrkt_hw.compiler import split

    return sum(2 * len(rule.shifts) for rule in split(template).rules)
