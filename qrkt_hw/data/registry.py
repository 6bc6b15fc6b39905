"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from qrkt_hw.data import digits
from qrkt_hw.data.base import Data
from qrkt_hw.errors import UserError
from qrkt_hw.options.data import DataOptions

DATASETS: dict[str, Callable[[DataOptions], Data]] = {"digits": digits.load}


def load_data(options: DataOptions) -> Data:
    """The data set of these options.

    Raises:
        UserError: unknown data set, or files that are missing or damaged.
    """
    if options.dataset not in DATASETS:
        raise UserError(f"--dataset: no data set {options.dataset!r}; there are {', '.join(DATASETS)}")
    return DATASETS[options.dataset](options)
