"""Processes that train or evaluate together: which of them this is, which samples are its own, and sums over all.

Each batch is divided into slices, one for each rank. A rank's loss is the mean over its slice, weighted by its share of
the batch; gradients are added up in one all-reduce. Random numbers of a step are drawn for the whole batch, from
generators that are in the same state on every rank, and a rank takes the rows of its samples. So nothing but rounding
depends on the number of ranks.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qrkt_hw.errors import PARENT, UserError
from qrkt_hw.runs.config import Config

if TYPE_CHECKING:
    from qrkt_hw.backends import Backend

Item = TypeVar("Item")
Value = TypeVar("Value")
GRACE = 5.0  # seconds in which ranks that lost one of them end by themselves
ERROR = "qrkt-hw/error"  # key of the rendezvous under which a rank says why it ended


@dataclass(frozen=True)
class Share:
    """The samples ``start`` to ``stop`` of a batch of ``total``; ``weight`` is their share of it. A rank without a
    sample computes the batch's first one with weight 0, so that it takes part in every sum."""

    start: int
    stop: int
    total: int
    weight: float

    @classmethod
    def of(cls, total: int, rank: int, count: int) -> Share:
        start, stop = total * rank // count, total * (rank + 1) // count
        return cls(start, stop, total, (stop - start) / total) if start < stop else cls(0, 1, total, 0.0)


_share: Share | None = None  # of the batch of this step; None where this process has the whole


def set_share(share: Share | None) -> None:
    """Say which part of a batch this process computes from now on."""
    global _share
    _share = share


def share() -> Share | None:
    """The part of a batch that this process computes; None for all of it."""
    return _share


def shared() -> bool:
    """Whether this process computes a part of a batch only."""
    return _share is not None


def idle() -> bool:
    """Whether this process has no sample of the batch, and computes one that nobody reads."""
    return _share is not None and not _share.weight


def drawn(draw: Callable[[tuple[int, ...]], Tensor], shape: Sequence[int], axis: int = 0) -> Tensor:
    """``draw(shape)``, random numbers of samples along ``axis``; of several ranks each gets its rows of the batch's.
    Along the axis the samples may be there several times, as real and generated images are."""
    if _share is None:
        return draw(tuple(shape))
    size = _share.stop - _share.start
    copies, odd = divmod(shape[axis], size)
    assert not odd, f"{shape[axis]} rows of {size} samples"
    whole = draw((*shape[:axis], copies * _share.total, *shape[axis + 1 :]))
    return whole.unflatten(axis, (copies, _share.total)).narrow(axis + 1, _share.start, size).flatten(axis, axis + 1)


def dropout(inputs: Tensor, probability: float) -> Tensor:
    """torch's dropout of a training step; the batch stands first."""
    if _share is None:
        return F.dropout(inputs, probability)
    # on a GPU torch draws in the order of memory: the ones lie there as the inputs of the whole batch would
    strides = inputs.stride()
    order = sorted(range(inputs.ndim), key=lambda axis: -strides[axis])
    back = [order.index(axis) for axis in range(inputs.ndim)]

    def draw(shape: tuple[int, ...]) -> Tensor:
        return F.dropout(inputs.new_ones([shape[axis] for axis in order]).permute(back), probability)

    return inputs * drawn(draw, inputs.shape)


class Dropout(nn.Dropout):
    """torch's dropout, which does not depend on the number of ranks; the batch stands first."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if _share is None or not self.training else dropout(input, self.p)


class DropPath(nn.Module):
    """torchvision's ``stochastic_depth`` by rows: a sample is 0 with probability ``p`` in training, or else divided by
    ``1 - p``. It does not depend on the number of ranks; the batch stands first."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.p:
            return input

        def draw(shape: tuple[int, ...]) -> Tensor:
            return input.new_empty(shape).bernoulli_(1 - self.p).div_(1 - self.p)

        return input * drawn(draw, (len(input), *[1] * (input.ndim - 1)))


def part(mean: Tensor) -> Tensor:
    """Of a mean over this rank's samples its part in the mean over the batch: the ranks' parts add up to it."""
    return mean if _share is None else mean * _share.weight


def squared_mean(values: Tensor) -> Tensor:
    """The squared mean over the batch, of this rank's samples ``values``: weighted by :func:`part` value and gradient
    add up to those of the whole batch."""
    mean = values.mean()
    if _share is None:
        return mean.square()
    whole = here().sum(part(mean.detach()))
    return whole * (2 * mean - mean.detach())


