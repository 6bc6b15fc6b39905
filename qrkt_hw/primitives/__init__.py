"""Qiskit's primitives for anybody's circuits: packed, resumed, limited and priced by the pipeline of devices."""

from qrkt_hw.primitives.packed import PackedEstimator, PackedSampler, PrimitiveError, PubError

__all__ = ["PackedEstimator", "PackedSampler", "PrimitiveError", "PubError"]
