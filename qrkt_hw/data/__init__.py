"""Data sets by name."""

from qrkt_hw.data.base import Data, DataShape
from qrkt_hw.data.registry import load_data

__all__ = ["Data", "DataShape", "load_data"]
