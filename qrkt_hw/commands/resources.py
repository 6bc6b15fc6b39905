"""``qrkt-hw resources``, and ``qrkt-hw circuits list``, ``show`` and ``analyze``."""

import fnmatch
import json
from pathlib import Path

import click

from qrkt_hw.commands.interface import (
    ANSATZ,
    PATH,
    Command,
    Group,
    Word,
    busy,
    columns,
    console,
    echo,
    json_flag,
    said,
    table,
    told,
    trust_flag,
    writing,
)
from qrkt_hw.commands.options import merge
from qrkt_hw.errors import UserError

LARGEST_SIGNAL = 6  # qubits up to which angles are conditioned for the table
PLANS = ("open", "payg", "flex", "premium")


@click.command(
    cls=Command,
    first=("--preset", "--ansatz", "--qubits", "--layers", "--backend", "--samples", "--shots", "--compare", "--plot",
           "--json"),
    old={"images": "samples", "limit": "samples", "count": "samples", "draw": "plot"},
    examples="""
qrkt-hw resources                               the newest run
qrkt-hw resources -p digits-hardware -b fake_torino --samples 50
qrkt-hw resources -a brickwork -n 6 -l 2 -b fake_torino --plot chip.png
qrkt-hw resources -p 'best-*' -b fake_torino --compare""",
)  # fmt: skip
@click.argument("run", nargs=-1)
@click.option(
    "--preset", "presets", multiple=True, help="a preset instead of a run; repeat, or 'thesis-*', with --compare"
)
@click.option("--ansatz", help="a lone circuit instead of a run, with --qubits and --layers")
@click.option("--circuits", "file", type=PATH, help="the circuits of a QPY file instead of a run, with --backend")
@click.option("--qubits", type=click.IntRange(1, 1000), help="qubits of the lone circuit  [default: 4]")
@click.option("--layers", type=click.IntRange(1, 1000), help="layers of the lone circuit  [default: 1]")
@click.option(
    "--backend", "backends", multiple=True, help="what it would cost there, such as fake_torino; repeat for more"
)
@click.option(
    "--optimization-level",
    "levels",
    multiple=True,
    type=click.IntRange(0, 3),
    help="of the transpiler; repeat to compare  [default: 3]",
)
@click.option("--shots", type=click.IntRange(min=1), default=1024, show_default=True, help="samples per circuit")
@click.option("--samples", "images", type=click.IntRange(min=1), default=100, show_default=True, help="inputs to infer")
@click.option("--training-steps", type=click.IntRange(min=0), default=1, show_default=True, help="steps of training")
@click.option("--plan", type=Word(PLANS), default="payg", show_default=True, help="whose prices the table shows")
@click.option(
    "--compare", is_flag=True, help="several runs, presets or ANSATZ:QUBITS:LAYERS in one table, cheapest first"
)
@click.option("--format", "style", type=Word(["table", "json", "markdown"]), default="table", show_default=True)
@click.option("--plot", type=PATH, help="draw the layout on the chip (.png)")
@trust_flag
@json_flag
@click.option("--schema", is_flag=True, help="print the JSON schema of --json")
def resources(
    run: tuple[str, ...], presets: tuple[str, ...], ansatz: str | None, qubits: int | None, layers: int | None,
    backends: tuple[str, ...], levels: tuple[int, ...], shots: int, images: int, training_steps: int, plan: str,
    compare: bool, style: str, plot: Path | None, schema: bool, trust_ansatz: bool, file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """What RUN, a preset or a circuit costs on a device, and its classical simulability.

    Qubits, depth and calls; with --backend also gates after transpiling, ESP, QPU seconds and price. Nothing is
    run or paid. Without RUN, the newest run under runs/.
    """
    if as_json and "--format" in said() and style != "json":
        raise UserError(f"--json: --format is {style}; leave one of them out")
    style = "json" if as_json else style
    _check_said(schema, backends, compare, style)
    if schema:
        from qrkt_hw.resources.schema import Report

        echo(json.dumps(Report.model_json_schema(), indent=2))
        return
    if file is not None:
        _circuits(file, backends, shots, plan, style)
        return
    if ansatz is None and (qubits is not None or layers is not None):
        raise UserError("--qubits and --layers belong to --ansatz NAME; a run or a preset has its own")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot: {plot} must end in .png")
    if plot is not None and not backends:
        raise UserError("--plot: a layout needs a device; name one with --backend, such as fake_torino")
    from qrkt_hw.experiments.presets import names as shipped

    known = shipped()
    names = [
        *run,
        *(f"preset:{name}" for name in dict.fromkeys(n for p in presets for n in fnmatch.filter(known, p) or [p])),
        *([f"{ansatz}:{qubits or 4}:{layers or 1}"] if ansatz else []),
    ]
    if len(names) > 1 and not compare:
        raise UserError(f"one run, preset or ansatz at a time, not {len(names)}; --compare puts several into one table")
    if plot is not None and (len(names) > 1 or len(set(backends)) > 1):
        several = f"{len(names)} models" if len(names) > 1 else f"{len(set(backends))} devices"
        raise UserError(f"--plot: draws one circuit on one device, not {several}; name one")
    from qrkt_hw.resources.tables import comparison, text

    subjects = [_subject(name, trust_ansatz) for name in names or [""]]
    with busy(console(stderr=True), f"compiling{' for ' if backends else ''}{', '.join(backends)}"):
        reports = [
            one.report(backends, levels or (3,), shots=shots, images=images, training_steps=training_steps)
            for one in subjects
        ]
    if style == "json":
        found = [report.model_dump(mode="json") for report in reports]
        told(found if compare else found[0])
    elif compare:
        echo(comparison(reports, plan, style))
    else:
        echo(text(reports[0], plan, style))
    if plot is not None:
        from qrkt_hw.resources.devices import draw

        draw(reports, plot)
        echo(f"drawn to {plot}", err=style == "json")


def _check_said(schema: bool, backends: tuple[str, ...], compare: bool, style: str) -> None:
    """Refuse what was said and would change nothing."""
    given = said()
    for name in given:
        if "--circuits" in given and name not in ("--circuits", "--backend", "--shots", "--plan", "--format", "--json"):
            raise UserError(f"{name}: --circuits takes --backend, --shots, --plan and --format; leave it out")
        if schema and name != "--schema":
            raise UserError(f"{name}: --schema prints the JSON schema and nothing else; leave one of them out")
        if not backends and name in ("--optimization-level", "--shots", "--samples", "--training-steps", "--plan"):
            raise UserError(f"{name}: without a device nothing is sampled or priced; name one with --backend")
        if name == "--plan" and style == "json" and "--circuits" not in given:
            raise UserError(f"{name}: --json holds the prices of every plan; leave it out")
        if name == "--training-steps" and compare and style != "json":
            raise UserError(f"{name}: the table of --compare shows inference only; take --json, or leave it out")


def _circuits(file: Path, backends: tuple[str, ...], shots: int, plan: str, style: str) -> None:
    """What the circuits of a QPY file take together on each device; those that measure nothing are measured."""
    from qiskit import qpy

    from qrkt_hw.backends import resolve
    from qrkt_hw.primitives.packed import DEFAULT_SHOTS
    from qrkt_hw.resources.forecast import estimate

    if not backends:
        raise UserError("--circuits: what circuits take depends on the device; name one with --backend")
    if style == "markdown":
        raise UserError("--format: with --circuits it is table or json, not markdown")
    try:
        with file.open("rb") as opened:
            circuits = qpy.load(opened)
    except OSError as error:
        raise UserError(f"--circuits: {file} cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever QPY makes of bytes that are none
        raise UserError(f"--circuits: {file} is not a QPY file, as qiskit.qpy.dump writes it") from error
    pubs = [(one if one.num_clbits else one.measure_all(inplace=False), [0.0] * one.num_parameters) for one in circuits]
    found = [estimate(pubs, resolve(name, shots=shots or DEFAULT_SHOTS), shots=shots, plan=plan) for name in backends]
    if style == "json":
        told([one.record() for one in found])
    else:
        echo("\n".join(map(str, found)))


def _subject(name: str, trust: bool):
    """A run folder, ``preset:NAME``, or ``ANSATZ:QUBITS:LAYERS``; the newest run for an empty name."""
    from qrkt_hw.resources.subject import of_options, of_template

    if name.startswith("preset:"):
        preset = name.removeprefix("preset:")
        return of_options(preset, merge(preset, None, {}))
    head, *rest = name.rsplit(":", 2)
    if len(rest) == 2 and all(part.isdigit() and int(part) > 0 for part in rest):
        return of_template(head, int(rest[0]), int(rest[1]))
    from qrkt_hw.experiments import presets

    if name in presets.names() and not Path(name).is_dir():
        return of_options(name, merge(name, None, {}))
    from qrkt_hw.data.base import DataShape
    from qrkt_hw.runs import RunFolder, newest

    folder = RunFolder.open(Path(name) if name else newest(), trust)
    return of_options(f"run {folder.path}", folder.options(), DataShape.of(folder.description()))


@click.group(cls=Group)
def circuits() -> None:
    """List, show and analyze the circuit templates."""


@circuits.command("list", examples="qrkt-hw circuits list")
@json_flag
def list_(as_json: bool) -> None:
    """Every template: weights at 4 qubits and one layer, topology, source."""
    from qrkt_hw.circuits import describe

    found = [{"name": one.name, "weights": one.num_weights, "topology": one.topology, "source": one.reference}
             for one in describe()]  # fmt: skip
    if as_json:
        told(found)
        return
    rows = ([str(value) for value in one.values()] for one in found)
    table(("name", "weights", "topology", "source"), rows)
    echo("weights at 4 qubits and 1 layer")
    echo("your own: --ansatz path/to/file.py:function, FILE.qasm or FILE.qpy")


@circuits.command(
    old={"draw": "plot", "grid": "plot"},
    examples="qrkt-hw circuits show qrkt -n 6\nqrkt-hw circuits show brickwork --plot brickwork.png",
)
@click.argument("name", type=ANSATZ)
@click.option("--qubits", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option("--layers", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option("--plot", "draw", type=PATH, help="write a picture (.png, .pdf or .svg)")
@click.option("--qasm", is_flag=True, help="print OpenQASM 3 instead")
@json_flag
def show(name: str, qubits: int, layers: int, draw: Path | None, qasm: bool, as_json: bool) -> None:
    """Draw a template and say what it holds."""
    from qrkt_hw.circuits import build

    template = build(name, qubits, layers)
    circuit = template.circuit
    if qasm and as_json:
        raise UserError("--qasm: --json prints figures; leave one of them out")
    two = sum(1 for i in circuit.data if len(i.qubits) == 2)
    if qasm:
        from qiskit import qasm3

        echo(qasm3.dumps(template.circuit))
    elif as_json:
        figures = {"name": template.name, "qubits": template.num_qubits, "inputs": template.num_features,
                   "weights": template.num_weights, "observables": template.num_outputs, "depth": circuit.depth(),
                   "two_qubit_gates": two, "topology": template.topology, "source": template.reference}  # fmt: skip
        told(figures)
    else:
        echo(str(circuit.draw("text", fold=columns())))
        echo(
            f"{template.name}: {template.num_qubits} qubits, {template.num_features} inputs, "
            f"{template.num_weights} weights, {template.num_outputs} observables,\n"
            f"depth {circuit.depth()}, {two} two-qubit gates, {template.topology}"
        )
        echo(f"source: {template.reference}")
    if draw is not None:
        if draw.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise UserError(f"--plot: {draw} must end in .png, .pdf or .svg")
        from qrkt_hw.plots.charts import plot_circuit

        with writing("--plot", draw):
            plot_circuit(template, draw)
        echo(f"drawn to {draw}", err=qasm or as_json)


@circuits.command(old={"draw": "plot"}, examples="qrkt-hw circuits analyze qrkt -n 2-6 -l 1,2 --plot analysis.png")
@click.argument("name", type=ANSATZ)
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
        told({"template": name, "pairs": pairs, "samples": samples, "seed": seed, "rows": rows})
    else:
        titles = ("expres-\nsibility", "entan-\ngling", "gradient\nvariance", "dead\nweights", "inputs\nseen", "signal")
        table(("qubits", "layers", "weights", *titles), (
            (str(row["qubits"]), str(row["layers"]), str(row["weights"]), f"{row['expressibility']:.4f}",
             f"{row['entangling']:.4f}", f"{row['gradient_variance']:.2e}", str(row["dead_weights"]),
             f"{min(row['inputs_seen'])} to {max(row['inputs_seen'])}",
             "-" if row["signal"] is None else f"{row['signal']:.2f}, {row['signal_conditioned']:.2f}")
            for row in rows
        ), right=titles)  # fmt: skip
        echo(
            "expressibility: divergence from Haar-random states, 0 is best\n"
            "entangling: 0 product states, 1 most; inputs seen: by an output\n"
            "signal: linear part of the values, with angles as drawn and with\n"
            "--initial-angles conditioned; 0 is no signal, 0.61 a sine of each input"
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
