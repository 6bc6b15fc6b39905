"""Errors a user can cause, and how they and the names in them are told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """One sentence that names the flag, file or key, the value found and the values allowed.

    The command line prints it and exits with status 2. In Python it is an ordinary exception, and names arguments where
    the command line names flags.
    """

    def __str__(self) -> str:
        said = super().__str__()
        return said if _flags_are_spoken else in_python(said)


_flags_are_spoken = False


@contextmanager
def speaking_flags() -> Iterator[None]:
    """Let errors speak of flags instead of arguments: on the command line, and in what it calls."""
    global _flags_are_spoken
    before, _flags_are_spoken = _flags_are_spoken, True
    try:
        yield
    finally:
        _flags_are_spoken = before


class RunWarning(UserWarning):
    """What a user must know of a run that is used all the same; the command line shows it in one line."""


class MissingPackage(UserError, ImportError):
    """A package that an extra of this one brings is not installed."""


# extra of pyproject.toml -> the modules that it brings
EXTRAS = {
    "train": ("lightning_fabric", "torchvision", "safetensors", "tensorboard", "matplotlib", "pylatexenc"),
    "aer": ("qiskit_aer",),
    "ibm": ("qiskit_ibm_runtime", "mthree"),
    "gan": ("torch_fidelity",),
    "text": ("datasets", "huggingface_hub", "pyarrow", "fsspec"),
    "tune": ("optuna", "sqlalchemy"),
}  # fmt: skip


def missing(error: ImportError) -> MissingPackage | None:
    """The sentence that names the extra of a module that was not found; None for any other error."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None or not isinstance(error, ModuleNotFoundError):
        return None
    return MissingPackage(f"{module} is not installed; it comes with: pip install 'qrkt-hw[{extra}]'")


@contextmanager
def extras() -> Iterator[None]:
    """Import what an extra brings. Raises MissingPackage: it is not installed."""
    try:
        yield
    except ImportError as error:
        if (found := missing(error)) is None:
            raise
        raise found from error


PARENT = "QRKT_HW_PARENT"  # environment variable of a rank that another process of this package started: its number


