"""IBM Quantum as a backend: packed circuits, sampled by the service, nothing paid for twice."""

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.backends.base import Call
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.jobs import BillingBackend
from qrkt_hw.backends.device.journal import Activity, Journal
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.entries import SERVICE_KEYS, IBMEntry
from qrkt_hw.backends.ibm.account import Account, classify, explain, retired
from qrkt_hw.backends.ibm.jobs import Jobs
from qrkt_hw.errors import UserError


class IBMBackend(BillingBackend):
    """A device of IBM Quantum, signed in, or a fake backend in the client's local testing mode.

    There circuits are not packed, as the client simulates the whole chip. Raises UserError: no account, no network, a
    wrong key, no such device.
    """

    kind = "IBM Quantum"

    def __init__(self, name: str, entry: IBMEntry, shots: int | None) -> None:
        super().__init__(name, entry, shots)
        self.account: Account | None = None
        try:
            if not entry.name.startswith("fake_"):
                self.account = Account(entry.instance, entry.timeout, entry.patience)
            device = fake_device(entry.name) if self.account is None else self.account.device(entry.name)
        except UserError as error:  # that a device is retired explains more than what the account answers
            gone = retired(entry.name)
            raise error if gone is None else UserError(f"--backend: {gone}") from error
        self.place = Place(self.account, device, entry.mode, entry.max_time)
        self._use_device()

    def _use_device(self, pack: bool = True) -> None:
        super()._use_device(pack and self.account is not None)

    def _jobs(self, journal: Journal, activity: Activity, budget: Budget | None, resubmit: bool) -> Jobs:
        return Jobs(self, journal, activity, budget, resubmit)

    @property
    def terms(self) -> dict[str, Any]:
        return {"shots": self.shots, "mode": self.entry.mode, "instance": self.entry.instance}

    def _move(self, device: str) -> bool:
        if self.account is None or self.entry.name != "least_busy":
            return False
        self.place = Place(self.account, self.account.device(device), self.entry.mode, self.entry.max_time)
        self._use_device()
        return True

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """See :meth:`BillingBackend.run`; the local testing mode bills nothing and needs not to be held open."""
        if self.jobs is None and self.account is None:
            with self.open():
                return super().run(calls)
        return super().run(calls)

    def mitigate(self, how: str) -> None:
        if self.account is None and how in SERVICE_KEYS:
            raise UserError("the client's local testing mode leaves circuits as they are")
        super().mitigate(how)

    def configure(self, sampler: Any) -> None:
        options, sequence = sampler.options, self.options["dynamical_decoupling"]
        if sequence:
            options.dynamical_decoupling.enable = True
            options.dynamical_decoupling.sequence_type = "XpXm" if sequence is True else sequence
        options.twirling.enable_gates = bool(self.options["twirl_gates"])
        options.twirling.enable_measure = bool(self.options["twirl_measure"])
        if self.options["rep_delay"] is not None:
            options.execution.rep_delay = self.options["rep_delay"]


class Place:
    """Where jobs go: a device of the client, of an account (None in the local testing mode), in a mode.

    ``auto`` takes a session where the plan has them, else a batch; after ``max_time`` seconds, where given, the service
    closes it.
    """

    def __init__(self, account: Account | None, device: Any, mode: str, max_time: int | None = None) -> None:
        self.account, self._device, self.asked, self.max_time = account, device, mode, max_time
        self._generation = account.generation if account is not None else 0
        self.plan = account.plan if account is not None else "local testing mode"
        by_plan = "batch" if self.plan in ("open", "unknown") else "session"
        self.mode = "job" if account is None else by_plan if mode == "auto" else mode
        self._object: Any = None
        self._checked = False

    @property
    def device(self) -> Any:
        if self.account is not None and self._generation != self.account.generation:
            kind, identity, service = type(self._object), self.session_id, self.account.service
            self._generation, self._device = self.account.generation, service.backend(self.name)
            if identity is not None:
                self._object = kind.from_id(identity, service)
        return self._device

    @property
    def name(self) -> str:
        return str(self._device.name)

    @property
    def session_id(self) -> str | None:
        return getattr(self._object, "session_id", None)

    def about(self) -> dict[str, Any]:
        return {"plan": self.plan, "mode": self.mode}

    def describe(self) -> str:
        return f"{self.name} ({self.plan} plan, {self.mode})" if self.account is not None else f"{self.name} (local)"

    def check(self) -> None:
        """Whether the device takes jobs and runs them. Raises UserError: it is offline, or its queue is closed."""
        if self.account is None or self._checked:
            return
        status = self.account.ask(lambda: self.device.status(), f"asking for the status of {self.name}")
        if not status.operational:
            way = "--backend ibm_least_busy takes one that is online, and --resume continues here later"
            raise UserError(f"--backend: {self.name} is offline; {way}")
        if status.status_msg not in ("active", "", None):
            what = f"--backend: the queue of {self.name} is closed (its status is {status.status_msg!r})"
            way = "take another (--backend ibm_least_busy) or resume later with --resume"
            raise UserError(f"{what}; {way}")
        self._checked = True

    def mode_object(self) -> Any:
        """What a primitive takes as its mode. Raises UserError: the device takes no jobs, the plan no sessions."""
        self.check()
        device = self.device
        if self.mode == "job":
            return device
        self._object = self._object or self._open()
        return self._object

    def _open(self) -> Any:
        from qiskit_ibm_runtime import Batch, Session

        kind = Session if self.mode == "session" else Batch
        assert self.account is not None
        for tries in range(1, 5):
            try:
                with warnings.catch_warnings(action="ignore"):
                    return kind(self.device, max_time=self.max_time)
            except Exception as error:
                found = classify(error)
                if found == "no_sessions" and self.asked == "auto":
                    self.mode = "batch"
                    return self._open()
                if found == "no_sessions":
                    what = f"the account's plan ({self.plan}) has no sessions on {self.name}"
                    raise UserError(f"--mode: {what}; use --mode batch") from None
                if found == "unauthorized" and tries < 3:
                    self.account.connect()
                # an empty session costs nothing: one that was opened twice is closed by the service
                elif found in ("server", "lost", "unreachable", "busy") and tries < 4:
                    time.sleep(0.5 * 2**tries)
                else:
                    raise UserError(explain(error, f"opening a {self.mode} on {self.name}")) from None
        raise AssertionError("the last try returns or raises")

    def accepting(self) -> bool:
        with suppress(Exception):  # also where there is no session, or none that says
            return bool(self._object.details().get("accepting_jobs", True))
        return True

    def renew(self) -> None:
        self._object = None

    def close(self) -> None:
        """Take no more jobs in the session; those in it are run."""
        if self._object is not None:
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                self._object.close()
            self._object = None
