"""``qrkt-hw circuits list`` and ``show``."""

from __future__ import annotations

from pathlib import Path

import click

from qrkt_hw.errors import UserError


@click.group()
def circuits() -> None:
    """List and show the circuit templates."""


@circuits.command("list")
def list_() -> None:
    """Every template: weights at 4 qubits and one layer, topology, source."""
    from rich.console import Console
    from rich.table import Table

    from qrkt_hw.circuits import describe

    table = Table("name", "weights", "topology", "source", box=None, header_style="bold")
    for template in describe():
        table.add_row(template.name, str(template.num_weights), template.topology, template.reference)
    Console().print(table)
    click.echo("weights at 4 qubits and 1 layer; your own: --ansatz path/to/file.py:function")


@circuits.command()
@click.argument("name")
@click.option("--qubits", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option("--layers", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option("--draw", type=click.Path(path_type=Path), help="write a picture (.png, .pdf or .svg)")
@click.option("--qasm", is_flag=True, help="print OpenQASM 3 instead")
def show(name: str, qubits: int, layers: int, draw: Path | None, qasm: bool) -> None:
    """Draw a template and say what it holds."""
    from qrkt_hw.circuits import build

    template = build(name, qubits, layers)
    if qasm:
        from qiskit import qasm3

        click.echo(qasm3.dumps(template.circuit))
        return
    circuit = template.circuit
    two = sum(1 for i in circuit.data if len(i.qubits) == 2)
    click.echo(circuit.draw("text", fold=100))
    click.echo(
        f"{template.name}: {template.num_qubits} qubits, {template.num_inputs} inputs, {template.num_weights} weights, "
        f"{template.num_outputs} observables, depth {circuit.depth()}, {two} two-qubit gates, {template.topology}"
    )
    click.echo(f"source: {template.reference}")
    if draw is not None:
        if draw.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise UserError(f"--draw: {draw} must end in .png, .pdf or .svg")
        figure = circuit.draw("mpl", fold=30)
        try:
            figure.savefig(draw, dpi=150, bbox_inches="tight")
        except OSError as error:
            raise UserError(f"--draw: {draw} cannot be written: {error.strerror}") from error
        click.echo(f"drawn to {draw}")