def rank_and_count() -> tuple[int, int]:
    """Number of this process and of all, by what torchrun, srun or rank 0 put into the environment."""
    e = os.environ
    if "TORCHELASTIC_RUN_ID" in e:
        return int(e["RANK"]), int(e["WORLD_SIZE"])
    if int(e.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return int(e["SLURM_PROCID"]), int(e["SLURM_STEP_NUM_TASKS"])
    return (int(e["LOCAL_RANK"]), int(e["WORLD_SIZE"])) if PARENT in e else (0, 1)


def independent() -> None:
    """Make this process one that runs by itself, whatever was started beside it."""
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", PARENT):
        os.environ.pop(name, None)


def restarted() -> bool:
    """Whether torchrun started this process in the place of one that ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def flag(key: str) -> str:
    """The command-line flag of a key: ``rk_blocks`` is ``--rk-blocks``."""
    return "--" + key.replace("_", "-")


def folded(name: str) -> str:
    """A name without what people type in several ways: case, hyphens and underscores."""
    return re.sub("[-_ ]", "", name).lower()


def spelled(word: str, names: Iterable[str]) -> str:
    """The one of ``names`` that is ``word`` but for case, hyphens and underscores; ``word`` itself where none is."""
    names = list(names)
    same = [name for name in names if folded(name) == folded(word)]
    return same[0] if len(same) == 1 and word not in names else word


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """At most three of ``names`` that ``word`` may stand for: initials, a part of the name, or a slip of typing."""
    from difflib import SequenceMatcher

    wanted = folded(word)

    def closeness(name: str) -> float:
        parts, whole = [part for part in re.split("[-_]", name.lower()) if part], folded(name)
        if whole == wanted or (len(wanted) > 1 and "".join(part[0] for part in parts) == wanted):
            return 2.0
        if len(wanted) > 2 and (whole.startswith(wanted) or name.strip("-") in word.lower().split("-")):
            return 1.2
        return 1.0 if len(wanted) > 2 and wanted in parts else SequenceMatcher(None, wanted, whole).ratio()

    found = sorted(((closeness(name), name) for name in names), key=lambda pair: -pair[0])[:3]
    return [name for close, name in found if close >= 0.7 and close > found[0][0] - 0.15]


def unknown(what: str, word: str, names: Iterable[str], rest: str = "", see: str = "") -> str:
    """That there is no ``what`` called ``word``, then the nearest of ``names``; where none is near, all of them, or
    ``see``, the command that shows them. ``rest`` says what else may stand there."""
    names = list(names)
    if near := nearest(word, names):
        said = f"did you mean {' or '.join(near)}?" + (f" {see} shows all {len(names)}" if see else "")
    elif see and len(names) > 16:
        said = f"{see} shows the {len(names)} there are"
    else:
        said = f"there are {', '.join([*names, *([rest] if rest else [])])}"
    return f"no {what} {word!r}; {said}"


def take_divisor(number: int) -> str:
    """The way out where a size must divide ``number``: ``take 1, 2, 4 or 8``."""
    *most, last = [str(k) for k in range(1, number + 1) if number % k == 0]
    return f"take {', '.join(most)} or {last}" if most else "take 1"


ARGUMENTS = {"from": "start_from", "ansatz-file": "ansatz"}  # of functions, where they are not the flag's words


def in_python(text: str) -> str:
    """A sentence that speaks of flags, in the words of somebody who calls a function: ``--rk-blocks`` is ``rk_blocks``,
    ``take --loss hinge`` is ``take loss='hinge'``. Commands of a shell stay what they are."""

    def named(flag: str) -> str:
        return ARGUMENTS.get(flag, flag.replace("-", "_"))

    def chosen(found: re.Match[str]) -> str:
        value = found[2] if found[2].replace(".", "").isdigit() else repr(found[2])
        return f"take {named(found[1])}={value}"

    said, *command = re.split("(qrkt-hw |sbatch |pip install )", text, maxsplit=1)
    said = re.sub(r"take --([a-z][a-z0-9-]*) ([\w.]+(?<!\.))", chosen, said)
    said = re.sub(r"(?<![^\s(\"'])--no-([a-z][a-z0-9-]*)", lambda found: f"{named(found[1])}=False", said)
    return re.sub(r"(?<![^\s(\"'])--([a-z][a-z0-9-]*)", lambda found: named(found[1]), said) + "".join(command)


_PLACE = re.compile(
    r"(generator|discriminator|decoder)?\.?(?:stages\.(\d+)\.(\d+)|blocks\.(\d+))(?:\.fields\.(\d+))?\."
    r"(cross_)?(?:(attention)\.circuits|attention\.(?:maps\.)?(query|key|value|output)|feed_forward\.projection)(?:\.layer)?"
)


def in_words(names: Iterable[str]) -> dict[str, str]:
    """Names of quantum layers in a model -> what a person calls them: ``blocks.0.fields.0.attention.query.layer`` is
    ``block 1 query``, with the Runge-Kutta stage where the layers of a block have several. Others stay."""
    found = {name: _PLACE.fullmatch(name) for name in names}
    several = any(place is not None and int(place[5] or 0) for place in found.values())
    return {name: name if place is None else _said(place, several) for name, place in found.items()}


def _said(place: re.Match[str], several: bool) -> str:
    network, part, block, single, stage, cross, whole, projection = place.groups()
    words = [network or ""]
    words += [f"stage {int(part) + 1}"] if part else []
    words += [f"block {int(block or single) + 1}"]
    words += [f"rk stage {int(stage) + 1}"] if several and stage else []
    words += ["cross"] if cross else []
    return " ".join(word for word in [*words, whole or projection or "MLP"] if word)


def sentence(error: ValidationError, key: str | None = None) -> str:
    """The first problem of a validation error: key (its path where none is given), value found, what is allowed."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"]) if key is None else key
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    found = problem.get("input")
    shown = repr(found) if isinstance(found, (str, int, float, bool, type(None))) else type(found).__name__
    return f"{key} is {shown}: {message}" if key else message
