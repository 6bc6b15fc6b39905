"""qrkt-hw: quantum transformers with Runge-Kutta blocks, built of Qiskit circuits, from training to hardware."""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from qrkt_hw.errors import UserError as UserError
    from qrkt_hw.experiments.estimators import QuantumTextClassifier as QuantumTextClassifier
    from qrkt_hw.experiments.estimators import QViTClassifier as QViTClassifier
    from qrkt_hw.experiments.export import QViT as QViT
    from qrkt_hw.experiments.loading import create_model as create_model
    from qrkt_hw.experiments.loading import list_models as list_models
    from qrkt_hw.experiments.loading import load as load
    from qrkt_hw.experiments.python import Run as Run
    from qrkt_hw.experiments.python import train as train
    from qrkt_hw.nn.quantum import QuantumLayer as QuantumLayer
    from qrkt_hw.resources.forecast import estimate as estimate
    from qrkt_hw.runs.config import Config as Config

_LAZY = {
    "Config": "qrkt_hw.runs.config",
    "QViT": "qrkt_hw.experiments.export",
    "QViTClassifier": "qrkt_hw.experiments.estimators",
    "QuantumLayer": "qrkt_hw.nn.quantum",
    "QuantumTextClassifier": "qrkt_hw.experiments.estimators",
    "Run": "qrkt_hw.experiments.python",
    "UserError": "qrkt_hw.errors",
    "create_model": "qrkt_hw.experiments.loading",
    "estimate": "qrkt_hw.resources.forecast",
    "list_models": "qrkt_hw.experiments.loading",
    "load": "qrkt_hw.experiments.loading",
    "train": "qrkt_hw.experiments.python",
}
__all__ = [
    "Config", "QViT", "QViTClassifier", "QuantumLayer", "QuantumTextClassifier", "Run", "UserError", "__version__",
    "create_model", "estimate", "list_models", "load", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # torch and qiskit load when first needed, so that `qrkt-hw --help` answers instantly
    if name in _LAZY:
        import importlib

        from qrkt_hw.errors import extras

        with extras():
            return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qrkt_hw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
