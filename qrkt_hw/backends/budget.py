"""QPU seconds by IBM's formulas, their price, and limits on them.

IBM, "Workload usage": a job takes about 2 s, plus repetition delay and circuit duration for every execution; or
2 s + 0.00035 s an execution. The larger of the two counts everywhere. A Sampler job holds at most 10 million executions
("Job limits"); larger ones are split.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrkt_hw.backends.entries import UniqueKeyLoader, config_file
from qrkt_hw.errors import UserError, sentence

PLAN = "payg"  # whose price counts for limits of money
JOB_SECONDS = 2.0
QUICK_SECONDS = 0.00035
LARGEST_JOB = 10_000_000  # executions
DEFAULT_DELAY = 250e-6  # s between two executions, of a device that does not say


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")

    usd_per_second: float = Field(ge=0)
    free_seconds: float = Field(0, ge=0)
    period_days: int | None = Field(None, ge=1)


class Prices(BaseModel):
    model_config = ConfigDict(extra="forbid")

    date: str  # when it was read
    source: str  # where
    plans: dict[str, Plan]  # by name


@dataclass(frozen=True)
class Usage:
    """What jobs use of a QPU."""

    jobs: int  # submitted; each has its overhead
    executions: int  # circuits x shots
    seconds_long: float  # by the long form
    seconds_quick: float  # by the short form

    @property
    def seconds(self) -> float:
        """The larger one."""
        return max(self.seconds_long, self.seconds_quick)


def larger(executions: int, seconds: float) -> float:
    """Seconds of executions, which take ``seconds`` by the long form, by the larger form; no overhead of a job."""
    return max(seconds, QUICK_SECONDS * executions)


def usage(executions: int, rep_delay: float, duration: float, submissions: int = 1) -> Usage:
    """QPU time of independent circuits, ``executions`` being circuits x shots.

    ``rep_delay`` are seconds between two executions, ``duration`` mean seconds of a circuit, its measurement included.
    The executions are divided evenly among ``submissions``, each of which is at least one job.
    """
    jobs = submissions * -(-executions // (submissions * LARGEST_JOB))  # none without executions
    by_form = (JOB_SECONDS * jobs + each * executions for each in (rep_delay + duration, QUICK_SECONDS))
    return Usage(jobs, executions, *by_form)


@lru_cache(maxsize=1)
def prices() -> Prices:
    """The user's own price list where there is one, else the package's. Raises UserError: it is no price list."""
    own = config_file().with_name("prices.yaml")
    shipped = resources.files("qrkt_hw.backends").joinpath("prices.yaml")
    file, name = (own, str(own)) if own.is_file() else (shipped, "prices.yaml")
    try:
        return Prices.model_validate(yaml.load(file.read_text(encoding="utf-8"), UniqueKeyLoader))  # a SafeLoader
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{name}: {sentence(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also what is no text, or nested too deeply
        why = getattr(error, "problem", None)
        raise UserError(f"{name} is not YAML{f': {why}' if why else ''}") from error


class Budget:
    """A limit on QPU seconds (set by ``where``, a flag or key), on money (at pay-as-you-go prices), both or none."""

    def __init__(
        self, qpu_seconds: float | None = None, usd: float | None = None, where: str = "--max-qpu-seconds"
    ) -> None:
        self.qpu_seconds, self.usd, self.where = qpu_seconds, usd, where
        for name, limit in ((where, qpu_seconds), ("--max-cost", usd)):
            if limit is not None and not limit >= 0:
                raise UserError(f"{name}: {limit:g} is no limit; give a number of at least 0")
        self.billed = 0.0
        price = None if usd is None else prices().plans[PLAN].usd_per_second
        by_cost = usd / price if usd is not None and price else None  # a price of 0 is no limit
        self.by_cost = by_cost is not None and (qpu_seconds is None or by_cost < qpu_seconds)
        self.limit = by_cost if self.by_cost else qpu_seconds
        # the flag that was given; None where neither was
        self.flag = where if qpu_seconds is not None else "--max-cost" if usd is not None else None

    @classmethod
    def of(cls, backend: Any, given: Self | None = None) -> Self | None:
        """The budget given, else the backend's own; None: no limit. Raises UserError: given to a simulator."""
        if given is not None and given.flag is not None:
            if not backend.shots or backend.target is None:
                way = f"backend {backend.name!r} is a simulator: name a device, or a fake one with --shots"
                raise UserError(f"{given.flag} applies only to devices that sample; {way}")
            return given
        own = backend.max_seconds
        return None if own is None else cls(own, where=f"max_seconds of backend {backend.name}")

    @property
    def left(self) -> float | None:
        return None if self.limit is None else max(0.0, self.limit - self.billed)

    def admit(self, seconds: float) -> None:
        """Let a job of so many estimated seconds through. Raises UserError: it would exceed the limit."""
        if self.limit is not None and self.billed + seconds > self.limit:
            what = f"{self.named}: {self.billed:.1f} s are billed and the next job needs {seconds:.1f} s"
            way = f"{self.billed + seconds - self.limit:.1f} s more than the limit; what came back is kept"
            raise UserError(f"{what}, {way}")

    def charge(self, seconds: float) -> None:
        self.billed += seconds

    @property
    def named(self) -> str:
        if self.by_cost:
            return f"--max-cost {self.usd:g} USD ({self.limit:.1f} s)"
        return f"{self.where} {self.qpu_seconds:g} s"
