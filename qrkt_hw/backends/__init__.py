"""Where circuits run: ``backends.yaml`` turned into :class:`Backend` objects."""

from qrkt_hw.backends.base import Backend, Call, Counters, Gradient
from qrkt_hw.backends.registry import BackendWarning, from_options, get, listing, resolve

__all__ = ["Backend", "BackendWarning", "Call", "Counters", "Gradient", "from_options", "get", "listing", "resolve"]
