"""Reach the first training step sooner: Lightning without the optional packages that training never uses.

Importing Lightning imports all of torchmetrics, and that imports scipy.signal, torchvision, matplotlib and
torch_fidelity where they are installed: two fifths of the time to the first step. torchmetrics works without them, so
while Lightning is imported they are reported as absent. The packages themselves stay importable. Only the program
does this, never the library: whoever imports ``qrkt_hw`` keeps a whole torchmetrics.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROGRAM = "program"  # in click's context: this process was started for one command and ends with it
LEFT_OUT = frozenset({"scipy", "torchvision", "torch_fidelity", "matplotlib", "transformers", "torchaudio", "librosa"})


def import_lightning() -> None:
    """Import Lightning and torchmetrics for training; nothing to do where they are imported already."""
    if "torchmetrics" in sys.modules:
        return
    with _absent():
        import lightning.pytorch
        import torchmetrics

        _ = lightning.pytorch, torchmetrics


@contextmanager
def _absent() -> Iterator[None]:
    try:
        imports: Any = importlib.import_module("lightning_utilities.core.imports")
    except ImportError:
        yield
        return
    checked, packages = imports.RequirementCache._check_available, imports.package_available

    def check(self: Any) -> None:
        name = (self.requirement or self.module or "").split(">")[0].split("=")[0].split("<")[0].strip()
        if name in LEFT_OUT:
            self.available, self.message = False, f"{name} is left out of this process"
        else:
            checked(self)

    def package_available(package_name: str) -> bool:
        return package_name not in LEFT_OUT and packages(package_name)

    imports.RequirementCache._check_available, imports.package_available = check, package_available
    try:
        yield
    finally:
        imports.RequirementCache._check_available, imports.package_available = checked, packages
