"""Device and execution mode: job, batch or session; opened late, always closed, opened anew when the service did."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any, Literal

from qrkt_hw.backends.ibm.account import Account
from qrkt_hw.backends.ibm.errors import classify, explain
from qrkt_hw.errors import UserError

Mode = Literal["job", "batch", "session", "auto"]


class Place:
    """Where jobs go.

    Args:
        account: signed in; None in the client's local testing mode.
        device: of the client.
        mode: ``auto`` takes a session where the plan has them, else a batch.
        max_time: seconds after which the service closes the session; None leaves that to the service.
    """

    def __init__(self, account: Account | None, device: Any, mode: Mode, max_time: int | None = None) -> None:
        self.account, self._device, self.asked, self.max_time = account, device, mode, max_time
        self._generation = account.generation if account is not None else 0
        self.plan = account.plan if account is not None else "local testing mode"
        self.mode: str = mode
        if mode == "auto":
            self.mode = "batch" if self.plan in ("open", "unknown") else "session"
        if account is None:
            self.mode = "job"
        self._object: Any = None
        self._checked = False

    @property
    def device(self) -> Any:
        """The client's device, over the connection in use."""
        if self.account is not None and self._generation != self.account.generation:
            self.reconnect()
        return self._device

    def move(self, name: str) -> None:
        """To another device."""
        assert self.account is not None
        self._device, self._object, self._checked = self.account.device(name), None, False

    @property
    def name(self) -> str:
        """Of the device."""
        return str(self._device.name)

    @property
    def session_id(self) -> str | None:
        """Of the session or batch in use."""
        return getattr(self._object, "session_id", None)

    def describe(self) -> str:
        """Device, plan and mode in a few words."""
        return f"{self.name} ({self.plan} plan, {self.mode})" if self.account is not None else f"{self.name} (local)"

    def check(self) -> None:
        """Whether the device takes jobs and runs them.

        Raises:
            UserError: it is offline, or its queue is closed.
        """
        if self.account is None or self._checked:
            return
        status = self.account.ask(lambda: self.device.status(), f"asking for the status of {self.name}")
        if not status.operational:
            raise UserError(
                f"--backend: {self.name} is offline; --backend ibm_least_busy takes one that is online, and --resume "
                "goes on here later"
            )
        if status.status_msg not in ("active", "", None):
            raise UserError(
                f"--backend: the queue of {self.name} is closed (its status is {status.status_msg!r}); take another "
                "(--backend ibm_least_busy) or go on later with --resume"
            )
        self._checked = True

    def mode_object(self) -> Any:
        """What a primitive takes as its mode; opened on first use.

        Raises:
            UserError: the device takes no jobs, or the plan has no sessions.
        """
        self.check()
        device = self.device
        if self.mode == "job" or self.account is None:
            return device
        if self._object is None:
            self._object = self._open()
        return self._object

    def _open(self) -> Any:
        from qiskit_ibm_runtime import Batch, Session

        kind = Session if self.mode == "session" else Batch
        assert self.account is not None
        tries = 0
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return kind(self.device, max_time=self.max_time)
            except Exception as error:
                found = classify(error)
                if found == "no_sessions" and self.asked == "auto":
                    self.mode = "batch"
                    return self._open()
                if found == "no_sessions":
                    raise UserError(
                        f"--mode: the account's plan ({self.plan}) has no sessions on {self.name}; use --mode batch"
                    ) from None
                tries += 1
                if found == "unauthorized" and tries < 3:
                    self.account.connect()
                    continue
                # an empty session costs nothing: one that was opened twice is closed by the service
                if found in ("server", "lost", "unreachable", "busy") and tries < 4:
                    import time

                    time.sleep(0.5 * 2**tries)
                    continue
                raise UserError(explain(error, f"opening a {self.mode} on {self.name}")) from None

    def accepting(self) -> bool:
        """Whether the session or batch in use still takes jobs; yes where none is in use."""
        if self._object is None or self.account is None:
            return True
        details = None
        with suppress(Exception):
            details = self._object.details()
        return bool(details.get("accepting_jobs", True)) if details else True

    def renew(self) -> None:
        """Let the closed session go; the next use opens a new one."""
        self._object = None

    def reconnect(self) -> None:
        """After signing in anew: the device and session by their names, over the new connection."""
        assert self.account is not None
        kind, identity = type(self._object), self.session_id
        self._generation = self.account.generation
        self._device = self.account.service.backend(self.name)
        if identity is not None:
            self._object = kind.from_id(identity, self.account.service)

    def close(self) -> None:
        """Take no more jobs in the session; those in it go on."""
        if self._object is not None:
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._object.close()
            self._object = None
