"""Where circuits run: ``backends.yaml`` turned into :class:`Backend` objects."""

from qrkt_hw.backends.base import Backend, Call, Counters
from qrkt_hw.backends.registry import get

__all__ = ["Backend", "Call", "Counters", "get"]
