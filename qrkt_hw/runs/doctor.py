"""Examining an installation: each check looks, and says what it saw and what would mend it."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@dataclass(frozen=True)
class Finding:
    """What one check saw.

    Attributes:
        state: ``ok``, ``remark`` (works, but not everything) or ``problem``.
        subject: what was looked at.
        text: what was seen.
        remedy: the command that mends it; empty where nothing is to be mended.
    """

    state: Literal["ok", "remark", "problem"]
    subject: str
    text: str
    remedy: str = ""


def examine() -> list[Finding]:
    """All checks, each on its own: one that fails does not hide the others."""
    versions: dict[str, str] = {canonicalize_name(name): version for name, version in _installed()}
    checks: list[Callable[[], list[Finding]]] = [
        _python, lambda: requirements(versions), lambda: aer(versions), _aer_devices, _torch, _torchvision, _account,
    ]  # fmt: skip
    found = []
    for check in checks:
        try:
            found.extend(check())
        except Exception as error:
            name = getattr(check, "__name__", "check").strip("_")
            found.append(Finding("problem", name, f"could not be examined: {type(error).__name__}: {error}"))
    return found


def _installed() -> list[tuple[str, str]]:
    return [(d.metadata["Name"], d.version) for d in metadata.distributions() if d.metadata["Name"]]


def _python() -> list[Finding]:
    return [Finding("ok", "python", sys.version.split()[0])]


def requirements(versions: Mapping[str, str], wanted: list[str] | None = None) -> list[Finding]:
    """Whether what is installed meets what qrkt-hw asks for."""
    try:
        wanted = metadata.requires("qrkt-hw") or [] if wanted is None else wanted
    except metadata.PackageNotFoundError:
        return [Finding("problem", "qrkt-hw", "is not installed, only its folder is on the path", "pip install -e .")]
    wrong, looked_at = [], 0
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        looked_at += 1
        name = canonicalize_name(requirement.name)
        version = versions.get(name)
        if name == "qiskit-aer" and version is None:
            version = versions.get("qiskit-aer-gpu")
        if version is None or not requirement.specifier.contains(Version(version), prereleases=True):
            seen = f"{version} is installed" if version else "is missing"
            wrong.append(
                Finding(
                    "problem",
                    requirement.name,
                    f"{seen}, wanted {requirement.specifier}",
                    f"pip install '{text.split(';')[0].strip()}'",
                )
            )
    return wrong or [Finding("ok", "versions", f"all {looked_at} requirements are met")]


def aer(versions: Mapping[str, str]) -> list[Finding]:
    """Which Aer wheel is there. The CPU and GPU wheels hold the same files: the last one installed wins."""
    cpu, gpu = (
        versions.get("qiskit-aer"),
        next((versions[n] for n in ("qiskit-aer-gpu", "qiskit-aer-gpu-cu11") if n in versions), None),
    )
    if cpu and gpu:
        return [
            Finding(
                "problem",
                "aer wheel",
                f"qiskit-aer {cpu} and qiskit-aer-gpu {gpu} overwrite each other's files",
                "pip uninstall -y qiskit-aer qiskit-aer-gpu && "
                f"pip install qiskit-aer-gpu=={gpu}   (or qiskit-aer=={cpu} for the CPU)",
            )
        ]
    if gpu:
        return [Finding("ok", "aer wheel", f"qiskit-aer-gpu {gpu}")]
    if cpu:
        return [
            Finding(
                "remark",
                "aer wheel",
                f"qiskit-aer {cpu}: CPU only",
                "for NVIDIA: pip uninstall -y qiskit-aer && pip install qiskit-aer-gpu" if _nvidia() else "",
            )
        ]
    return [
        Finding("problem", "aer wheel", "neither qiskit-aer nor qiskit-aer-gpu is installed", "pip install qiskit-aer")
    ]


def _aer_devices() -> list[Finding]:
    # in a process of its own: without its CUDA libraries the GPU wheel takes the interpreter down on import
    code = "from qiskit_aer import AerSimulator; print(','.join(AerSimulator().available_devices()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        remedy = "pip uninstall -y qiskit-aer qiskit-aer-gpu && pip install qiskit-aer"
        missing = re.search(r"lib(cu\w+|nv\w+)\.so", last)
        if missing:
            remedy = "pip install nvidia-cublas-cu12 nvidia-cusolver-cu12 nvidia-cusparse-cu12 nvidia-cuda-runtime-cu12"
        return [Finding("problem", "aer import", last, remedy)]
    devices = done.stdout.strip().split(",")
    if "GPU" in devices:
        return [Finding("ok", "aer devices", "CPU and GPU")]
    return [Finding("remark", "aer devices", "CPU; aer_gpu falls back to aer_cpu")]


def _torch() -> list[Finding]:
    import torch

    built = torch.version.cuda
    if torch.cuda.is_available():
        return [Finding("ok", "torch", f"{torch.__version__}, CUDA {built}, {torch.cuda.get_device_name(0)}")]
    if built is None and _nvidia():
        return [
            Finding(
                "remark",
                "torch",
                f"{torch.__version__} is a CPU build beside an NVIDIA GPU",
                "pip install --force-reinstall torch torchvision",
            )
        ]
    if built is not None and _nvidia():
        return [
            Finding(
                "problem",
                "torch",
                f"{torch.__version__} (CUDA {built}) cannot use the NVIDIA GPU: the driver is too old or not loaded",
                "nvidia-smi",
            )
        ]
    return [Finding("remark", "torch", f"{torch.__version__}, no CUDA GPU here; the CPU is used")]


def _torchvision() -> list[Finding]:
    try:
        module = importlib.import_module("torchvision")
    except Exception as error:
        text = f"does not fit this torch ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        return [Finding("problem", "torchvision", text, "pip install --force-reinstall torch torchvision")]
    return [Finding("ok", "torchvision", module.__version__)]


def _account() -> list[Finding]:
    """Whether an IBM account is saved or in the environment. Its contents are never shown."""
    if os.environ.get("QISKIT_IBM_TOKEN"):
        return [Finding("ok", "IBM account", "in the environment (QISKIT_IBM_TOKEN)"), *_plan()]
    path = Path(os.environ.get("QISKIT_IBM_CONFIG") or Path.home() / ".qiskit" / "qiskit-ibm.json")
    remedy = "qiskit_ibm_runtime.QiskitRuntimeService.save_account(channel='ibm_quantum_platform', token=...)"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [Finding("remark", "IBM account", "none is saved; only IBM's devices need one", remedy)]
    except (OSError, ValueError):
        return [Finding("problem", "IBM account", f"{path} cannot be read", remedy)]
    return (
        [Finding("ok", "IBM account", f"{len(saved)} saved"), *_plan()]
        if saved
        else [Finding("remark", "IBM account", "none is saved", remedy)]
    )


def _plan() -> list[Finding]:
    """Whether the account opens the service, its plan, and what is left of it."""
    from qrkt_hw.backends.ibm.account import Account
    from qrkt_hw.errors import UserError

    try:
        account = Account(read_timeout=10.0, patience=5.0)
        plan, left = account.plan, account.seconds_left
    except UserError as error:
        return [
            Finding("problem", "IBM Quantum", str(error).removeprefix("--backend: "), "qrkt-hw backends list --remote")
        ]
    rest = f", {left:,.0f} QPU seconds left" if left is not None else ""
    return [Finding("ok", "IBM Quantum", f"signed in, plan {plan}{rest}")]


def _nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
