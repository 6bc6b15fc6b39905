"""Presets: YAML files of options that ship with the package."""

from importlib import resources
from typing import Any

import yaml

from qrkt_hw.errors import UserError


def names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml"))


def text(name: str) -> str:
    """The file of a preset. Raises UserError: no such preset."""
    if name not in names():
        raise UserError(f"--preset: no preset {name!r}; there are {', '.join(names())}")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """The options a preset sets."""
    return yaml.safe_load(text(name)) or {}
