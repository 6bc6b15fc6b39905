"""What goes as one job: the service's limits on executions, input and time of a job, and how a round is cut to fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qrkt_hw.backends.device.pricing import JOB_SECONDS, LARGEST_JOB

LARGEST_BYTES = 45_000_000  # of 50 MB: the rest is for what is around the numbers
LONGEST = 0.9 * 3 * 3600  # seconds, of 3 hours: an estimate may be short


@dataclass(frozen=True)
class JobLimits:
    """What one job may hold.

    Attributes:
        executions: circuits x shots.
        size: bytes of its input.
        seconds: of the QPU.
    """

    executions: int = LARGEST_JOB
    size: int = LARGEST_BYTES
    seconds: float = LONGEST


@dataclass(frozen=True)
class Load:
    """A circuit with its parameter sets, as a job carries it.

    Attributes:
        rows: parameter sets.
        shots: of each.
        numbers: in each parameter set.
        instructions: of the circuit.
        row_seconds: QPU seconds of a row by estimate.
    """

    rows: int
    shots: int
    numbers: int
    instructions: int
    row_seconds: float

    @property
    def executions(self) -> int:
        return self.rows * self.shots

    @property
    def seconds(self) -> float:
        """QPU seconds, without the overhead of a job."""
        return self.rows * self.row_seconds

    @property
    def size(self) -> float:
        """Bytes in a job, roughly: base64 of the numbers, and the circuit."""
        return self.rows * self.row_size + 120.0 * self.instructions

    @property
    def row_size(self) -> float:
        return 8 * self.numbers * 4 / 3

    def most_rows(self, limits: JobLimits) -> int:
        """Rows that fit into a job, at least one."""
        most = [limits.executions / self.shots]
        if self.numbers:
            most.append((limits.size - 120.0 * self.instructions) / self.row_size)
        if self.row_seconds > 0:
            most.append(limits.seconds / self.row_seconds)
        return max(1, math.floor(min(most)))


def parts(rows: int, most: int) -> list[slice]:
    """Rows in portions of at most ``most``; one portion where there are none."""
    return [slice(start, min(rows, start + most)) for start in range(0, max(1, rows), most)]


def together(loads: Sequence[Load], limits: JobLimits) -> list[list[int]]:
    """Which loads go as one job: those of equal shots, in order, as many as fit."""
    groups: list[list[int]] = []
    for place, load in enumerate(loads):
        for group in groups:
            inside = [loads[k] for k in group] + [load]
            if (
                load.shots == inside[0].shots
                and sum(one.executions for one in inside) <= limits.executions
                and sum(one.size for one in inside) <= limits.size
                and sum(one.seconds for one in inside) <= limits.seconds
            ):
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def jobs_of(loads: Sequence[Load], limits: JobLimits) -> list[float]:
    """QPU seconds of every job that a round takes, the overhead of a job included."""
    cut = [
        replace(load, rows=part.stop - part.start)
        for load in loads
        for part in parts(load.rows, load.most_rows(limits))
    ]
    return [JOB_SECONDS + sum(cut[k].seconds for k in group) for group in together(cut, limits)]
