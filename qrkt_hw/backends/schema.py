"""The entries of ``backends.yaml``, one model per provider."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from qrkt_hw.errors import UserError, sentence

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
FakeName = Annotated[str, StringConstraints(pattern=r"^fake_[a-z0-9_]+$")]
Level = Annotated[int, Field(ge=0, le=3, strict=True)]
Seconds = Annotated[int, Field(ge=1, le=31_536_000, strict=True)]  # at most a year
Shots = Annotated[int, Field(ge=1, le=10_000_000, strict=True)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    gradient: Literal["adjoint", "parameter_shift", "spsa"] = "adjoint"
    perturbation: Annotated[float, Field(gt=0, le=1)] = 0.1


class ExactEntry(_Entry):
    """The torch simulator."""

    provider: Literal["exact"]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fallback: str | None = None


class _Sampling(_Entry):
    shots: Shots | None = None
    seed: Annotated[int, Field(ge=0, strict=True)] | None = None
    fallback: str | None = None


class AerEntry(_Sampling):
    """Qiskit Aer."""

    provider: Literal["aer"]
    device: Literal["cpu", "gpu"] = "cpu"
    method: Literal["statevector", "density_matrix", "matrix_product_state", "automatic"] = "statevector"
    optimization_level: Level = 1
    noise: FakeName | Literal["none"] = "none"


class FakeEntry(_Sampling):
    """A device snapshot of the IBM runtime."""

    provider: Literal["fake"]
    name: FakeName
    method: Literal["auto", "superoperator", "density_matrix"] = "auto"
    optimization_level: Level = 3
    noise: FakeName | Literal["none"] | None = None
    pack: bool = True
    guard: Annotated[int, Field(ge=0, le=3, strict=True)] = 0
    quality: Annotated[float, Field(ge=0, le=1)] = 0.5
    mitigation: Literal["none", "mthree"] = "none"
    max_seconds: Seconds | None = None


class IBMEntry(_Entry):
    """A device of IBM Quantum; never simulated in its stead, so it has no fallback.

    A ``fake_NAME`` runs in the client's own local testing mode: its code path without a service.
    """

    provider: Literal["ibm"]
    name: Annotated[str, StringConstraints(pattern=r"^(least_busy|ibm_[a-z0-9_]+|fake_[a-z0-9_]+)$")]
    shots: Shots = 1024
    seed: Annotated[int, Field(ge=0, strict=True)] | None = None
    optimization_level: Level = 3
    mode: Literal["job", "batch", "session", "auto"] = "batch"
    instance: str | None = None
    max_seconds: Seconds | None = None
    max_time: Seconds | None = None
    dynamical_decoupling: Literal["XX", "XpXm", "XY4"] | bool = False
    twirl_gates: bool = False
    twirl_measure: bool = False
    rep_delay: Annotated[float, Field(ge=0, le=1)] | None = None
    pack: bool = True
    guard: Annotated[int, Field(ge=0, le=3, strict=True)] = 0
    quality: Annotated[float, Field(ge=0, le=1)] = 0.5
    mitigation: Literal["none", "mthree"] = "none"
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 60.0
    patience: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 120.0
    grace: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 60.0
    max_wait: Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)] = 86_400.0
    submissions_per_minute: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 5
    # what one job may hold: executions, bytes of input, QPU seconds (the service's limits: 10 million, 50 MB, 3 h)
    largest_job: Annotated[int, Field(ge=1, le=10_000_000, strict=True)] = 10_000_000
    largest_input: Annotated[int, Field(ge=1, le=50_000_000, strict=True)] = 45_000_000
    longest_job: Annotated[float, Field(gt=0, le=10_800)] = 9_720.0


Entry = ExactEntry | AerEntry | FakeEntry | IBMEntry
PROVIDERS: dict[str, type[_Entry]] = {"exact": ExactEntry, "aer": AerEntry, "fake": FakeEntry, "ibm": IBMEntry}


def parse_entry(name: str, value: Any, where: str) -> Entry:
    """The entry ``name`` of the file ``where``.

    Raises:
        UserError: names file, entry, key, the value found and what is allowed.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is not a name for a backend (letters, digits, _, - and .)")
    if not isinstance(value, dict):
        raise UserError(f"{where}: {name} must hold keys such as 'provider: aer', not {_short(value)}")
    provider = value.get("provider")
    if not isinstance(provider, str) or provider not in PROVIDERS:
        found = "is missing" if "provider" not in value else f"is {_short(provider)}"
        raise UserError(f"{where}: {name}.provider {found}; it must be one of {', '.join(PROVIDERS)}")
    if provider == "ibm" and "fallback" in value:
        raise UserError(f"{where}: {name}.fallback is not allowed: an IBM device is never replaced by a simulator")
    model = PROVIDERS[provider]
    try:
        return TypeAdapter(model).validate_python(value)  # type: ignore[return-value]
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(model.model_fields)
            key = str(problem["loc"][0])
            raise UserError(f"{where}: {name}.{key} is an unknown key; provider {provider} takes {allowed}") from error
        raise UserError(f"{where}: {name}.{sentence(error)}") from error


def _short(value: Any) -> str:
    shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:57] + "..."
