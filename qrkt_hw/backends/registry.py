"""Reading ``backends.yaml`` and making backends by name."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrkt_hw.backends.base import Backend
from qrkt_hw.errors import UserError
from qrkt_hw.options.validation import sentence


class Entry(BaseModel):
    """One backend of ``backends.yaml``."""

    model_config = ConfigDict(extra="forbid")

    provider: str = Field(description="what runs the circuits: exact")
    device: str = Field("auto", description="for the exact simulator: auto, cpu or cuda")


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """The entries of the shipped file, with ``./backends.yaml`` laid over it by name."""
    merged: dict[str, Any] = yaml.safe_load(resources.files("qrkt_hw").joinpath("backends.yaml").read_text())
    local = Path("backends.yaml")
    if local.is_file():
        merged.update(yaml.safe_load(local.read_text()) or {})
    found = {}
    for name, value in merged.items():
        try:
            found[name] = Entry.model_validate(value)
        except ValidationError as error:
            raise UserError(f"backends.yaml: entry {name!r}: {sentence(error)}") from error
    return found


@lru_cache(maxsize=16)
def get(name: str) -> Backend:
    """The backend of that name; the same object for the same name.

    Raises:
        UserError: no such backend, or an entry that cannot be used.
    """
    from qrkt_hw.backends.exact import ExactBackend

    known = entries()
    if name not in known:
        raise UserError(f"--backend: no backend {name!r}; there are {', '.join(known)}")
    return ExactBackend(name)
