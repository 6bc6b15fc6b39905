"""The run folder: layout, configuration, atomic writes, results."""

from qrkt_hw.runs.folder import RunFolder, newest

__all__ = ["RunFolder", "newest"]
