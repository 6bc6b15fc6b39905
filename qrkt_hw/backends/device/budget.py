"""QPU seconds by IBM's formulas, their price, and limits on them.

IBM, "Workload usage": a job takes about 2 s, plus repetition delay and circuit duration for every execution; or
2 s + 0.00035 s an execution. A Sampler job holds at most 10 million executions ("Job limits"); larger ones are split.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrkt_hw.errors import UserError, sentence

PLAN = "payg"  # whose price counts for limits of money
JOB_SECONDS = 2.0
QUICK_SECONDS = 0.00035
LARGEST_JOB = 10_000_000  # executions
DEFAULT_DELAY = 250e-6  # s between two executions, of a device that does not say


class Plan(BaseModel):
    """A way of paying."""

    model_config = ConfigDict(extra="forbid")

    usd_per_second: float = Field(ge=0)
    free_seconds: float = Field(0, ge=0)
    period_days: int | None = Field(None, ge=1)


class Prices(BaseModel):
    """The price list: when it was read, where, and the plans by name."""

    model_config = ConfigDict(extra="forbid")

    date: str
    source: str
    plans: dict[str, Plan]


@dataclass(frozen=True)
class Usage:
    """What jobs use of a QPU: jobs, circuits x shots, and QPU seconds by the long and the short form."""

    jobs: int
    executions: int
    seconds: float
    seconds_quick: float


def usage(executions: int, rep_delay: float, duration: float, submissions: int = 1) -> Usage:
    """QPU time of independent circuits.

    Args:
        executions: circuits x shots.
        rep_delay: seconds between two executions.
        duration: mean seconds of a circuit, its measurement included.
        submissions: calls among which the executions are divided evenly; each is at least one job.
    """
    if executions == 0:
        return Usage(0, 0, 0.0, 0.0)
    jobs = submissions * -(-executions // (submissions * LARGEST_JOB))
    overhead = JOB_SECONDS * jobs
    return Usage(
        jobs, executions, overhead + (rep_delay + duration) * executions, overhead + QUICK_SECONDS * executions
    )


@lru_cache(maxsize=1)
def prices() -> Prices:
    """The price list: the user's own where there is one, else the one that ships with the package.

    Raises:
        UserError: the user's file is not a price list.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    own = Path(home) / "qrkt-hw" / "prices.yaml"
    shipped = resources.files("qrkt_hw.backends.device").joinpath("prices.yaml")
    file, name = (own, str(own)) if own.is_file() else (shipped, "prices.yaml")
    try:
        return Prices.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{name}: {sentence(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also what is no text, or nested too deeply
        raise UserError(f"{name} is not YAML") from error


class Budget:
    """A limit on QPU seconds, on money, or on both; without either nothing is limited.

    Args:
        qpu_seconds: that may be billed; None for no limit.
        usd: that may be billed, at pay-as-you-go prices; None for no limit.
        where: the flag or key that sets the limit of seconds, for messages.
    """

    def __init__(
        self, qpu_seconds: float | None = None, usd: float | None = None, where: str = "--max-qpu-seconds"
    ) -> None:
        self.qpu_seconds, self.usd, self.where = qpu_seconds, usd, where
        self.billed = 0.0
        price = prices().plans[PLAN].usd_per_second
        by_cost = usd / price if usd is not None and price else None  # a price of 0 is no limit
        self.by_cost = by_cost is not None and (qpu_seconds is None or by_cost < qpu_seconds)
        self.limit = by_cost if self.by_cost else qpu_seconds

    @classmethod
    def of(cls, backend: Any, given: Budget | None = None) -> Budget | None:
        """The budget that was given, else the backend's own; None without a limit.

        Raises:
            UserError: one was given, and the backend is no device that samples.
        """
        if given is not None and given.flag is not None:
            if not backend.shots or backend.target is None:
                raise UserError(
                    f"{given.flag} applies only to devices that sample; backend {backend.name!r} is a simulator: name "
                    "a device, or a fake one with --shots"
                )
            return given
        own = backend.max_seconds
        return None if own is None else cls(own, where=f"max_seconds of backend {backend.name}")

    @property
    def flag(self) -> str | None:
        """The flag that was given; None where neither was."""
        return self.where if self.qpu_seconds is not None else "--max-cost" if self.usd is not None else None

    @property
    def left(self) -> float | None:
        """Seconds that are left, at least 0; None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self.billed)

    def admit(self, seconds: float) -> None:
        """Let a job of so many estimated seconds through.

        Raises:
            UserError: it would exceed the limit; names limit, billed and needed.
        """
        if self.limit is not None and self.billed + seconds > self.limit:
            over = self.billed + seconds - self.limit
            raise UserError(
                f"{self.named}: {self.billed:.1f} s are billed and the next job needs {seconds:.1f} s, "
                f"{over:.1f} s more than the limit; what came back is kept"
            )

    def charge(self, seconds: float) -> None:
        """Add what a job was billed."""
        self.billed += seconds

    @property
    def named(self) -> str:
        """The limit that binds, with its flag and value."""
        if self.by_cost:
            return f"--max-cost {self.usd:g} USD ({self.limit:.1f} s)"
        return f"{self.where} {self.qpu_seconds:g} s"
