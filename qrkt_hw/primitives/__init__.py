"""Qiskit's primitives for anybody's circuits: packed, resumed, limited and priced by the pipeline of devices."""

from qrkt_hw.primitives.estimator import PackedEstimator
from qrkt_hw.primitives.packed import PackedSampler, PrimitiveError, PubError

__all__ = ["PackedEstimator", "PackedSampler", "PrimitiveError", "PubError"]
