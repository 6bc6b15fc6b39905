"""Errors a user can cause, and how they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """One sentence that names the flag, file or key, the value found and the values allowed.

    The command line prints it and exits with status 2; in Python it is an ordinary exception.
    """


class RunWarning(UserWarning):
    """What a user must know of a run that is used all the same; the command line shows it in one line."""


def flag(key: str) -> str:
    """The command-line flag of a key: ``rk_blocks`` is ``--rk-blocks``."""
    return "--" + key.replace("_", "-")


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
