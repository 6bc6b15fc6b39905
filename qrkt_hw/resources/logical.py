"""Circuits as written: how often a model calls them, how large they are, and whether they are classically simulable."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from torch import Tensor, nn

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.device.cache import digest
from qrkt_hw.backends.device.measurement import bases
from qrkt_hw.compiler import split
from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import evaluated_on
from qrkt_hw.resources.schema import Circuit, LayerRow, Logical, Output, Simulability, StageCall
from qrkt_hw.runs.circuits import fingerprint as computed
from qrkt_hw.simulator import cheapest
from qrkt_hw.simulator.analysis import cones

BATCH = 256  # circuits for which the methods of the simulator state their cost, in nanoseconds
LONGEST_NAME = 60  # letters of an observable's name


@dataclass(frozen=True)
class CircuitCall:
    """A call of a quantum layer within a sequential stage."""

    layer: str  # its name in the model
    template: CircuitTemplate
    groups: int  # circuits the layer's features are split into
    circuits: int  # parameter sets evaluated


Stages = Sequence[Sequence[CircuitCall]]


class CountingBackend(Backend):
    """Answers every call with zeros and keeps the calls, stage by stage."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.stages: list[list[CircuitCall]] = []

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        self.stages.append(
            [CircuitCall(c.tag, c.template, (1, *c.values.shape)[-2], c.samples) for c in calls],
        )
        return [np.zeros((*c.values.shape[:-1], c.template.num_outputs)) for c in calls]


def stages_of(model: nn.Module, shape: DataShape) -> Stages:
    """The calls that one image or text takes through a model; of a GAN, those of its generator for one image."""
    first, latent = next(model.parameters()), getattr(model, "latent", None)
    if latent is not None:
        return trace(model, first.new_zeros(1, latent))
    if shape.vocabulary:
        return trace(model, torch.ones(1, shape.length, dtype=torch.int64, device=first.device))
    inputs = getattr(model, "input_shape", None) or (shape.channels, shape.image_size, shape.image_size)
    return trace(model, first.new_zeros(1, *inputs))


def trace(model: nn.Module, inputs: Tensor) -> Stages:
    """The calls of a forward pass in evaluation mode; backends, modes and random numbers stay what they were."""
    counter = CountingBackend()
    with evaluated_on(model, counter):
        model(inputs)
    return counter.stages


def templates_of(stages: Stages) -> list[CircuitTemplate]:
    """The distinct templates, in the order of their first call."""
    return list(dict.fromkeys(call.template for stage in stages for call in stage))


def logical(stages: Stages) -> Logical:
    """Part 1 of the report; its circuits are those of :func:`templates_of`."""
    templates = templates_of(stages)
    layers: dict[str, CircuitCall] = {}
    calls: dict[str, int] = {}
    for call in (call for stage in stages for call in stage):
        layers.setdefault(call.layer, call)
        calls[call.layer] = calls.get(call.layer, 0) + call.circuits
    rows: dict[tuple[int, int, int], list[str]] = {}
    for name, call in layers.items():
        rows.setdefault((templates.index(call.template), call.groups, calls[name]), []).append(name)
    return Logical(
        circuits=[_circuit(template) for template in templates],
        layers=[
            LayerRow(
                layers=names,
                circuit=circuit,
                groups=groups,
                weights=groups * as_written(templates[circuit]).num_weights,
                calls_per_image=count * len(names),
            )
            for (circuit, groups, count), names in rows.items()
        ],
        qubits=max((t.num_qubits for t in templates), default=0),
        qubits_summed=sum(call.groups * call.template.num_qubits for call in layers.values()),
        calls_per_image=sum(calls.values()),
        rounds=[_stage(stage, templates) for stage in stages],
    )


def _stage(stage: Sequence[CircuitCall], templates: list[CircuitTemplate]) -> list[StageCall]:
    calls: dict[int, list[CircuitCall]] = {}
    for call in stage:
        calls.setdefault(templates.index(call.template), []).append(call)
    return [
        StageCall(circuit=circuit, layers=len(same), circuits=sum(call.circuits for call in same))
        for circuit, same in calls.items()
    ]


def as_written(template: CircuitTemplate) -> CircuitTemplate:
    """The template as its author wrote it, before angles became derived inputs."""
    while template.source is not None:
        template = template.source
    return template


def _circuit(template: CircuitTemplate) -> Circuit:
    """The figures of the circuit that runs, with the inputs and weights of its author."""
    circuit, written, parts = template.circuit, as_written(template), split(template)
    # the angles of a unary encoding are not shifted: the gradient by the features is the matrix of the weights
    first = 0 if written.encoding == "angle" else template.num_inputs
    shifted = np.abs(parts.jacobian[:, first:]).sum(axis=1) > 0
    return Circuit(
        fingerprint=fingerprint(template),
        template=template.name,
        topology=template.topology,
        qubits=template.num_qubits,
        inputs=written.num_features,
        weights=written.num_weights,
        outputs=template.num_outputs,
        bases=len(bases(template)),
        gates={str(name): int(count) for name, count in circuit.count_ops().items()},
        shifts=sum(2 * len(rule.shifts) for rule, moves in zip(parts.rules, shifted.tolist(), strict=True) if moves),
        **two_qubit_figures(circuit),
    )


