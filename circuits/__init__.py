"""The circuits: ansatz templates in plain Qiskit, one short file each.

``build("qrkt", num_qubits=6, layers=1)`` returns a :class:`CircuitTemplate`; ``names()`` lists what is registered;
``register`` adds your own.
"""

if __name__ != "qrkt_hw.circuits":
    raise ImportError("import qrkt_hw.circuits, not circuits: a second copy would be a second registry of templates")

from qrkt_hw.ansatz import CircuitTemplate, build, describe, is_built_in, names, read, register, source
from qrkt_hw.circuits import brickwork, efficient_su2, qrkt, real_amplitudes, reuploading, rx_ring, ry_rz_ring

__all__ = ["CircuitTemplate", "build", "describe", "is_built_in", "names", "read", "register", "source"]

for _module in (qrkt, rx_ring, ry_rz_ring, brickwork, reuploading, real_amplitudes, efficient_su2):
    register(_module.NAME, _module.template)
