"""Backends by name."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from qrkt_hw.backends.base import Backend, Description, Gradient
from qrkt_hw.backends.files import WORKING, config_file, layers
from qrkt_hw.backends.ibm import backend as ibm
from qrkt_hw.backends.schema import AerEntry, Entry, ExactEntry, FakeEntry, IBMEntry
from qrkt_hw.errors import UserError
from qrkt_hw.options.training import BackendOptions

# options of devices
COPY_KEYS = ("pack", "guard", "quality", "mitigation")  # and those that a snapshot has too
DEVICE_KEYS = (
    *COPY_KEYS,
    "mode", "instance", "max_time", "dynamical_decoupling", "twirl_gates", "twirl_measure", "rep_delay",
)  # fmt: skip


class BackendWarning(UserWarning):
    """The backend that was asked for cannot be used; its fallback takes its place."""


def get(name: str) -> Backend:
    """The backend of that name as its entry says; the same object for the same name.

    The shipped entries count, and those of the user's config folder. :func:`resolve` takes a file by its name.

    Raises:
        UserError: no such backend, or one that cannot be used here.
    """
    return _shared(name, config_file())


@lru_cache(maxsize=16)
def _shared(name: str, config: Path) -> Backend:
    return resolve(name)


def resolve(
    name: str,
    *,
    shots: int | None = None,
    gradient: Gradient | None = None,
    strict: bool = False,
    file: Path | None = None,
    seed: int | None = None,
    device: dict[str, Any] | None = None,
) -> Backend:
    """A new backend by its entry.

    Args:
        name: in ``backends.yaml``, or any ``fake_NAME`` of the IBM runtime.
        shots: instead of the entry's; 0 for exact values.
        gradient: instead of the entry's.
        strict: refuse where the fallback would have to serve.
        file: another ``backends.yaml`` over all others.
        seed: of the samples where the entry has none.
        device: keys of the entry of a device, of IBM or a snapshot, instead of its own.

    Raises:
        UserError: no such backend, a broken file, or a backend that cannot be used here.
    """
    found = layers(file)
    known = {key: entry for key, (entry, _) in found.items()}
    entry = _entry(name, known)
    entry = _with(name, entry, device or {})
    asked, problem = name, unavailable(entry)
    first = problem
    while problem is not None:
        following = getattr(entry, "fallback", None)
        if strict or following is None:
            why = " (--strict-backend: no fallback)" if strict and following is not None else ""
            raise UserError(f"--backend: {name} cannot be used here: {problem}{why}")
        name, entry = following, _entry(following, known)
        problem = unavailable(entry)
    backend = make(name, entry, shots, gradient, seed)
    backend.max_seconds = getattr(entry, "max_seconds", None)
    backend.working_entry = any(found[key][1] == str(WORKING) for key in (asked, name) if key in found)
    if name != asked:
        backend.fell_back_from = asked
        backend.notice = (
            f"{asked} cannot be used here: {first}. Running on {name} instead; qrkt-hw doctor says what mends it."
        )
        warnings.warn(backend.notice, BackendWarning, stacklevel=2)
    return backend


def from_options(options: BackendOptions, seed: int | None = None) -> Backend:
    """The backend of a run's options.

    Raises:
        UserError: see :func:`resolve`.
    """
    return resolve(
        options.backend,
        shots=options.shots,
        gradient=options.gradient,
        strict=options.strict_backend,
        file=options.backends_file,
        seed=seed,
        device={key: getattr(options, key) for key in DEVICE_KEYS if getattr(options, key) is not None},
    )


def bills(options: BackendOptions) -> bool:
    """Whether a run's options name a device that bills its time; asks no network."""
    entries = {key: entry for key, (entry, _) in layers(options.backends_file).items()}
    return isinstance(_entry(options.backend, entries), IBMEntry)