def two_qubit_figures(circuit: QuantumCircuit) -> dict[str, int]:
    """``depth, two_qubit_depth, two_qubit_gates`` of a circuit; barriers count for nothing."""
    wide = circuit.depth(lambda i: len(i.qubits) > 1 and not getattr(i.operation, "_directive", False))
    return {"depth": circuit.depth(), "two_qubit_depth": wide, "two_qubit_gates": circuit.num_nonlocal_gates()}


def fingerprint(template: CircuitTemplate) -> str:
    """The same for circuits that compute the same and have the same barriers, which the transpiler respects."""
    circuit = template.circuit
    barriers = [
        (k, [circuit.find_bit(q).index for q in i.qubits])
        for k, i in enumerate(circuit.data)
        if i.operation.name == "barrier"
    ]
    return digest(computed(template), barriers)


def simulability(template: CircuitTemplate, place: int) -> Simulability:
    """Part 4 of the report for the circuit at ``place`` of the list of circuits."""
    written = as_written(template)
    outputs = [
        Output(
            observable=_name(template, k),
            inputs=list(cone.inputs),
            weights=list(cone.weights),
            exact=cone.exact,
            strings=cone.strings,
        )
        for k, cone in enumerate(cones(written))
    ]
    dead = written.num_weights - len({w for output in outputs for w in output.weights})
    unary = written.encoding != "angle"
    evaluated = written if unary else template
    best = cheapest(evaluated)
    method, microseconds = ("none", None) if best is None else (best.name, best.cost(evaluated) / BATCH / 1000)
    sentence, hardness = _dependence(outputs, written.num_features, dead), ""
    if unary:
        size = f"{written.num_outputs} x {written.num_features}"
        sentence += f"; the outputs are one {size} matrix of the weights times the features"
        hardness = f"easy: one {size} matrix; there is no quantum speed-up with one excitation"
    return Simulability(
        circuit=place,
        outputs=outputs,
        elementwise=sum(1 for o in outputs if len(o.inputs) <= 1),
        dead_weights=dead,
        sentence=sentence,
        method=method,
        microseconds=microseconds,
        hardness=hardness or _hardness(outputs, template.num_qubits, method, microseconds),
    )


def _dependence(outputs: list[Output], inputs: int, dead: int) -> str:
    """On how many of so many inputs the outputs depend, in words."""
    sizes = [len(o.inputs) for o in outputs]
    several = [size for size in sizes if size > 1]
    bound = "" if all(o.exact for o in outputs) else "at most "
    if inputs == 0:
        text = "no output depends on data"
    elif inputs == 1:
        text = "one input: a function of one number, a short Fourier series"
    elif not several:
        each = "the output depends" if len(outputs) == 1 else f"all {len(outputs)} outputs depend"
        text = f"{each} on one input each: an element-wise function, classically computable in O(n)"
    elif 2 * len(several) <= len(outputs):
        others = "the other depends" if len(several) == 1 else "the others depend"
        text = (
            f"{len(outputs) - len(several)} of {len(outputs)} outputs depend on one input each: an element-wise "
            f"function, classically computable in O(n); {others} on {bound}{_range(several)} of {inputs} inputs"
        )
    elif min(sizes) == inputs:
        text = f"outputs may depend on all {inputs} inputs" if bound else f"every output depends on all {inputs} inputs"
    else:
        text = f"each output depends on {bound}{_range(sizes)} of {inputs} inputs"
    if dead:
        text += f"; {dead} weight{' moves' if dead == 1 else 's move'} no output"
    return text


def _hardness(outputs: list[Output], qubits: int, method: str, microseconds: float | None) -> str:
    if outputs and all(o.strings for o in outputs):
        most = max(o.strings for o in outputs)
        return f"easy: every output is a sum of at most {most:,} Pauli string{'' if most == 1 else 's'}"
    if qubits <= 32:
        level = "easy" if qubits <= 20 else "moderate"
        return f"{level}: a statevector of 2^{qubits} amplitudes ({_bytes(16 * 2**qubits)})"
    if microseconds is not None:
        return f"possible: about {microseconds:,.0f} us a circuit by method {method!r}"
    return f"hard: 2^{qubits} amplitudes do not fit a computer, and its observables spread over too many Pauli strings"


def _name(template: CircuitTemplate, place: int) -> str:
    """An observable as a sum of Pauli strings, such as ``0.5 Z0 Z1 + X2``; cut where it is long."""
    parts = []
    for word, qubits, coefficient in template.observables[place].to_sparse_list():
        factor = "" if coefficient == 1 else f"{coefficient.real:g} "
        parts.append(factor + (" ".join(f"{letter}{q}" for letter, q in zip(word, qubits, strict=True)) or "1"))
    text = " + ".join(parts)
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 3] + "..."


def _range(sizes: list[int]) -> str:
    return str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"


def _bytes(count: int) -> str:
    unit = (count.bit_length() - 1) // 10
    return f"{count >> 10 * unit} {('bytes', 'KiB', 'MiB', 'GiB')[unit]}"
