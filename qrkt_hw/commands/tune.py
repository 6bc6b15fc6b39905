"""``qrkt-hw tune``, ``baseline``, ``bench`` and ``fit-to``: many trainings or ways to run by one command."""

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.commands.options import (
    PROCESSES,
    TRAINING,
    backend_options,
    check_early,
    merge,
    on_ranks,
    options_from,
    ranks_in,
)
from qrkt_hw.errors import UserError, spelled, unknown
from qrkt_hw.runs.atomic import check_writable
from qrkt_hw.runs.folder import RUNS


@click.command(
    cls=cli.Command,
    first=("--search", "--trials", "--sampler", "--storage", "--preset", "--config", "--dataset", "--epochs",
           "--backend", "--out"),
    examples="""
qrkt-hw tune --search hidden=8,16 --search learning_rate=log:1e-3:1e-1
qrkt-hw tune --search layers=1:3 -p digits -e 5 -o tuning""",
)  # fmt: skip
@click.option(
    "--search", "searched", multiple=True, required=True, help="option=a,b,c, option=low:high or option=log:low:high"
)
@click.option(
    "--trials", type=click.IntRange(min=1), default=20, show_default=True, help="finished trials, over all processes"
)
@click.option("--sampler", type=cli.Word(["tpe", "random", "grid"]), default="tpe", show_default=True)
@click.option("--prune/--no-prune", default=True, show_default=True, help="stop trials below the median of the others")
@click.option("--storage", help="SQLAlchemy URL shared by several processes  [default: a file in --out]")
@click.option("--study", "name", default="qrkt-hw", show_default=True, help="name of the study in the storage")
@cli.preset_flag
@cli.config_flag
@click.option("--out", type=cli.PATH, default=Path("tuning"), show_default=True)
@cli.json_flag
@options_from(TRAINING)
def tune(
    searched: tuple[str, ...], trials: int, sampler: str, prune: bool, storage: str | None, name: str,
    preset: str | None, config: Path | None, out: Path, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Search over any options of train by validation AUROC; the test split chooses nothing.

    Called again with the same study it resumes; called on several machines with one --storage they share the trials.
    """
    from qrkt_hw.experiments import tuning

    dimensions = [tuning.parse(text) for text in searched]
    keys = [dimension.key for dimension in dimensions]
    _refuse_twice(keys, flags)
    options = merge(preset, config, flags)
    if options.model.kind == "gan":
        raise UserError("--model: tune searches by validation AUROC, which a gan has none of; take vit or text")
    if options != options.alone() or {"devices", "num_nodes"} & set(keys):
        raise UserError(
            "--devices: a trial runs in one process; start tune several times with one --storage to divide the trials"
        )
    tuning.check_space(options, dimensions)
    if not {"hidden", "heads", "mlp", "mlp_qubits", "image_size", "decoder_blocks", "pool"} & set(keys):
        check_early(options)
    check_writable(out, "--out")
    url = storage or f"sqlite:///{(out / 'study.db').absolute()}"
    study = tuning.open_study(name, url, dimensions, sampler, prune, options.training.seed)
    tuning.tune(options, dimensions, study, sampler, trials, out, cli.console(stderr=True))
    found, shares, files = tuning.rows(study), tuning.importances(study), tuning.write_study(study, out)
    if as_json:
        paths = [str(file) for file in files]
        cli.told({"trials": found, "importances": shares, "files": paths, "best": found[0]["run"]})
        return
    columns = ["trial", "state", "val_auroc", "epochs", *keys, "parameters"]
    cli.table(columns, ([_cell(row.get(column)) for column in columns] for row in found[:20]))
    for key, share in shares.items():
        cli.echo(f"{key} explains {share:.0%} of the spread")
    for file in files:
        cli.echo(str(file))
    cli.echo(f"best: {found[0]['run']}")


def _refuse_twice(keys: list[str], flags: dict[str, Any]) -> None:
    """Refuse an option that is searched twice, or searched and given."""
    twice = next((key for key in keys if keys.count(key) > 1 or flags.get(key) is not None), None)
    if twice is not None:
        raise UserError(f"--search: {twice} is given twice")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


@click.command(cls=cli.Command, examples="qrkt-hw baseline runs/NAME\nqrkt-hw baseline runs/NAME --trials 1 -e 5")
@cli.run_argument
@click.option("--trials", type=click.IntRange(1, 9), help="learning rates per side  [default: 3]")
@click.option("--epochs", type=click.IntRange(min=1), help="epochs of every trial  [default: the run's]")
@click.option("--out", type=cli.PATH, help="folder of the trials  [default: RUN-baseline]")
@cli.trust_flag
@cli.json_flag
@options_from(PROCESSES)
def baseline(
    run: Path | None, trials: int | None, epochs: int | None, out: Path | None, trust_ansatz: bool, as_json: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Train the classical baselines of RUN and compare: size-matched, parameter-matched and structured.

    The structured one has classical layers of the circuits' structure, and the command says what differs. Where these
    are the circuits by construction, nothing is trained for it.

    Every side, the quantum one too, gets the same trials and epochs; its learning rate is chosen by validation AUROC
    and the test split is read for the chosen run. Called again, it resumes where it stopped.

    The baselines of a GAN get its learning rates and as much CPU time as it had; all are measured by one protocol.
    """
    folder, ranks = cli.opened(run, trust_ansatz, err=as_json), ranks_in(flags)
    options = folder.options()
    if not options.has_circuits:
        raise UserError(f"run: {folder.path} has no circuits, so it has no classical baseline")
    if options.model.kind == "gan" and trials is not None:
        raise UserError("--trials: the baselines of a GAN take its own learning rates; leave it out")
    on_ranks(options, ranks, ("its --batch-size", options.data.batch_size))
    from qrkt_hw.commands.runs import comparison_rows, echo_comparison
    from qrkt_hw.experiments import baselines

    place = out or baselines.default_out(folder)
    groups, record = baselines.train_baselines(folder, trials or 3, epochs, place, cli.console(stderr=True))
    if as_json:
        cli.told({"rows": comparison_rows(groups), **record, "out": str(place)})
        return
    echo_comparison(groups)
    for structure, difference in record["structured"].items():
        cli.echo(f"structured ({structure}): {difference}")
    cli.echo(str(place))


@click.command(
    cls=cli.Command,
    examples="qrkt-hw bench --quick -a mine.py:circuit\nqrkt-hw bench -a brickwork --tasks digits,parity-3 -o bench",
)
@click.option("--ansatz", "ansaetze", multiple=True, help="your circuit: a name, file.py:function, or FILE.qasm")
@click.option("--quick", is_flag=True, help="small models, few epochs: minutes on two cores, without files of data")
@click.option("--tasks", help="names with commas  [default: all; with --quick those without files]")
@click.option("--seeds", type=click.IntRange(1, 100), help="trainings of each model  [default: 3; quick: 2]")
@click.option("--trials", type=click.IntRange(1, 9), help="learning rates of each model  [default: 3; quick: 1]")
@click.option("--qubits", type=click.IntRange(1, 64), help="features of a circuit  [default: 4, or the file's]")
@click.option("--layers", type=click.IntRange(1, 64), help="layers of your circuits  [default: 2]")
@click.option(
    "--projection",
    type=cli.Word(["quantum", "quantum-attention", "quantum-mlp"]),
    default="quantum-attention",
    show_default=True,
    help="where circuits stand",
)
@click.option("--data-dir", type=cli.PATH, help="folder of the data sets' files  [default: data]")
@click.option("--download", is_flag=True, help="fetch data sets that are missing")
@click.option("--out", type=cli.PATH, default=Path("bench"), show_default=True)
@cli.json_flag
def bench(
    ansaetze: tuple[str, ...], quick: bool, tasks: str | None, seeds: int | None, trials: int | None, as_json: bool,
    **how: Any,
) -> None:  # fmt: skip
    """Find out whether a circuit is any good: a suite of tasks, with other circuits and classical layers beside it.

    Every model of a task gets the same recipe, seeds and number of learning rates; validation chooses, test is
    reported. Called again, the command resumes. Writes bench.md, bench.json and bench.png.
    """
    from qrkt_hw.experiments.presets import chosen_tasks

    names = chosen_tasks(tasks, quick)  # a wrong name is refused before torch loads
    from qrkt_hw.experiments import bench as suite

    paths = [merge(None, None, {"ansatz": ansatz}).circuit.ansatz for ansatz in ansaetze]
    found = suite.Suite(names, paths, seeds=seeds or (2 if quick else 3), trials=trials or (1 if quick else 3),
                        quick=quick, **how)  # fmt: skip
    check_writable(found.out, "--out")
    record = found.run(cli.console(stderr=True))
    files = found.write(record)
    if as_json:
        cli.told(record)
        return
    header, rows = suite.table(record)
    cli.table(header, rows, right=header[2:])
    for line in suite.notes(record):
        cli.echo(line)
    for file in files:
        cli.echo(str(file))


@click.command(
    cls=cli.Command,
    examples="""
qrkt-hw fit-to digits --backend fake_torino --max-qpu-seconds 60
qrkt-hw fit-to digits-device --backend fake_fez --max-qpu-seconds 40""",
)
@click.argument("source", metavar="RUN|PRESET")
@click.option("--backend", required=True, help="the device, or its fake backend")
@click.option("--max-qpu-seconds", "limit", type=cli.LIMIT, required=True, help="the budget")
@click.option("--limit", "samples", type=click.IntRange(min=1), help="samples to infer  [default: the test split]")
@click.option("--epochs", type=click.IntRange(min=1), help="of a preset: epochs of each model's training  [default: 5]")
@click.option("--search", "searched", multiple=True, help="of a preset: option=a,b,c to try instead of the usual ones")
@click.option("--trials-dir", type=cli.PATH, help="of a preset: folder of its trainings  [default: runs/fit-to-PRESET]")
@click.option(
    "--check", type=click.IntRange(min=0), default=100, show_default=True,
    help="validation samples to check each proposal on the fake device, a minute of CPU time in all; 0: no check",
)  # fmt: skip
@click.option("--out", type=cli.PATH, help="write the first proposal for train --config and infer --config (.yaml)")
@click.option("--plot", type=cli.PATH, help="draw accuracy against QPU seconds (.png)")
@cli.data_dir_flag
@cli.trust_flag
@cli.json_flag
def fit_to(
    source: str, backend: str, limit: float, samples: int | None, epochs: int | None, searched: tuple[str, ...],
    trials_dir: Path | None, check: int, out: Path | None, plot: Path | None, data_dir: Path | None, trust_ansatz: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Ways to run RUN, or models like PRESET, within a budget of QPU seconds, by expected accuracy.

    Shots of each stage, replicas, buffer qubits and mitigation are chosen; of a preset also widths, layers, tokens and
    qubits: each model is trained for a few epochs, with the noise of the shots it can have. Accuracy is expected by the
    formulas of shot noise and the calibration, on validation samples; the test split chooses nothing.
    """
    from qrkt_hw import backends
    from qrkt_hw.experiments import presets

    names, there = presets.names(), Path(source).is_dir()
    preset = not there and spelled(source, names) in names
    source = spelled(source, names) if preset else source
    if not (there or preset or (RUNS / source).is_dir()):
        text = unknown("preset", source, names, see="qrkt-hw presets list")
        raise UserError(f"fit-to: {source!r} is no folder of a run, also not under {RUNS}/, and there is {text}")
    idle = next((name for name in ("--epochs", "--search", "--trials-dir") if name in cli.said() and not preset), None)
    if idle is not None:
        raise UserError(f"{idle}: the weights of a run stay as they are; leave it out, or name a preset")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot: {plot} must end in .png")
    backends.check_name(backend)
    place, options = backend_options({"backend": backend}), merge(source, None, {}) if preset else None
    folder = None if preset else cli.opened(Path(source), trust_ansatz, err=True)
    if (options or folder.options()).model.kind == "gan":  # type: ignore[union-attr]
        raise UserError(f"fit-to: {source} is a GAN, which has no accuracy; take vit or text")
    for name, file in (("--out", out), ("--plot", plot)):
        if file is not None and file.is_dir():
            raise UserError(f"{name}: {file} is a folder; name a file")
        if file is not None:
            check_writable(file.parent, name)
    from qrkt_hw.experiments import fitting

    said = cli.console(stderr=True)
    request = fitting.Request(place, limit, samples, data_dir, said)
    if options is not None:
        from qrkt_hw.experiments.tuning import check_space, parse

        dimensions = [parse(text) for text in searched]
        if any(not one.choices for one in dimensions):
            raise UserError("--search: fit-to tries values, as in hidden=8,16; it takes no interval")
        keys = [one.key for one in dimensions]
        _refuse_twice(keys, {})
        own = next((key for key in keys if key in fitting.OWN_KEYS), None)
        if own is not None:
            raise UserError(f"--search: fit-to sets {own} itself; leave it out")
        check_space(options, dimensions)
        where = trials_dir or RUNS / f"fit-to-{source}"
        found = fitting.of_preset(source, options, request, epochs or 5, dimensions, where)
    else:
        assert folder is not None
        with said.status("placements and shots"):
            found = fitting.of_run(folder, request)
    shown = fitting.chosen(found)
    with said.status("proposals on the fake device"):
        told = fitting.check(shown, request, check)
    lines = []
    if out is not None:
        with cli.writing("--out", out):
            lines = fitting.write_config(shown[0], request, out, f"qrkt-hw fit-to {source}", preset)
    if plot is not None:
        from qrkt_hw.plots.charts import plot_budget

        with cli.writing("--plot", plot):
            plot_budget([one.record() for one in found], limit, plot)
    if as_json:
        cli.told({"backend": backend, "limit": limit, "proposals": [one.record() for one in shown]})
        return
    models = list(dict.fromkeys(one.model for one in shown))
    header = ["accuracy\nexpected", "on fake\ndevice", "QPU s", "shots", "circuits", "replicas", "spacing", "min.\nESP",
              "miti-\ngation"]  # fmt: skip
    rows = [
        [f"{one.expected:.3f}", f"{one.checked['accuracy']:.3f}" if one.checked else "-", f"{one.seconds:.1f}",
         " ".join(map(str, one.shots if len(set(one.shots)) > 1 else one.shots[:1])), f"{one.circuits:,}",
         str(one.replicas), str(one.spacing), f"{one.min_fidelity:g}", one.mitigation]
        for one in shown
    ]  # fmt: skip
    if preset:
        header, rows = ["", *header], [[chr(65 + models.index(p.model)), *r] for p, r in zip(shown, rows, strict=True)]
    cli.table(header, rows, right=[name for name in header if not name.startswith("miti")], width=80)
    for place_of, name in enumerate(models) if preset else ():
        cli.echo(f"{chr(65 + place_of)}: {name}")
    if preset:
        cli.echo(f"each model is trained for {epochs or 5} epochs, with noise; a whole training has another accuracy")
    for line in ("accuracy expected on validation samples, by formula", told, *lines):
        cli.echo(line)
