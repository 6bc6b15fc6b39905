"""How quantum a circuit is: what its outputs depend on, and what it takes to compute them classically."""

from __future__ import annotations

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.resources.logical import as_written
from qrkt_hw.resources.schema import Output, Verdict

BATCH = 256  # circuits for which the methods of the simulator state their cost, in nanoseconds
LARGEST_SHOWN = 60  # letters of an observable's name


def verdict(template: CircuitTemplate, place: int) -> Verdict:
    """Part 4 of the report for the circuit at ``place`` of the list of circuits."""
    from qrkt_hw.simulator.analysis import cones

    written = as_written(template)
    outputs = [
        Output(
            observable=_name(template, k),
            inputs=list(c.inputs),
            weights=list(c.weights),
            exact=c.exact,
            strings=c.strings,
        )
        for k, c in enumerate(cones(written))
    ]
    used = {w for output in outputs for w in output.weights}
    method, microseconds = _method(template)
    return Verdict(
        circuit=place,
        outputs=outputs,
        elementwise=sum(1 for o in outputs if len(o.inputs) <= 1),
        dead_weights=written.num_weights - len(used),
        sentence=sentence(outputs, written.num_inputs, written.num_weights - len(used)),
        method=method,
        microseconds=microseconds,
        hardness=_hardness(outputs, template.num_qubits, method, microseconds),
    )


def sentence(outputs: list[Output], inputs: int, dead: int) -> str:
    """The verdict on the outputs of a circuit with so many inputs."""
    sizes = [len(o.inputs) for o in outputs]
    alone = sum(1 for size in sizes if size <= 1)
    bound = "" if all(o.exact for o in outputs) else "at most "
    if inputs == 0:
        text = "no output depends on data"
    elif inputs == 1:
        text = "one input: a function of one number, a short Fourier series"
    elif alone == len(outputs):
        each = "the output depends" if len(outputs) == 1 else f"all {len(outputs)} outputs depend"
        text = f"{each} on one input each: an element-wise function, classically computable in O(n)"
    elif 2 * alone >= len(outputs):
        rest = [s for s in sizes if s > 1]
        others = "the other depends" if len(rest) == 1 else "the others depend"
        text = (
            f"{alone} of {len(outputs)} outputs depend on one input each: an element-wise function, classically "
            f"computable in O(n); {others} on {bound}{_range(rest)} of {inputs} inputs"
        )
    elif min(sizes) == inputs:
        text = (
            f"every output depends on all {inputs} inputs"
            if not bound
            else f"outputs may depend on all {inputs} inputs"
        )
    else:
        text = f"each output depends on {bound}{_range(sizes)} of {inputs} inputs"
    if dead:
        text += f"; {dead} weight{' moves' if dead == 1 else 's move'} no output"
    return text


def _hardness(outputs: list[Output], qubits: int, method: str, microseconds: float | None) -> str:
    if outputs and all(o.strings for o in outputs):
        most = max(o.strings for o in outputs)
        return f"easy: every output is a sum of at most {most:,} Pauli string{'' if most == 1 else 's'}"
    if qubits <= 20:
        return f"easy: a statevector of 2^{qubits} amplitudes ({_bytes(16 * 2**qubits)})"
    if qubits <= 32:
        return f"moderate: a statevector of 2^{qubits} amplitudes ({_bytes(16 * 2**qubits)})"
    if microseconds is not None:
        return f"possible: about {microseconds:,.0f} us a circuit by method {method!r}"
    return f"hard: 2^{qubits} amplitudes do not fit a computer, and its observables spread over too many Pauli strings"


def _method(template: CircuitTemplate) -> tuple[str, float | None]:
    from qrkt_hw.simulator import cheapest

    best = cheapest(template)
    return ("none", None) if best is None else (best.name, best.cost(template) / BATCH / 1000)


def _name(template: CircuitTemplate, place: int) -> str:
    terms = template.observables[place].to_sparse_list()
    parts = []
    for word, qubits, coefficient in terms:
        factor = "" if coefficient == 1 else f"{coefficient.real:g} "
        parts.append(factor + (" ".join(f"{letter}{q}" for letter, q in zip(word, qubits, strict=True)) or "1"))
    text = " + ".join(parts)
    return text if len(text) <= LARGEST_SHOWN else text[: LARGEST_SHOWN - 3] + "..."


def _range(sizes: list[int]) -> str:
    return str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if count < 1024 or unit == "PiB":
            return f"{count:.0f} {unit}"
        count /= 1024
    raise AssertionError
