"""Where circuits run: ``backends.yaml`` turned into :class:`Backend` objects."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrkt_hw.backends.base import Backend, Call, Counters, Gradient
    from qrkt_hw.backends.budget import Budget
    from qrkt_hw.backends.objects import of
    from qrkt_hw.backends.registry import (
        BackendWarning,
        bills,
        check,
        check_name,
        from_options,
        get,
        listing,
        make,
        open,
        resolve,
    )

__all__ = [
    "Backend", "BackendWarning", "Budget", "Call", "Counters", "Gradient",
    "bills", "check", "check_name", "from_options", "get", "listing", "make", "of", "open", "resolve",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # torch and qiskit load when a backend is needed, not where the entries of backends.yaml are only read
    if name not in __all__:
        raise AttributeError(f"module 'qrkt_hw.backends' has no attribute {name!r}")
    base = ("Backend", "Call", "Counters", "Gradient")
    module = "base" if name in base else {"Budget": "budget", "of": "objects"}.get(name, "registry")
    return getattr(import_module(f"qrkt_hw.backends.{module}"), name)
