"""Turning a pydantic error into one sentence."""

from __future__ import annotations

from pydantic import ValidationError


def flag(key: str) -> str:
    """The command-line flag of a key: ``rk_blocks`` is ``--rk-blocks``."""
    return "--" + key.replace("_", "-")


def sentence(error: ValidationError) -> str:
    """The first problem of a validation error: key, value found, what is allowed."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    found = problem.get("input")
    shown = repr(found) if isinstance(found, (str, int, float, bool, type(None))) else type(found).__name__
    return f"{key} is {shown}: {message}" if key else message
