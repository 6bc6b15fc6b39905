"""Reach the first training step sooner: without torch's compiler, of which torch's optimizers and Fabric import three
names that do nothing unless something is compiled, and torchmetrics, of which Fabric asks the version. Only the program
does without them, never the library."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

PROGRAM = "program"  # in click's context: this process was started for one command and ends with it
COMPILER = "torch._dynamo"


class Uncompiled(ModuleType):
    """Stands for ``torch._dynamo`` where nothing is compiled; whoever asks for more of it gets the real one."""

    __path__: list[str] = []
    OptimizedModule = type("OptimizedModule", (), {})

    def disable(self, function: Any = None, *_: object, **__: object) -> Any:
        return function if function is not None else lambda given: given

    def graph_break(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(real_compiler(), name)


class Submodules(MetaPathFinder, Loader):
    """Imports the real ``torch._dynamo`` when one of its submodules is imported."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}.") or not isinstance(sys.modules.get(COMPILER), Uncompiled):
            return None
        real_compiler()
        importlib.import_module(name)
        return spec_from_loader(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        pass


def real_compiler() -> ModuleType:
    """``torch._dynamo`` itself, from now on for everybody."""
    if isinstance(sys.modules.get(COMPILER), Uncompiled):
        del sys.modules[COMPILER]
    return importlib.import_module(COMPILER)


def import_fabric() -> None:
    """Import Lightning Fabric alone; nothing to do where it is imported already."""
    if "lightning_fabric" in sys.modules:
        return
    import torch

    if COMPILER not in sys.modules:
        torch._dynamo = sys.modules[COMPILER] = Uncompiled(COMPILER)  # type: ignore[assignment]
        sys.meta_path.insert(0, Submodules())
    sys.modules.setdefault("torchmetrics", None)  # type: ignore[arg-type]
    try:
        import lightning_fabric  # noqa: F401
    finally:
        if sys.modules["torchmetrics"] is None:
            del sys.modules["torchmetrics"]
