"""The command line in a forked process that is killed (SIGKILL) at a named moment of its work on a device."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.killing import after, before, die
from tests.ibm_service.process import Loopback

# moments the process itself knows; nth: how many times it passes them unharmed, and once more
INSIDE: dict[str, Callable[[int], None]] = {}
OUTSIDE = ("accepted, not answered", "running", "downloading")


def _inside() -> dict[str, Callable[[int], None]]:
    from qrkt_hw.backends.ibm_jobs import Jobs
    from qrkt_hw.execution import journal

    def between_two_results(nth: int) -> None:
        original = journal.Journal.done

        def done(self: Any, submission: Any, outcomes: Any, billed: float) -> Any:
            calls[0] += 1
            if calls[0] == nth:
                before(journal, "packed", len(outcomes))  # inside the transaction, at its last result
            return original(self, submission, outcomes, billed)

        calls = [0]
        journal.Journal.done = done  # type: ignore[method-assign]

    return {
        "planned, not sent": lambda nth: after(journal.Journal, "intend", nth),
        "about to be sent": lambda nth: before(Jobs, "_run", nth),
        "answered, not written": lambda nth: after(Jobs, "_run", nth),
        "writing the journal": between_two_results,
    }


def forked(arguments: list[Any], folder: Path, moment: str | None = None, nth: int = 1) -> tuple[int, str]:
    """Exit status (-9: killed) and everything printed by ``qrkt-hw arguments`` in a process that dies at ``moment``."""
    child, log = start(arguments, folder, moment, nth)
    return finish(child, log)


def start(arguments: list[Any], folder: Path, moment: str | None = None, nth: int = 1) -> tuple[int, Path]:
    """Fork; gives the process and the file of its output."""
    log = folder / f"log-{time.monotonic_ns()}.txt"
    child = os.fork()
    if child == 0:
        code = 70
        try:
            handle = os.open(log, os.O_CREAT | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
            os.chdir(folder)
            if moment in INSIDE or moment in _inside():
                _inside()[str(moment)](nth)
            from qrkt_hw.commands import main

            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child, log


def finish(child: int, log: Path) -> tuple[int, str]:
    """Wait for a forked process."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def kill_when(
    service: Loopback, condition: Callable[[dict[str, Any]], bool], child: int, log: Path, limit: float = 60.0
) -> tuple[int, str]:
    """Kill the process as soon as the service's report says so."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        if condition(service.report()):
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.02)
    return finish(child, log)


def killed(service: Loopback, arguments: list[Any], folder: Path, moment: str, nth: int = 1) -> tuple[int, str]:
    """Run and kill at a moment of :func:`_inside` or of :data:`OUTSIDE`."""
    if moment not in OUTSIDE:
        return forked(arguments, folder, moment, nth)
    known = service.report()
    jobs = len(known["jobs"])
    results = known["requests"].get("GET jobs/results", 0)
    if moment == "accepted, not answered":
        service.misbehave("stall_submit", seconds=20, skip=nth - 1)
    elif moment == "downloading":
        service.misbehave("stall_read", where="results", seconds=20, skip=nth - 1)
    else:
        service.control("settings", run_seconds=0.7)
    child, log = start(arguments, folder)
    conditions: dict[str, Callable[[dict[str, Any]], bool]] = {
        "accepted, not answered": lambda r: len(r["jobs"]) >= jobs + nth,
        "running": lambda r: len(r["jobs"]) >= jobs + nth and r["jobs"][-1]["status"] == "Running",
        "downloading": lambda r: r["requests"].get("GET jobs/results", 0) >= results + nth,
    }
    found = kill_when(service, conditions[moment], child, log)
    service.control("settings", run_seconds=0.0)
    service.control("calm")
    return found


__all__ = ["die", "finish", "forked", "kill_when", "killed", "start"]
