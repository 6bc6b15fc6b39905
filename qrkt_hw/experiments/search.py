"""What a search looks through: one line per option, as a user writes it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import KEYS, Config, problem
from qrkt_hw.runs.unused import unused


@dataclass(frozen=True)
class Dimension:
    """One searched option: choices, or an interval (``log`` in its logarithm, ``whole`` in whole numbers)."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any) -> Any:
        """This option's value in an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def parse(text: str) -> Dimension:
    """``key=a,b,c``, ``key=low:high`` or ``key=log:low:high``.

    Raises:
        UserError: another form, an option that does not exist, or a value it does not take.
    """
    key, equals, given = text.partition("=")
    key = key.strip().removeprefix("--").replace("-", "_")
    if not equals or not given:
        raise UserError(f"--search: {text!r} is not of the form option=a,b,c or option=low:high or option=log:low:high")
    if key not in KEYS:
        raise UserError(f"--search: no option {key!r} (see qrkt-hw train --help)")
    parts = given.split(":")
    log = parts[0] == "log"
    bounds = parts[1:] if log else parts
    if log or len(parts) == 2:
        low, high = (_value(key, bound, text) for bound in bounds) if len(bounds) == 2 else (None, None)
        numbers = all(isinstance(b, int | float) and not isinstance(b, bool) for b in (low, high))
        if low is None or high is None or not numbers or not low < high or (log and low <= 0):
            raise UserError(f"--search: {text!r} needs two numbers, the lower first{' and positive' if log else ''}")
        return Dimension(key, (), low, high, log, isinstance(low, int) and isinstance(high, int))
    choices = tuple(_value(key, choice, text) for choice in given.split(","))
    if len(set(choices)) < len(choices):
        raise UserError(f"--search: {text!r} names a value twice")
    return Dimension(key, choices)


def check_space(options: Config, dimensions: Sequence[Dimension]) -> None:
    """Make sure that every searched value is allowed and that no searched option is without effect throughout.

    Raises:
        UserError: such an option.
    """
    ends = {d.key: d.choices or (d.low, d.high) for d in dimensions}
    for key, values in ends.items():
        for value in values:
            try:
                options.replace(**{key: value})
            except ValidationError as error:
                raise UserError(f"--search: {problem(error)[1]}") from error
    fixed = {key: KEYS[key].field.default for key in ends}
    reasons: dict[str, list[str | None]] = {key: [] for key in ends}
    for chosen in itertools.islice(itertools.product(*ends.values()), 10_000):
        tried = options.replace(**dict(zip(ends, chosen, strict=True)))
        for key in ends:
            if tried.flat()[key] != fixed[key]:
                reasons[key].append(unused(tried, [key]))
    for found in reasons.values():
        if found and all(found):
            raise UserError(f"--search: {found[0]}")


def _value(key: str, text: str, whole: str) -> Any:
    field = KEYS[key].field
    annotated: Any = field.annotation
    try:
        value = TypeAdapter(annotated).validate_python(
            int(text) if text.strip().lstrip("-").isdigit() else text.strip()
        )
    except ValidationError as error:
        raise UserError(f"--search: {whole!r}: {key} does not take {text!r}") from error
    return value if isinstance(value, int | float | str | bool) else str(value)