def longest(length: int) -> int:
    """The largest of the ranks' lengths, where they share a batch."""
    return length if _share is None else max(here().gather(length))


class Ranks:
    """The processes of this job, this one among them; alone unless they were :func:`launched`.

    Attributes:
        rank, count: number of this process, and of all.
        fabric: Lightning's, which is launched; None where this process is alone.
        sent: bytes of gradients that this rank gave to all-reduces.
        advice: what to do where a rank is lost; the end of the sentence.
    """

    def __init__(self, fabric: Any = None, children: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        self.fabric, self.children = fabric, children
        self.rank: int = 0 if fabric is None else fabric.global_rank
        self.count: int = 1 if fabric is None else fabric.world_size
        self.sent, self.advice = 0, ""

    @property
    def leads(self) -> bool:
        """Whether this process writes, prints and shows."""
        return self.rank == 0

    def share(self, total: int) -> Share | None:
        """This rank's part of a batch; None where it is alone."""
        return None if self.count == 1 else Share.of(total, self.rank, self.count)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' values."""
        if self.count == 1:
            return values
        return self._collective(lambda: self.fabric.all_reduce(values.clone(), reduce_op="sum"))

    def add_up(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their sums over the ranks, in one all-reduce for each dtype."""
        if self.count == 1:
            return
        for dtype in dict.fromkeys(g.dtype for g in gradients):
            own = [g for g in gradients if g.dtype == dtype]
            flat = torch.cat([g.reshape(-1) for g in own])
            self.sent += flat.numel() * flat.element_size()
            self._collective(partial(torch.distributed.all_reduce, flat))
            sums = flat.split([g.numel() for g in own])
            torch._foreach_copy_(own, [s.view_as(g) for s, g in zip(sums, own, strict=True)])

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, on each of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        self._collective(lambda: torch.distributed.all_gather_object(found, value))
        return found

    def first(self, function: Callable[[], Value]) -> Value:
        """What rank 0 finds, on all ranks, or its UserError."""
        if self.count == 1:
            return function()
        found: Any = None
        if self.leads:
            try:
                found = True, function()
            except UserError as error:
                found = False, str(error)
        right, value = self._collective(lambda: self.fabric.broadcast(found))
        if not right:
            raise Joint(value)
        return value

    def together(self, function: Callable[[], Value]) -> Value:
        """What this rank finds; a UserError of any rank is one of all."""
        if self.count == 1:
            return function()
        value, error = None, ""
        try:
            value = function()
        except UserError as found:
            error = str(found)
        errors = self.gather(error)
        if any(errors):
            rank = next(k for k, said in enumerate(errors) if said)
            raise Joint(errors[rank] if rank == 0 else f"rank {rank}: {errors[rank]}")
        return value  # type: ignore[return-value]

    def same(self, facts: dict[str, str]) -> None:
        """Make sure that all ranks know the same. Raises UserError: one that does not, by its rank and the fact."""
        others = self.gather(facts)
        for rank, found in enumerate(others):
            for name, value in others[0].items():
                if found[name] != value:
                    raise Joint(
                        f"rank {rank} has another {name} ({found[name]}) than rank 0 ({value}); start all ranks with "
                        "the same program, options and files"
                    )

    def whole(self, values: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Rows of all samples in their order, of the rows of each rank; ``counts`` are the samples of the batches."""
        if self.count == 1:
            return list(values)
        shares = [[Share.of(n, rank, self.count) for n in counts] for rank in range(self.count)]
        everybody = self.gather([v.cpu() for v in values])
        found = []
        for place in range(len(values)):
            split = [e[place].split([s.stop - s.start for s in own]) for e, own in zip(everybody, shares, strict=True)]
            rows = [split[rank][b] for b in range(len(counts)) for rank in range(self.count) if shares[rank][b].weight]
            found.append(torch.cat(rows))
        return found

    def map_rows(self, function: Callable[[Tensor], Sequence[Tensor]], rows: Tensor, size: int) -> list[Tensor]:
        """Tensors of ``function`` for all rows, in batches of ``size``, of which each rank computes its part."""
        batches = rows.split(size)
        shares = [self.share(len(batch)) for batch in batches]
        found = [function(b if s is None else b[s.start : s.stop]) for b, s in zip(batches, shares, strict=True)]
        return self.whole([torch.cat(parts) for parts in zip(*found, strict=True)], [len(b) for b in batches])

    def map(self, function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
        """``function`` of all items, of which each rank computes every ``count``-th."""
        found: list[Any] = [None] * len(items)
        for rank, values in enumerate(self.gather([function(item) for item in items[self.rank :: self.count]])):
            found[rank :: self.count] = values
        return found

    def over_samples(self, backend: Backend) -> Ranks:
        """The ranks among which the samples of a model on a backend are divided: these, or this one alone where the
        backend samples. Then every rank evaluates the whole model, the ranks divide the simulations of circuits, and
        random numbers are those of one process.

        Raises UserError: a backend that runs in one process.
        """
        if self.count == 1 or not (backend.bills or backend.shots):
            return self
        if backend.bills or backend.spread is None:
            raise Joint(f"--devices: {backend.name!r} samples in one process; leave it out")
        backend.spread = self.map
        return Ranks()

    def _collective(self, work: Callable[[], Value]) -> Value:
        try:
            return work()
        except RuntimeError as error:  # gloo and NCCL raise nothing narrower when a process is gone
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise Joint(self.lost()) from error

    def lost(self) -> str:
        """One sentence on why the ranks cannot continue."""
        with suppress(Exception):
            store = torch.distributed.distributed_c10d._get_default_store()
            if store.check([ERROR]):
                return bytes(store.get(ERROR)).decode()
        time.sleep(0.2 if self.children else 0)  # a killed child is one to its parent only after a moment
        ended = [(k, child.poll()) for k, child in enumerate(self.children, 1) if child.poll()]
        which = f"rank {ended[0][0]} ended with status {ended[0][1]}" if ended else "another rank ended"
        return f"--devices: {which}, and the others cannot continue without it{self.advice}"


class Joint(UserError):
    """An error that every rank raises."""


_here = Ranks()
_inside = False  # of :func:`launched`


def here() -> Ranks:
    """The ranks that this process belongs to."""
    return _here


def planned(options: Config, samples: tuple[str, int] | None = None) -> tuple[int, int]:
    """Processes on this machine, and machines: by torchrun or srun where one of them started this process, else by the
    options. ``samples`` are those that are divided, in words and their number; default: a batch of a training.

    Raises UserError: options that say otherwise, or that cannot be."""
    t = options.training
    given = None if t.devices in (None, "auto") else int(str(t.devices))
    by = started_by()
    if by is not None:
        name, local, nodes = by
        if given not in (None, local):
            raise UserError(f"--devices: {name} started {local} processes on this machine, not {given}; leave it out")
        if t.num_nodes not in (1, nodes):
            raise UserError(f"--num-nodes: {name} started processes on {nodes} machines; leave it out")
    else:
        local, nodes = given or 1, t.num_nodes
        if t.devices == "auto" and t.accelerator == "cuda":
            local = max(1, torch.cuda.device_count())
        if nodes > 1 and "MASTER_ADDR" not in os.environ:
            raise UserError(
                f"--num-nodes: {nodes} machines need srun or torchrun on each of them, or MASTER_ADDR, MASTER_PORT and "
                "NODE_RANK in the environment"
            )
    if t.accelerator == "cuda" and torch.cuda.device_count() < local:
        seen = f"torch sees {torch.cuda.device_count()} GPUs here"
        raise UserError(f"--devices: {local} on cuda, and {seen}; take --devices {max(1, torch.cuda.device_count())}")
    count, (words, batch) = local * nodes, samples or ("--batch-size", options.data.batch_size)
    if count > batch:
        raise UserError(f"--devices: {count} ranks and {words} {batch}: every rank needs a sample of a batch")
    return local, nodes


def started_by() -> tuple[str, int, int] | None:
    """The program that started the ranks, how many there are on this machine, and on how many machines."""
    e = os.environ
    if "TORCHELASTIC_RUN_ID" in e:
        local = int(e["LOCAL_WORLD_SIZE"])
        return "torchrun", local, int(e["WORLD_SIZE"]) // local
    if int(e.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        if "SLURM_NTASKS_PER_NODE" not in e:
            raise UserError("--devices: srun was started without --ntasks-per-node, by which ranks find their GPU")
        local = int(e["SLURM_NTASKS_PER_NODE"])
        return "srun", local, int(e["SLURM_STEP_NUM_TASKS"]) // local
    return None


@contextmanager
def launched(options: Config, samples: tuple[str, int] | None = None) -> Iterator[Ranks]:
    """Start the processes that the options ask for, where torchrun or srun did not, and be one of them. Within it,
    what asks for one process is one more part of the job. ``samples`` as for :func:`planned`.

    Raises UserError: too few GPUs or samples, a port that is in use, or a rank that is lost on the way.
    """
    global _inside
    if _inside and options == options.alone():
        yield _here
        return
    local, nodes = planned(options, samples)
    if local * nodes > 1 and _here.count == 1:
        _launch(options, local, nodes)
    if _here.count != local * nodes:
        raise UserError(f"--devices: this program already runs on {_here.count} ranks; take --devices {_here.count}")
    inside = threading.Event()
    if _here.children:
        threading.Thread(target=_watch, args=(_here, inside), daemon=True).start()
    _inside = True
    try:
        yield _here
    except Exception as error:
        if _here.count > 1 and not _here.leads and not isinstance(error, Joint):
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            _say(f"rank {_here.rank}: {kind}{error}")
        raise
    finally:
        _inside = False
        inside.set()
        set_share(None)


def fabric_of(options: Config, **how: Any) -> Any:
    """Lightning's Fabric with the accelerator and the precision of the options."""
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # what it tells goes to no log of ours
    return Fabric(accelerator=options.training.accelerator, precision=options.training.precision, **how)


def _launch(options: Config, local: int, nodes: int) -> None:
    global _here
    from datetime import timedelta

    from lightning_fabric.strategies import DDPStrategy

    class Strategy(DDPStrategy):
        """Processes and their group without torch's wrapper: it hooks into one backward pass, and a gradient penalty
        has two; a whole step has one all-reduce of our own."""

        def setup_module(self, module: nn.Module) -> Any:
            return module

    children = _children(local, nodes) if started_by() is None and "LOCAL_RANK" not in os.environ else []
    if PARENT in os.environ:
        threading.Thread(target=_follow, args=(int(os.environ[PARENT]),), daemon=True).start()
    atexit.register(_end, children)
    fabric = fabric_of(options, devices=local, num_nodes=nodes, strategy=Strategy(timeout=timedelta(minutes=30)))
    try:
        fabric.launch()
    except (RuntimeError, ValueError) as error:  # torch.distributed's errors are of the first kind
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise UserError(f"MASTER_PORT: {place} is in use; set MASTER_PORT to a free port") from error
        said = " ".join(str(error).split())[:200]
        raise UserError(f"--devices: the ranks did not find each other at {place} ({said})") from error
    _here = Ranks(fabric, children)


def _children(local: int, nodes: int) -> list[subprocess.Popen[bytes]]:
    """Start this very command again for every other rank of this machine."""
    if hasattr(sys, "ps1") or "ipykernel" in sys.modules:
        raise UserError("--devices: several processes start from a script or the command line, not interactively")
    address = os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as found:  # before a child waits there for somebody else
        wanted = int(os.environ.get("MASTER_PORT", 0))
        node = int(os.environ.setdefault("NODE_RANK", "0"))
        if node == 0:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind(("", wanted))
            except OSError as error:
                raise UserError(f"MASTER_PORT: {address}:{wanted} is in use; set MASTER_PORT to a free port") from error
            wanted = found.getsockname()[1]
    os.environ |= {"MASTER_PORT": str(wanted), "LOCAL_RANK": "0", "WORLD_SIZE": str(local * nodes)}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // local)))
    command = [sys.executable, *sys.orig_argv[1:]]
    own = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, PARENT: str(os.getpid())}
    return [subprocess.Popen(command, env={**own, "LOCAL_RANK": str(k)}) for k in range(1, local)]


def _say(text: str) -> None:
    """Leave word for rank 0, end the connections so that it looks, and give it time to tell."""
    with suppress(Exception):
        torch.distributed.distributed_c10d._get_default_store().set(ERROR, text)
        torch.distributed.destroy_process_group()
    time.sleep(GRACE / 2)


def _watch(ranks: Ranks, inside: threading.Event) -> None:
    """End this process where a child is gone and the main thread waits for it for ever."""
    while not inside.wait(0.5):
        if any(child.poll() for child in ranks.children) and not inside.wait(GRACE):
            sys.stderr.write(f"qrkt-hw: {ranks.lost()}\n")
            sys.stderr.flush()
            _kill(ranks.children)
            os._exit(2)


def _follow(parent: int) -> None:
    """End this process where the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(2)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Leave no process and no connection behind."""
    with suppress(Exception):
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    until = time.monotonic() + 2 * GRACE
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, until - time.monotonic()))
    _kill(children)


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()
