"""Options of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Gradient = Literal["adjoint", "parameter_shift", "spsa"]


class TrainingOptions(BaseModel):
    """Optimiser and schedule."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(30, ge=1, description="passes over the training images")
    learning_rate: float = Field(0.02, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of AdamW")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up; cosine decay follows")
    clip: float = Field(1.0, gt=0, description="gradient norm at which gradients are clipped")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    ema: float = Field(
        0.99, ge=0, lt=1, description="decay per step of the averaged weights that are validated and kept; 0: none"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of torch [default: 1 where a batch is too small to share, else all cores]",
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="seed of weights, batches and dropout")


class BackendOptions(BaseModel):
    """Where the circuits run."""

    model_config = ConfigDict(extra="forbid")

    backend: str = Field("exact", description="backend by its name in backends.yaml (qrkt-hw backends list)")
    shots: int | None = Field(
        None, ge=0, le=10_000_000, description="samples per circuit, 0 for exact values [default: the backend's]"
    )
    gradient: Gradient | None = Field(None, description="how circuits are differentiated [default: the backend's]")
    strict_backend: bool = Field(False, description="refuse a backend that is not available instead of its fallback")
    pack: bool | None = Field(
        None, description="on a device: run copies of a circuit side by side [default: the backend's, where it is on]"
    )
    guard: int | None = Field(None, ge=0, le=3, description="on a device: couplings left unused between two copies")
    quality: float | None = Field(
        None, ge=0, le=1, description="on a device: share of the best copy's success that a copy needs to be used"
    )
    mitigation: Literal["none", "mthree"] | None = Field(
        None, description="on a device: correction of readout errors [default: the backend's]"
    )
    mode: Literal["job", "batch", "session", "auto"] | None = Field(
        None, description="IBM: how jobs run; auto: a session where the plan has them [default: the backend's]"
    )
    instance: str | None = Field(None, description="IBM: instance by name or CRN [default: the account's own]")
    max_time: int | None = Field(None, ge=1, description="IBM: seconds after which the service ends a session or batch")
    dynamical_decoupling: bool | None = Field(None, description="IBM: echo pulses on idle qubits")
    twirl_gates: bool | None = Field(None, description="IBM: Pauli twirling of two-qubit gates")
    twirl_measure: bool | None = Field(None, description="IBM: twirling of measurements")
    rep_delay: float | None = Field(
        None, ge=0, le=1, description="IBM: seconds between two executions [default: the device's]"
    )
    backends_file: Path | None = Field(None, description="a backends.yaml over all others")
