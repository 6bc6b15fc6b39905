"""What a figure was measured on: versions and devices, for ``environment.json`` and bug reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import qrkt_hw

PACKAGES = (
    "qiskit", "qiskit-machine-learning", "qiskit-aer", "qiskit-ibm-runtime", "torch", "torchvision", "lightning-fabric",
    "datasets", "numpy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, processor count and accelerators; no user name, host name or path."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "qrkt-hw": qrkt_hw.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "packages": versions,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:  # noqa: PTH123
            for line in handle:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
