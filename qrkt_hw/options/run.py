"""All options of a training run, flat: a YAML key is its flag with underscores."""

from __future__ import annotations

from qrkt_hw.options.data import DataOptions
from qrkt_hw.options.model import ModelOptions
from qrkt_hw.options.training import BackendOptions, TrainingOptions


class RunOptions(BackendOptions, TrainingOptions, ModelOptions, DataOptions):
    """What ``qrkt-hw train`` takes and what a run folder's ``config.yaml`` holds."""
