"""``qrkt-hw launch``."""

import shlex
from pathlib import Path

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.commands.options import check_early, given, merge
from qrkt_hw.errors import UserError

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


@click.command(cls=cli.Command)
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
    """Print the batch script that trains RUN.yaml, the options of a training, on a cluster.

    qrkt-hw launch --slurm RUN.yaml --nodes 4 --gpus 4 > job.sh; sbatch job.sh
    """
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
