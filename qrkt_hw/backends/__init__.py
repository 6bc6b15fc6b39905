"""Where circuits run: ``backends.yaml`` turned into :class:`Backend` objects."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrkt_hw.backends.base import Backend, Call, Counters, Gradient
    from qrkt_hw.backends.registry import BackendWarning, from_options, get, listing, resolve

__all__ = ["Backend", "BackendWarning", "Call", "Counters", "Gradient", "from_options", "get", "listing", "resolve"]


def __getattr__(name: str) -> Any:
    # torch and qiskit load when a backend is needed, not where the entries of backends.yaml are only read
    if name not in __all__:
        raise AttributeError(f"module 'qrkt_hw.backends' has no attribute {name!r}")
    from qrkt_hw.backends import base, registry

    return getattr(base if hasattr(base, name) else registry, name)
