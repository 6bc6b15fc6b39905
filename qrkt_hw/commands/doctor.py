"""``qrkt-hw doctor``, ``about`` and ``backends``: what is installed, and where circuits can run."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import click

from qrkt_hw.commands.interface import BACKEND, PATH, Command, Group, Word, console, echo, json_flag, table, told
from qrkt_hw.errors import EXTRAS, UserError

TORCH = "pip install --force-reinstall torch torchvision"
_MARKS = {"ok": ("ok", "green"), "warning": ("--", "yellow"), "problem": ("!!", "red")}


class Finding(NamedTuple):
    """What one check saw, and the command that helps; with a ``warning`` not everything works."""

    state: Literal["ok", "warning", "problem"]
    subject: str
    text: str
    remedy: str = ""


@click.command(cls=Command, examples="qrkt-hw doctor")
@json_flag
def doctor(as_json: bool) -> None:
    """What is installed, what does not fit together, and the command that fixes each problem.

    Exit status 1 where something is broken; a missing GPU or account is a warning, not a fault.
    """
    findings = examine()
    problems = sum(finding.state == "problem" for finding in findings)
    if as_json:
        told([finding._asdict() for finding in findings])
        sys.exit(1 if problems else 0)
    for finding in findings:
        mark, colour = _MARKS[finding.state]
        click.secho(mark, fg=colour, bold=True, nl=False)
        echo(f"  {finding.subject:22} {finding.text}")
        if finding.remedy:
            echo(f"    {'':22} -> {finding.remedy}")
    echo(f"{problems} problem{'s' if problems != 1 else ''} found" if problems else "no problem found")
    if problems:
        sys.exit(1)


def examine() -> list[Finding]:
    """All checks, each on its own: one that fails does not hide the others."""
    from packaging.utils import canonicalize_name

    found = [Finding("ok", "python", sys.version.split()[0])]
    versions: dict[str, str] = {
        canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions() if one.metadata["Name"]
    }
    there = {name: find_spec(name) is not None for name in ("qiskit_aer", "torchvision")}
    checks: dict[str, Callable[[], list[Finding]]] = {
        "versions": lambda: requirements(versions),
        "aer wheel": lambda: [aer(versions)] if there["qiskit_aer"] else [],
        "aer devices": lambda: [_aer_devices()] if there["qiskit_aer"] else [],
        "torch": lambda: [_torch()],
        "torchvision": lambda: [_torchvision()] if there["torchvision"] else [],
        "IBM account": _account,
        "qrmi": lambda: [_qrmi()],
    }
    for name, check in checks.items():
        try:
            found.extend(check())
        except Exception as error:
            found.append(Finding("problem", name, f"could not be examined: {type(error).__name__}: {error}"))
    return found


def requirements(versions: Mapping[str, str], wanted: list[str] | None = None) -> list[Finding]:
    """Whether what is installed meets what qrkt-hw asks for."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    try:
        wanted = metadata.requires("qrkt-hw") or [] if wanted is None else wanted
    except metadata.PackageNotFoundError:
        return [Finding("problem", "qrkt-hw", "is not installed, only its folder is on the path", "pip install -e .")]
    asked = [(Requirement(text), text.partition(";")[0].strip()) for text in wanted]
    found: list[Finding] = []
    absent: dict[str, list[str]] = {}
    count = 0
    for one, text in asked:
        extra = next((e for e in ("", *EXTRAS) if one.marker is None or one.marker.evaluate({"extra": e})), None)
        name = canonicalize_name(one.name)
        version = versions.get(name) or (versions.get("qiskit-aer-gpu") if name == "qiskit-aer" else None)
        if extra is None or name == "qrkt-hw":
            continue
        if version is None and extra:
            absent.setdefault(extra, []).append(one.name)
            continue
        count += 1
        if version is None or not one.specifier.contains(Version(version), prereleases=True):
            seen = f"{version} is installed" if version else "is missing"
            found.append(Finding("problem", one.name, f"{seen}, wanted {one.specifier}", f"pip install '{text}'"))
    found = found or [Finding("ok", "versions", f"all {count} requirements are met")]
    for extra, names in absent.items():
        text = f"not installed: {', '.join(names)}"
        found.append(Finding("warning", f"extra {extra}", text, f"pip install 'qrkt-hw[{extra}]'"))
    return found


