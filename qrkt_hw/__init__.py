"""qrkt-hw: quantum transformers with Runge-Kutta blocks, built of Qiskit circuits, from training to hardware."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qrkt_hw.experiments.loading import load as load
    from qrkt_hw.nn.quantum import QuantumLayer as QuantumLayer
    from qrkt_hw.resources.forecast import estimate as estimate

_LAZY = {
    "QuantumLayer": "qrkt_hw.nn.quantum",
    "estimate": "qrkt_hw.resources.forecast",
    "load": "qrkt_hw.experiments.loading",
}
__all__ = ["QuantumLayer", "__version__", "estimate", "load"]


def __getattr__(name: str) -> Any:
    # torch and qiskit load when first needed, so that `qrkt-hw --help` answers instantly
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qrkt_hw' has no attribute {name!r}")
