"""Several ranks of one job on this machine, as torchrun would start them; processes of a server that has torch loaded,
so that starting them takes no time."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

LOADED = ["qrkt_hw.training.fit", "qrkt_hw.experiments.python", "tests.acceptance.on_ranks", "lightning_fabric"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LOADED)

# keys of small runs: a classifier and a GAN
TINY = {"limit": 130, "batch_size": 25, "rk": "rk1", "rk_blocks": 1, "warmup_steps": 2, "dropout": 0.2, "epochs": 3}
TINY |= {"augment": "crop-flip"}
SMALL = {**TINY, "epochs": 2, "augment": "none"}
GAN = {"model": "gan", "limit": 90, "batch_size": 16, "latent": 8, "generator_hidden": 16, "hidden": 16, "heads": 2}
GAN |= {"mlp": 16, "warmup_steps": 2, "epochs": 3, "diffaugment": "color,translation,cutout", "augment": "flip"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun puts there for a rank of a job on one machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    return {
        **{name: str(value) for name, value in numbers.items()},
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def slurm(rank: int, count: int, port: int) -> dict[str, str]:
    """What srun puts there."""
    numbers = {"PROCID": rank, "LOCALID": rank, "NODEID": 0, "NTASKS": count, "STEP_NUM_TASKS": count, "NNODES": 1}
    found = {f"SLURM_{name}": str(value) for name, value in numbers.items()}
    return found | {"SLURM_NTASKS_PER_NODE": str(count), "SLURM_JOB_ID": "123456", "SLURM_JOB_NAME": "train",
                    "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip


def _one(pipe: Any, given: dict[str, str], function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    import torch

    from qrkt_hw.errors import UserError

    os.environ.update(given)
    torch.set_num_threads(1)
    try:
        pipe.send(function(*arguments))
    except UserError as error:
        pipe.send(error)


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any, by: Any = environment) -> list[Any]:
    """What the function returns, or the UserError it raises, on each rank; a function of a module that can be imported.
    Its arguments may be lists of one for each rank where they are wrapped in :class:`Each`."""
    port, started = free_port(), []
    for rank in range(count):
        ours, theirs = SERVER.Pipe(duplex=False)
        own = [a.values[rank] if isinstance(a, Each) else a for a in arguments]
        process = SERVER.Process(target=_one, args=(theirs, by(rank, count, port), function, own), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    found = []
    try:
        for _, pipe in started:
            assert pipe.poll(120), "a rank hangs"
            found.append(pipe.recv())
    finally:
        for process, _ in started:
            process.join(20)
            alive = process.is_alive()
            process.kill()
            assert not alive, "a rank does not end"
    return found


class Each:
    """A value for each rank."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values


def steps(keys: dict[str, Any], count: int = 20) -> dict[str, Any]:
    """Losses of so many steps, epoch figures, the hash and the values of the weights, and bytes that were sent."""
    import torch
    from rich.console import Console

    from qrkt_hw import backends
    from qrkt_hw.data import load_data, ranks
    from qrkt_hw.models.weights import sha256
    from qrkt_hw.runs.config import Config
    from qrkt_hw.training import fit

    options = Config(**keys)
    with ranks.launched(options) as there:
        data = load_data(options.data)
        backend = backends.make(options.backend, options.training.seed, Console(quiet=True))
        model = fit.fresh_model(options, data, backend)
        task = fit.make_task(options, data, model)
        losses, figures, number, epoch = [], [], 0, 0
        while number < count:
            epoch += 1
            task.start_epoch(epoch)
            for batch in task.batches:
                task.step(task.fabric.to_device(batch), number)
                own = task._measured[-1] if hasattr(task, "_measured") else task._losses[-1][None]
                losses.append(there.sum(own).tolist())
                number += 1
            figures.append(task.end_epoch(epoch))
        state = {k: v.tolist() for k, v in model.state_dict().items() if v.is_floating_point()}
        size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        return {"losses": losses[:count], "figures": figures, "sha256": sha256(model.state_dict()), "state": state,
                "sent": there.sent, "bytes": size, "steps": number, "torch": torch.__version__}  # fmt: skip


def trained(folder: str, keys: dict[str, Any], name: str = "run", after: Any = None) -> Any:
    """Train a run, or resume it where it is there; returns its results. ``after`` is done to this rank first."""
    from qrkt_hw.data import ranks
    from qrkt_hw.experiments.python import train

    place = f"{folder}/{name}"
    if after is not None:
        after()
    run = train(resume=place) if os.path.exists(place) else train(out=place, **keys)  # noqa: PTH110
    return run.results if ranks.here().leads else None


def commands(folder: str, lines: Sequence[Sequence[Any]]) -> list[Any]:
    """What each command line gives in a folder: ``returncode, stdout, stderr``."""
    from pathlib import Path

    from tests.command_line import qrkt

    return [qrkt(*line, cwd=Path(folder)) for line in lines]


def die_at(moment: str) -> None:
    """Let this process be killed at a moment of its training."""
    from tests.acceptance import killing

    killing.arrange(moment)


def of_another_version() -> None:
    from importlib import metadata

    found = metadata.version
    metadata.version = lambda name: "0.0.1" if name == "qrkt-hw" else found(name)


def of_other_labels() -> None:
    from qrkt_hw.training import fit

    load = fit.load_data

    def loaded(*arguments: Any) -> Any:
        data = load(*arguments)
        data.splits["train"].tensors[-1][3] += 1
        return data

    fit.load_data = loaded


def damaged() -> None:
    """Let reading a batch of the second epoch fail."""
    from qrkt_hw.data import batches
    from qrkt_hw.errors import UserError

    read, calls = batches._Fetched.__getitem__, [0]

    def broken(self: Any, indices: Any) -> Any:
        calls[0] += 1
        if calls[0] == 7:
            return UserError("image 17 is damaged")
        return read(self, indices)

    batches._Fetched.__getitem__ = broken


def flags(keys: dict[str, Any]) -> list[str]:
    """Keys of a configuration as flags of the command line."""
    return [part for key, value in keys.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def whole(found: list[Any]) -> list[Any]:
    """What every rank returned; raises what one of them raised."""
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found