def aer(versions: Mapping[str, str]) -> Finding:
    """Which Aer wheel is there. The CPU and GPU wheels hold the same files: the last one installed wins."""
    cpu, gpu = versions.get("qiskit-aer"), versions.get("qiskit-aer-gpu") or versions.get("qiskit-aer-gpu-cu11")
    if cpu and gpu:
        text = f"qiskit-aer {cpu} and qiskit-aer-gpu {gpu} overwrite each other's files"
        one = f"pip install qiskit-aer-gpu=={gpu}   (or qiskit-aer=={cpu} for the CPU)"
        return Finding("problem", "aer wheel", text, f"pip uninstall -y qiskit-aer qiskit-aer-gpu && {one}")
    if gpu:
        return Finding("ok", "aer wheel", f"qiskit-aer-gpu {gpu}")
    if cpu:
        gpu_wheel = "for NVIDIA: pip uninstall -y qiskit-aer && pip install qiskit-aer-gpu" if _nvidia() else ""
        return Finding("warning", "aer wheel", f"qiskit-aer {cpu}: CPU only", gpu_wheel)
    text = "neither qiskit-aer nor qiskit-aer-gpu is installed"
    return Finding("warning", "aer wheel", text, "pip install 'qrkt-hw[aer]'")


def _aer_devices() -> Finding:
    # in a process of its own: without its CUDA libraries the GPU wheel takes the interpreter down on import
    code = "from qiskit_aer import AerSimulator; print(','.join(AerSimulator().available_devices()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        remedy = "pip uninstall -y qiskit-aer qiskit-aer-gpu && pip install qiskit-aer"
        if re.search(r"lib(cu\w+|nv\w+)\.so", last):
            remedy = "pip install nvidia-cublas-cu12 nvidia-cusolver-cu12 nvidia-cusparse-cu12 nvidia-cuda-runtime-cu12"
        return Finding("problem", "aer import", last, remedy)
    if "GPU" in done.stdout.strip().split(","):
        return Finding("ok", "aer devices", "CPU and GPU")
    return Finding("warning", "aer devices", "CPU; aer_gpu falls back to aer_cpu")


def _torch() -> Finding:
    import torch

    version, built = torch.__version__, torch.version.cuda
    if torch.cuda.is_available():
        return Finding("ok", "torch", f"{version}, CUDA {built}, {torch.cuda.get_device_name(0)}")
    if not _nvidia():
        return Finding("warning", "torch", f"{version}, no CUDA GPU here; the CPU is used")
    if built is None:
        return Finding("warning", "torch", f"{version} is a CPU build beside an NVIDIA GPU", TORCH)
    text = f"{version} (CUDA {built}) cannot use the NVIDIA GPU: the driver is too old or not loaded"
    return Finding("problem", "torch", text, "nvidia-smi")


def _torchvision() -> Finding:
    try:
        module = importlib.import_module("torchvision")
    except Exception as error:
        first = str(error).partition("\n")[0]
        return Finding("problem", "torchvision", f"does not fit this torch ({type(error).__name__}: {first})", TORCH)
    return Finding("ok", "torchvision", module.__version__)


