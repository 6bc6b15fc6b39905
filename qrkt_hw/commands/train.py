"""``qrkt-hw train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands.lazy import Command
from qrkt_hw.commands.options import TRAINING, check_early, device_flags, merge, options_from, trust_flag
from qrkt_hw.commands.quick_start import PROGRAM, import_fabric
from qrkt_hw.commands.terminal import defined, echo
from qrkt_hw.errors import UserError


@click.command(cls=Command)
@click.option("--preset", help="start from a preset (qrkt-hw presets list)")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of options, over the preset")
@click.option("--out", type=click.Path(path_type=Path), help="run folder  [default: a new one under runs/]")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="go on with this run, with its own options; --backend NAME again where it bills",
)
@device_flags
@trust_flag
@options_from(TRAINING)
def train(
    preset: str | None,
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    resubmit: bool,
    replan: bool,
    max_qpu_seconds: float | None,
    max_cost: float | None,
    trust_ansatz: bool,
    **flags: Any,
) -> None:
    """Train a model and leave a run folder.

    Options stack: defaults, --preset, --config, flags. A YAML key is its flag with underscores.
    """
    from qrkt_hw.commands.console import Terminal
    from qrkt_hw.runs import RunFolder
    from qrkt_hw.runs.folder import read_json

    console = Terminal(stderr=True)
    with_resume = {"resubmit": resubmit, "replan": replan, "trust-ansatz": trust_ansatz}
    if resume is None and any(with_resume.values()):
        raise UserError(f"--{next(k for k, v in with_resume.items() if v)} goes with --resume RUN")
    from qrkt_hw.backends.device.budget import Budget

    budget = Budget(max_qpu_seconds, max_cost)
    program = click.get_current_context().find_root().obj == PROGRAM
    if resume is not None:
        backend = flags.pop("backend")  # repeated, to agree to what a device bills
        given = [k for k, v in {"preset": preset, "config": config, "out": out, **flags}.items() if v is not None]
        if given:
            raise UserError(f"--resume goes on with the run's own options; leave out --{given[0].replace('_', '-')}")
        folder = RunFolder.open(resume, trust_ansatz)
        folder.options(), folder.description()  # a damaged run is named at once
        if program:
            import_fabric()
        from qrkt_hw.training import fit

        run = fit.resume(folder, console, resubmit, replan, budget, backend)
    else:
        options = merge(preset, config, flags)
        check_early(options)
        if program:
            import_fabric()
        from qrkt_hw.training import fit

        run = fit.start(options, out, console, budget=budget)
    results = read_json(run.results)
    if "losses" in results:
        _of_a_gan(results)
        echo(str(run.path))
        return
    test, count = results["test"], results["parameters"]
    echo(
        f"test accuracy {test['accuracy']:.4f}  F1 {test['f1']:.4f}  AUROC {defined(test['auroc'])}  "
        f"(best epoch {results['best_epoch']}, {results['train_seconds']:.0f} s)"
    )
    echo(
        f"{count['total']} parameters, {count['quantum']} of them circuit angles; {results['qubits']} qubits a circuit"
    )
    echo(str(run.path))


def _of_a_gan(results: dict[str, Any]) -> None:
    losses = results["losses"]
    echo(
        f"generator loss {losses['generator_loss']:.4f}  discriminator loss {losses['discriminator_loss']:.4f}  "
        f"({results['epochs']} epochs, {results['train_seconds']:.0f} s)"
    )
    for side, count in results["parameters_of"].items():
        echo(f"{side}: {count['total']} parameters, {count['quantum']} of them circuit angles")
    echo("samples/training.gif shows it learn; draw more: qrkt-hw generate; measure it: qrkt-hw evaluate")
