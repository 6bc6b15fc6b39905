"""``qrkt-hw backends list`` and ``check``."""

from pathlib import Path

import click

from qrkt_hw.commands.interface import PATH, Group, console, echo, table
from qrkt_hw.errors import UserError


@click.group(cls=Group)
def backends() -> None:
    """List the backends and try one."""


FILE = click.option("--backends-file", type=PATH, help="a backends.yaml over all others")


@backends.command("list")
@click.option("--remote", is_flag=True, help="the devices of the IBM account instead: qubits, queue, online or not")
@FILE
def list_(backends_file: Path | None, remote: bool) -> None:
    """Every entry of backends.yaml: kind, qubits, exact or shots, usable here or why not."""
    if remote and backends_file is not None:
        raise UserError("--backends-file: the devices of --remote come from the account; leave it out")
    if remote:
        _remote()
        return
    from qrkt_hw.backends import listing
    from qrkt_hw.backends.device.transpile import fake_names

    rows = []
    for found in listing(backends_file):
        here = "[green]yes[/]" if found.available else "[red]no[/]"
        remark = f": {found.remark}" if found.remark else ""
        qubits = str(found.qubits) if found.qubits else "memory" if found.available else "-"
        values = f"{found.shots} shots" if found.shots else "exact"
        rows.append((found.name, found.kind, qubits, values, here + remark))
    table(("name", "kind", "qubits", "values", "here"), rows, markup=True)
    echo(f"and {len(fake_names())} fake backends by name, such as fake_kingston: any fake_NAME of the IBM runtime")


def _remote() -> None:
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
    table(("name", "qubits", "queue", "state", "calibrated"), rows)
    echo(f"plan {account.plan}" + (f", {left:,.0f} QPU seconds left" if left is not None else ""))


@backends.command()
@click.argument("name")
@click.option("--shots", type=click.IntRange(0, 10_000_000), help="instead of the entry's; 0 for exact values")
@click.option("--strict-backend", is_flag=True, help="refuse the fallback")
@FILE
def check(name: str, shots: int | None, strict_backend: bool, backends_file: Path | None) -> None:
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
    for key, value in backend.about().items():
        echo(f"{key:14} {value if value is not None else 'none'}")
    echo(f"{'circuit':14} {template.name}, 2 qubits, {backend.counters.executions or 'no'} executions, {seconds:.2f} s")
    echo(f"{'saw':14} <Z0> {seen[0]:+.4f}  <Z1> {seen[1]:+.4f}")
    echo(f"{'ideal':14} <Z0> {ideal[0]:+.4f}  <Z1> {ideal[1]:+.4f}")
    error = float(np.abs(seen - ideal).max())
    allowed = 5 / math.sqrt(backend.shots) if backend.shots else 1e-6
    noisy = "calibrated" in backend.about()
    finding = "as expected" if error <= allowed else "noise" if noisy else "TOO FAR: this backend computes wrongly"
    echo(f"{'difference':14} {error:.1e} ({finding})")
    if error > allowed and not noisy:
        raise UserError(f"backend {name!r} is off by {error:.1e} where {allowed:.1e} is allowed; run qrkt-hw doctor")