def _account() -> list[Finding]:
    """Whether an IBM account is saved or in the environment. Its contents are never shown."""
    subject = "IBM account"
    if os.environ.get("QISKIT_IBM_TOKEN"):
        return [Finding("ok", subject, "in the environment (QISKIT_IBM_TOKEN)"), _plan()]
    path = Path(os.environ.get("QISKIT_IBM_CONFIG") or Path.home() / ".qiskit" / "qiskit-ibm.json")
    remedy = "qiskit_ibm_runtime.QiskitRuntimeService.save_account(channel='ibm_quantum_platform', token=...)"
    try:
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError):
        return [Finding("problem", subject, f"{path} cannot be read", remedy)]
    if not saved:
        return [Finding("warning", subject, "none is saved; only IBM's devices need one", remedy)]
    return [Finding("ok", subject, f"{len(saved)} saved"), _plan()]


def _plan() -> Finding:
    """Whether the account opens the service, its plan, and what is left of it."""
    from qrkt_hw.backends.ibm.account import Account
    from qrkt_hw.errors import UserError

    try:
        account = Account(read_timeout=10.0, patience=5.0)
        plan, left = account.plan, account.seconds_left
    except UserError as error:
        text = str(error).removeprefix("--backend: ")
        return Finding("problem", "IBM Quantum", text, "qrkt-hw backends list --remote")
    rest = f", {left:,.0f} QPU seconds left" if left is not None else ""
    return Finding("ok", "IBM Quantum", f"signed in, plan {plan}{rest}")


def _qrmi() -> Finding:
    """The QPUs that the scheduler of a cluster gave this job."""
    from qrkt_hw.backends import qrmi

    given = qrmi.resources()
    names: list[str | None] = [*given] or [None]
    problem = next((text for text in map(qrmi.unavailable, names) if text), None)
    if problem is not None:
        return Finding("problem" if given else "warning", "QPU of the cluster", problem)
    return Finding("ok", "QPU of the cluster", ", ".join(f"{name} ({kind})" for name, kind in given.items()))


def _nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


@click.command(cls=Command, examples="qrkt-hw about")
@json_flag
def about(as_json: bool) -> None:
    """Versions and devices, for a bug report."""
    from qrkt_hw.runs.folder import environment

    found = environment()
    if as_json:
        told(found)
        return
    packages = found.pop("packages")
    for key, value in {**found, **packages}.items():
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        echo(f"{key:24} {value}")


