"""QPU seconds by IBM's formulas, and their price.

IBM, "Workload usage": a job takes about 2 s, plus repetition delay and circuit duration for every execution; or
2 s + 0.00035 s an execution. A Sampler job holds at most 10 million executions ("Job limits"); larger ones are split.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrkt_hw.errors import UserError, sentence

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
    """The price list.

    Attributes:
        date: when it was read.
        source: where.
        plans: by name.
    """

    model_config = ConfigDict(extra="forbid")

    date: str
    source: str
    plans: dict[str, Plan]


@dataclass(frozen=True)
class Usage:
    """What jobs use of a QPU.

    Attributes:
        jobs: submitted; each has its overhead.
        executions: circuits x shots.
        seconds: by the long form.
        seconds_quick: by the short form.
    """

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
