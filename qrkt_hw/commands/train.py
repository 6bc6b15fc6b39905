"""``qrkt-hw train``, and ``qrkt-hw launch``, which prints the batch script of one on several machines."""

import shlex
from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.commands.interface import import_fabric
from qrkt_hw.commands.options import (
    TRAINING,
    backend_options,
    check_early,
    defined,
    given,
    is_program,
    merge,
    options_from,
)
from qrkt_hw.errors import UserError, flag, rank_and_count, restarted
from qrkt_hw.runs.sections import RANKS


@click.command(
    cls=cli.Command,
    first=("--preset", "--dataset", "--data-dir", "--ansatz", "--qubits", "--layers", "--epochs", "--backend", "--out",
           "--resume"),
    examples="""
qrkt-hw train                                   the digits of scikit-learn
qrkt-hw train -p best-mnist --download          qrkt-hw presets list
qrkt-hw train -a brickwork -n 6 -l 2 -e 10      another circuit
qrkt-hw train --resume runs/NAME                after it was stopped""",
)  # fmt: skip
@cli.preset_flag
@cli.config_flag
@click.option("--out", type=cli.PATH, help="run folder  [default: a new one under runs/]")
@click.option("--name", help="name of the run: its folder is runs/NAME")
@click.option(
    "--resume",
    type=cli.PATH,
    help="resume this run with its own options; --epochs N trains longer; --devices and --num-nodes may change; "
    "--backend NAME again where it bills",
)
@click.option("--from", "source", type=cli.PATH, help="fine-tune: start from the options and weights of this run")
@cli.trust_flag
@cli.json_flag
@options_from(TRAINING)
@cli.device_flags
def train(
    preset: str | None, config: Path | None, out: Path | None, name: str | None, resume: Path | None,
    source: Path | None, device: dict[str, Any], trust_ansatz: bool, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Train a model and leave a run folder.

    Options stack: defaults, --preset (or the options of --from), --config, flags. A YAML key is its flag with
    underscores.
    """
    from qrkt_hw.runs import RunFolder
    from qrkt_hw.runs.folder import named, read_json

    said = cli.console(stderr=True)
    with_resume = {"resubmit": device["resubmit"], "replan": device["replan"]}
    with_resume |= {"trust_ansatz": trust_ansatz and source is None}
    if resume is None and any(with_resume.values()):
        raise UserError(f"{flag(next(key for key, value in with_resume.items() if value))} goes with --resume RUN")
    program = is_program()
    if resume is not None:
        backend = flags.pop("backend")  # repeated, to agree to what a device bills
        epochs = flags.pop("epochs")
        how = given({key: flags.pop(key) for key in RANKS})
        flags = {"preset": preset, "config": config, "out": out, "name": name, "from": source, **flags}
        others = list(given(flags))
        if others:
            raise UserError(f"--resume uses the run's own options; leave out {flag(others[0])}")
        backend_options(how)  # a wrong value is named at once
        if epochs is not None and epochs < 1:
            raise UserError(f"--epochs: {epochs} is less than 1")
        folder = RunFolder.open(resume, trust_ansatz)
        folder.options(), folder.description()  # a damaged run is named at once
        with cli.busy(said, "loading torch and Qiskit"):
            if program:
                import_fabric()
            from qrkt_hw.training import fit

        run = fit.resume(folder, said, agreed=backend, epochs=epochs, ranks_of=how, **device)
    else:
        if name is not None and out is not None:
            raise UserError("--name: --out names the folder already; leave one of them out")
        if source is not None and preset is not None:
            raise UserError("--preset: --from starts from the options of its run; leave one of them out")
        out = named(name) if name is not None else out
        origin = None if source is None else RunFolder.open(source, trust_ansatz)
        options = merge(preset, config, flags, origin)
        check_early(options)
        with cli.busy(said, "loading torch and Qiskit"):
            if program:
                import_fabric()
            from qrkt_hw.training import fit

        if restarted() and out is not None and RunFolder(out).config.is_file():
            folder = RunFolder.open(out)  # torchrun started all ranks again
            if folder.options().alone() != options.alone():
                raise UserError(f"--out: {out} exists already, with other options; name another folder")
            run = fit.resume(folder, said, **device)
        else:
            run = fit.start(options, out, said, budget=device["budget"], source=origin, preset=preset)
    if rank_and_count()[0]:
        return  # the first rank tells
    results = read_json(run.results)
    if as_json:
        cli.told({"run": str(run.path), **results})
        return
    if "losses" in results:
        losses = results["losses"]
        cli.echo(
            f"generator loss {losses['generator_loss']:.4f}  discriminator loss {losses['discriminator_loss']:.4f}  "
            f"({results['epochs']} epochs, {results['train_seconds']:.0f} s)"
        )
        for side, count in results["parameters_of"].items():
            cli.echo(f"{side}: {count['total']} parameters, {count['quantum']} of them circuit angles")
        cli.echo("samples/training.gif shows it learn")
    else:
        test, count = results["test"], results["parameters"]
        cli.echo(
            f"test accuracy {test['accuracy']:.4f}  F1 {test['f1']:.4f}  AUROC {defined(test['auroc'])}  "
            f"(best epoch {results['best_epoch']}, {results['train_seconds']:.0f} s)"
        )
        circuits = f"{count['quantum']} of them circuit angles; {results['qubits']} qubits a circuit"
        cli.echo(f"{count['total']} parameters, {circuits}")
    if (agreement := results.get("agreement")) is not None:
        accuracy = agreement.get("accuracy")
        what = "generated samples:" if accuracy is None else f"test samples: accuracy {accuracy:.4f},"
        cli.echo(
            f"{results['backend']} on {agreement['samples']} {what} largest difference "
            f"{agreement['largest_difference']:.0e}, {agreement['circuits']:,} circuits, {agreement['seconds']:.0f} s"
        )
    cli.echo(str(run.path))
    _next(run.path, "losses" in results)


def _next(run: Path, gan: bool) -> None:
    """What one may do with a trained run."""
    place = shlex.quote(str(run))
    follows = {
        f"qrkt-hw generate {place}": "more images",
        f"qrkt-hw evaluate {place}": "how good they are",
    } if gan else {
        f"qrkt-hw infer {place} IMAGE": "classes of your own",
        f"qrkt-hw infer {place} --ablate batch-mean": "what its circuits do",
        f"qrkt-hw resources {place} -b fake_torino": "its price on a device",
        f"qrkt-hw baseline {place}": "classical models beside it",
    }  # fmt: skip
    width = max(map(len, follows))
    fits = len("next:   ") + width + max(map(len, follows.values())) <= cli.columns()
    for command, what in follows.items():
        cli.echo(f"next: {command:{width}}  {what}" if fits else f"next: {command}\n      {what}", err=True)


SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{gpus}#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --output={name}-%j.log
#SBATCH --requeue

# where the ranks find each other: the first machine, at a port that is the job's own
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# the run folder must lie where all machines see it; a requeued job resumes after its last complete epoch
if [ -e {out}/config.yaml ]; then TRAIN=(--resume {out}); else TRAIN=({train}); fi
srun --kill-on-bad-exit=1 qrkt-hw train "${{TRAIN[@]}}"
"""


@click.command(
    cls=cli.Command,
    examples="qrkt-hw launch --slurm RUN.yaml --nodes 4 --gpus 4 > job.sh && sbatch job.sh",
)
@click.argument("file", type=cli.PATH, metavar="RUN.yaml")
@click.option("--slurm", is_flag=True, help="print a batch script for sbatch (the only kind of script)")
@click.option("--nodes", type=click.IntRange(1, 65_536), default=1, show_default=True, help="machines")
@click.option("--gpus", type=click.IntRange(0, 1024), default=1, show_default=True,
              help="GPUs of each machine, one rank for each GPU; 0: on CPUs")  # fmt: skip
@click.option("--tasks", type=click.IntRange(1, 1024), help="ranks on each machine  [default: its GPUs, or 1]")
@click.option("--cpus", type=click.IntRange(1, 1024), default=8, show_default=True, help="CPUs of a rank")
@click.option("--time", default="24:00:00", show_default=True, help="time limit of the job")
@click.option("--out", type=cli.PATH, help="run folder  [default: runs/ and the name of RUN.yaml]")
def launch(
    file: Path, slurm: bool, nodes: int, gpus: int, tasks: int | None, cpus: int, time: str, out: Path | None
) -> None:
    """Print the batch script that trains RUN.yaml, the options of a training, on a cluster."""
    if not slurm:
        raise UserError("launch: name the kind of script: --slurm")
    tasks = tasks or max(1, gpus)
    if gpus and tasks != gpus:
        raise UserError(f"--tasks: {tasks} ranks on {gpus} GPUs; a GPU has one rank, so leave --tasks out")
    flags = {"accelerator": "cuda" if gpus else "cpu"}
    config = merge(None, file, flags)
    check_early(config)
    if nodes * tasks > config.data.batch_size:
        raise UserError(
            f"--nodes: {nodes * tasks} ranks and batch_size {config.data.batch_size} of {file}: every rank needs a "
            "sample of a batch"
        )
    folder = shlex.quote(str(out or Path("runs") / file.stem))
    options = " ".join(f"--{key} {shlex.quote(str(value))}" for key, value in given(flags).items())
    train = f"--config {shlex.quote(str(file))} {options} --out {folder}"
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in file.stem)
    per_node = f"#SBATCH --gres=gpu:{gpus}\n" if gpus else ""
    click.echo(
        SCRIPT.format(
            name=name, nodes=nodes, tasks=tasks, gpus=per_node, cpus=cpus, time=shlex.quote(time), out=folder,
            train=train,
        ), nl=False,
    )  # fmt: skip