@click.command(
    cls=Command,
    examples="""
qrkt-hw completion bash >> ~/.bashrc
qrkt-hw completion zsh >> ~/.zshrc
qrkt-hw completion fish > ~/.config/fish/completions/qrkt-hw.fish""",
)
@click.argument("shell", type=Word(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options, and names of presets, ansätze, data sets and backends."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root()
    click.echo(found(root.command, {}, "qrkt-hw", "_QRKT_HW_COMPLETE").source())


@click.group(cls=Group)
def backends() -> None:
    """List the backends and try one."""


backends_file_flag = click.option("--backends-file", type=PATH, help="a backends.yaml over all others")


@backends.command("list", examples="qrkt-hw backends list\nqrkt-hw backends list --remote")
@click.option("--remote", is_flag=True, help="the devices of the IBM account instead: qubits, queue, online or not")
@backends_file_flag
@json_flag
def list_backends(backends_file: Path | None, remote: bool, as_json: bool) -> None:
    """Every entry of backends.yaml: kind, qubits, exact or shots, usable here or why not."""
    if remote and backends_file is not None:
        raise UserError("--backends-file: the devices of --remote come from the account; leave it out")
    if remote:
        _list_remote(as_json)
        return
    from qrkt_hw.backends import listing
    from qrkt_hw.backends.device.transpile import fake_names

    if as_json:
        known = [one._asdict() for one in listing(backends_file)]
        told({"backends": known, "fake_backends": fake_names()})
        return
    rows = []
    for found in listing(backends_file):
        here = "[green]yes[/]" if found.available else "[red]no[/]"
        note = f": {found.remark}" if found.remark else ""
        qubits = str(found.qubits) if found.qubits else "memory" if found.available else "-"
        values = f"{found.shots} shots" if found.shots else "exact"
        rows.append((found.name, found.kind, qubits, values, here + note))
    table(("name", "kind", "qubits", "values", "here"), rows, markup=True)
    echo(f"and {len(fake_names())} fake backends by name, such as fake_kingston (any fake_NAME)")


def _list_remote(as_json: bool) -> None:
    from qrkt_hw.backends.ibm.account import Account

    account = Account()
    left = account.seconds_left
    rows = []
    for device in account.ask(lambda: account.service.backends(), "asking for the devices"):
        status = account.ask(device.status, f"asking for the status of {device.name}")
        working = "online" if status.status_msg == "active" else status.status_msg
        state = working if status.operational else "offline"
        properties = account.ask(device.properties, f"asking for the calibration of {device.name}")
        date = getattr(properties, "last_update_date", None)
        calibrated = date.isoformat(" ", "minutes") if date else "-"
        rows.append((device.name, str(device.num_qubits), str(status.pending_jobs), state, calibrated))
    header = ("name", "qubits", "queue", "state", "calibrated")
    if as_json:
        devices = [dict(zip(header, row, strict=True)) for row in rows]
        told({"devices": devices, "plan": account.plan, "seconds_left": left})
        return
    table(header, rows)
    echo(f"plan {account.plan}" + (f", {left:,.0f} QPU seconds left" if left is not None else ""))


@backends.command("check", examples="qrkt-hw backends check aer_cpu\nqrkt-hw backends check fake_torino -s 1024")
@click.argument("name", type=BACKEND)
@click.option("--shots", type=click.IntRange(0, 10_000_000), help="instead of the entry's; 0 for exact values")
@click.option("--strict-backend", is_flag=True, help="refuse the fallback")
@backends_file_flag
@json_flag
def check_backend(
    name: str, shots: int | None, strict_backend: bool, backends_file: Path | None, as_json: bool
) -> None:
    """Run a tiny circuit on NAME and say what it saw."""
    import math
    import time

    import numpy as np

    from qrkt_hw import backends, circuits
    from qrkt_hw.backends.exact import ExactBackend
    from qrkt_hw.commands.options import backend_options

    template = circuits.build("brickwork", 2, 1)
    values = np.linspace(0.3, 1.5, template.num_inputs + template.num_weights)[None]
    ideal = ExactBackend("exact").run([backends.Call(template, values)])[0][0]
    entry = {"backend": name, "shots": shots, "strict_backend": strict_backend, "backends_file": backends_file}
    with backends.open(backend_options(entry), console=console(stderr=True), seed=1) as backend:
        started = time.perf_counter()
        seen = backend.run([backends.Call(template, values, "check")])[0][0]
    seconds = time.perf_counter() - started
    error = float(np.abs(seen - ideal).max())
    allowed = 5 / math.sqrt(backend.shots) if backend.shots else 1e-6
    noisy = "calibrated" in backend.about()
    finding = "as expected" if error <= allowed else "noise" if noisy else "TOO FAR: this backend computes wrongly"
    if as_json:
        figures = {"seen": seen.tolist(), "ideal": ideal.tolist(), "difference": error, "finding": finding}
        told({**backend.about(), "seconds": seconds, **figures})
    else:
        for key, value in backend.about().items():
            echo(f"{key:14} {value if value is not None else 'none'}")
        used = f"{backend.counters.executions or 'no'} executions, {seconds:.2f} s"
        echo(f"{'circuit':14} {template.name}, 2 qubits, {used}")
        echo(f"{'saw':14} <Z0> {seen[0]:+.4f}  <Z1> {seen[1]:+.4f}")
        echo(f"{'ideal':14} <Z0> {ideal[0]:+.4f}  <Z1> {ideal[1]:+.4f}")
        echo(f"{'difference':14} {error:.1e} ({finding})")
    if error > allowed and not noisy:
        raise UserError(f"backend {name!r} is off by {error:.1e} where {allowed:.1e} is allowed; run qrkt-hw doctor")