def make(name: str, entry: Entry, shots: int | None, gradient: Gradient | None, seed: int | None) -> Backend:
    """The backend of an entry that can be used here."""
    how: Gradient = gradient or entry.gradient
    if isinstance(entry, ExactEntry):
        from qrkt_hw.backends.exact import ExactBackend

        if shots:
            raise UserError(f"--shots: backend {name!r} gives exact values; aer_cpu and the fake devices sample")
        backend: Backend = ExactBackend(name, entry.device, how)
        backend.perturbation = entry.perturbation
        return backend
    if isinstance(entry, IBMEntry):
        return ibm.make(name, entry, shots, gradient)
    count = entry.shots if shots is None else (shots or None)
    common = {"shots": count, "seed": entry.seed if entry.seed is not None else seed, "gradient": how,
              "optimization_level": entry.optimization_level, "perturbation": entry.perturbation}  # fmt: skip
    if isinstance(entry, FakeEntry) or entry.noise != "none":
        from qrkt_hw.backends.fake import FakeBackend

        if isinstance(entry, FakeEntry):
            copies = {key: getattr(entry, key) for key in COPY_KEYS}
            return FakeBackend(name, entry.name, method=entry.method, noise=entry.noise, **copies, **common)  # type: ignore[arg-type]
        return FakeBackend(name, entry.noise, method="density_matrix", pack=False, **common)  # type: ignore[arg-type]
    from qrkt_hw.backends.aer import AerBackend

    return AerBackend(name, device=entry.device, method=entry.method, **common)  # type: ignore[arg-type]


def _with(name: str, entry: Entry, keys: dict[str, Any]) -> Entry:
    odd = [key for key in keys if not isinstance(entry, IBMEntry) and key not in COPY_KEYS]
    odd += [key for key in keys if key in COPY_KEYS and not isinstance(entry, (IBMEntry, FakeEntry))]
    if odd and odd[0] in COPY_KEYS:
        raise UserError(f"--{odd[0]}: backend {name!r} is no device; leave the flag out")
    if odd:
        raise UserError(
            f"--{odd[0].replace('_', '-')}: backend {name!r} is no device of IBM Quantum; leave the flag out"
        )
    return entry.model_copy(update=keys) if keys else entry


def unavailable(entry: Entry) -> str | None:
    """Why an entry cannot be used here; None where it can. Asks no network."""
    if isinstance(entry, ExactEntry) and entry.device == "cuda":
        import torch

        return None if torch.cuda.is_available() else "torch sees no CUDA GPU"
    if isinstance(entry, AerEntry):
        try:
            from qiskit_aer import AerSimulator
        except ImportError as error:
            return f"qiskit-aer cannot be imported ({error})"
        if entry.device == "gpu" and "GPU" not in AerSimulator().available_devices():
            return "Aer sees no GPU (it takes qiskit-aer-gpu, its CUDA libraries and an NVIDIA GPU)"
        if entry.device == "gpu" and entry.noise != "none":
            return "noise is simulated on the CPU only"
    if isinstance(entry, IBMEntry):
        return ibm.unavailable(entry)
    return None


def listing(file: Path | None = None) -> list[Description]:
    """Every entry, as a table shows it."""
    found = []
    for name, (entry, where) in layers(file).items():
        problem = unavailable(entry)
        kind, qubits, remark = f"{entry.provider}", None, problem or ""
        if isinstance(entry, ExactEntry):
            kind = f"exact simulator ({entry.device})"
        elif isinstance(entry, AerEntry):
            kind = (
                f"Aer ({entry.device}, {entry.method})" if entry.noise == "none" else f"Aer with noise of {entry.noise}"
            )
        elif isinstance(entry, FakeEntry):
            kind = "device snapshot"
            try:
                qubits = _qubits(entry.name)
            except UserError as error:
                problem = remark = str(error)
        else:
            kind = "IBM Quantum"
        if problem and getattr(entry, "fallback", None):
            remark = f"{remark}; falls back to {entry.fallback}"  # type: ignore[union-attr]
        if "shipped" not in where:
            remark = f"{remark}; from {where}".removeprefix("; ")
        found.append(Description(name, kind, qubits, getattr(entry, "shots", None), problem is None, remark))
    return found


def _qubits(name: str) -> int:
    from qrkt_hw.backends.device.devices import fake_device

    return fake_device(name).num_qubits


def _entry(name: str, known: dict[str, Entry]) -> Entry:
    if name in known:
        return known[name]
    if name.startswith("fake_"):
        from qrkt_hw.backends.device.devices import fake_names

        if name in fake_names():
            return FakeEntry(provider="fake", name=name)
        raise UserError(f"--backend: no device snapshot {name!r}; there are {', '.join(fake_names())}")
    if name.startswith("ibm_"):
        return IBMEntry(provider="ibm", name=name) if name != "ibm_" else IBMEntry(provider="ibm", name="least_busy")
    raise UserError(
        f"--backend: no backend {name!r}; there are {', '.join(known)}, and every fake_NAME of the IBM runtime"
    )
