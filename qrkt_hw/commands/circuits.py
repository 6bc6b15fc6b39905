"""``qrkt-hw circuits list``, ``show`` and ``analyze``."""

from pathlib import Path

import click

from qrkt_hw.commands.interface import PATH, Group, echo, json_flag, table, writing
from qrkt_hw.errors import UserError

LARGEST_SIGNAL = 6  # qubits up to which angles are conditioned for the table


@click.group(cls=Group)
def circuits() -> None:
    """List, show and analyze the circuit templates."""


@circuits.command("list")
def list_() -> None:
    """Every template: weights at 4 qubits and one layer, topology, source."""
    from qrkt_hw.circuits import describe

    rows = ((one.name, str(one.num_weights), one.topology, one.reference) for one in describe())
    table(("name", "weights", "topology", "source"), rows)
    echo("weights at 4 qubits and 1 layer; your own: --ansatz path/to/file.py:function, FILE.qasm or FILE.qpy")


@circuits.command()
@click.argument("name")
@click.option("--qubits", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option("--layers", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option("--draw", type=PATH, help="write a picture (.png, .pdf or .svg)")
@click.option("--qasm", is_flag=True, help="print OpenQASM 3 instead")
def show(name: str, qubits: int, layers: int, draw: Path | None, qasm: bool) -> None:
    """Draw a template and say what it holds."""
    from qrkt_hw.circuits import build

    template = build(name, qubits, layers)
    circuit = template.circuit
    if qasm:
        from qiskit import qasm3

        echo(qasm3.dumps(template.circuit))
    else:
        two = sum(1 for i in circuit.data if len(i.qubits) == 2)
        echo(str(circuit.draw("text", fold=100)))
        echo(
            f"{template.name}: {template.num_qubits} qubits, {template.num_features} inputs, "
            f"{template.num_weights} weights, {template.num_outputs} observables, "
            f"depth {circuit.depth()}, {two} two-qubit gates, {template.topology}"
        )
        echo(f"source: {template.reference}")
    if draw is not None:
        if draw.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise UserError(f"--draw: {draw} must end in .png, .pdf or .svg")
        figure = circuit.draw("mpl", fold=30)
        with writing("--draw", draw):
            figure.savefig(draw, dpi=150, bbox_inches="tight")
        echo(f"drawn to {draw}", err=qasm)


@circuits.command()
@click.argument("name")
@click.option("--qubits", default="4", show_default=True, help="numbers and ranges, such as 2,4 or 2-6")
@click.option("--layers", default="1", show_default=True, help="numbers and ranges, such as 1,2 or 1-3")
@click.option("--pairs", type=click.IntRange(min=2), default=5000, show_default=True, help="pairs of states compared")
@click.option(
    "--samples", type=click.IntRange(min=2), default=200, show_default=True, help="parameter sets of the gradient"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--plot", type=PATH, help="draw the figures over qubits and layers (.png)")
@json_flag
def analyze(
    name: str, qubits: str, layers: str, pairs: int, samples: int, seed: int, plot: Path | None, as_json: bool
) -> None:
    """How much a template reaches, entangles and trains: expressibility, entanglement, gradient variance, signal.

    Inputs and weights are drawn alike, uniform in [0, 2 pi); for the signal the inputs are standard normal.
    """
    import dataclasses
    import json

    from qrkt_hw.circuits import build
    from qrkt_hw.models.initialization import signal
    from qrkt_hw.simulator.analysis import LARGEST, cones, measure

    widths, depths = numbers("--qubits", qubits), numbers("--layers", layers)
    if max(widths) > LARGEST:
        raise UserError(f"--qubits: {max(widths)} qubits are too many states to sample; at most {LARGEST}")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot: {plot} must end in .png")
    rows = []
    for width in widths:
        for depth in depths:
            template = build(name, width, depth)
            try:
                found = dataclasses.asdict(measure(template, pairs=pairs, samples=samples, seed=seed))
                sizes = [len(cone.inputs) for cone in cones(template)]
                small = width <= LARGEST_SIGNAL and template.num_features
                passed = signal(template, seed=seed) if small else (None, None)
            except ValueError as error:  # angles such as log(x) where they have no value
                raise UserError(f"{name} cannot be analyzed: {error}") from error
            rows.append(
                {"qubits": width, "layers": depth, "weights": template.num_weights, **found, "inputs_seen": sizes,
                 "signal": passed[0], "signal_conditioned": passed[1]}
            )  # fmt: skip
    if as_json:
        echo(json.dumps({"template": name, "pairs": pairs, "samples": samples, "seed": seed, "rows": rows}))
    else:
        titles = ("expressibility", "entangling", "gradient variance", "dead weights", "inputs per output", "signal")
        table(("qubits", "layers", "weights", *titles), (
            (str(row["qubits"]), str(row["layers"]), str(row["weights"]), f"{row['expressibility']:.4f}",
             f"{row['entangling']:.4f}", f"{row['gradient_variance']:.2e}", str(row["dead_weights"]),
             f"{min(row['inputs_seen'])} to {max(row['inputs_seen'])}",
             "-" if row["signal"] is None else f"{row['signal']:.2f}, {row['signal_conditioned']:.2f}")
            for row in rows
        ), right=titles, width=110)  # fmt: skip
        echo(
            "expressibility: divergence from Haar-random states, 0 is best; entangling: 0 product states, 1 most;\n"
            "signal: linear part of the values, with angles as drawn and with --initial-angles conditioned; 0 is\n"
            "no signal, 0.61 a sine of each input"
        )
    if plot is not None:
        from qrkt_hw.plots.charts import plot_analysis

        with writing("--plot", plot):
            plot_analysis(name, rows, plot)
        echo(f"drawn to {plot}", err=as_json)


def numbers(flag: str, text: str) -> list[int]:
    """``2,4-6`` as 2, 4, 5, 6. Raises UserError: not such a list."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(first) < 1 or int(last or first) < int(first):
            raise UserError(f"{flag}: {text!r} is not a list of whole numbers, such as 2,4 or 2-6")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)
