"""IBM Quantum's place in the contract. Entries are validated; running on the service is not part of this version."""

from __future__ import annotations

from qrkt_hw.backends.base import Backend
from qrkt_hw.backends.schema import IBMEntry
from qrkt_hw.errors import UserError

RETIRED = {"ibm_torino": ("2026-04-01", "fake_torino")}  # device -> (retired on, its snapshot)


def unavailable(entry: IBMEntry) -> str:
    """Why the entry cannot be used."""
    if entry.name in RETIRED:
        date, snapshot = RETIRED[entry.name]
        return (
            f"{entry.name} was retired by IBM on {date}; its noise lives on in the snapshot --backend {snapshot}, "
            "which runs on this machine"
        )
    return (
        "this version does not run on IBM Quantum yet; the snapshots of its devices (--backend fake_fez, fake_torino, "
        "fake_marrakesh, fake_miami) run on this machine"
    )


def make(name: str, entry: IBMEntry) -> Backend:
    """Raises:
    UserError: always; see :func:`unavailable`.
    """
    raise UserError(f"--backend: {name} cannot be used here: {unavailable(entry)}")
