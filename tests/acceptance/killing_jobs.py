"""The command line in a forked process that is killed (SIGKILL) at a named moment of its work, on a device or not."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance import killing
from tests.acceptance.killing import after, before
from tests.ibm_service.process import Loopback

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["tests.acceptance.killing_jobs", "qiskit_ibm_runtime.executor_sampler", "qrkt_hw.backends.ibm.jobs",
     "qrkt_hw.experiments.inference", "qrkt_hw.training.fit"]
)  # fmt: skip
OUTSIDE = ("accepted, not answered", "running", "downloading")


def _die_at(moment: str, nth: int) -> None:
    """Let this process die at a moment of a job, or at one of a training, also by ``MOMENT@SIGINT``."""
    inside = _inside()
    if moment in inside:
        inside[moment](nth)
    else:
        killing.arrange(moment)


def _inside() -> dict[str, Callable[[int], None]]:
    from qrkt_hw.backends.device import journal
    from qrkt_hw.backends.ibm.jobs import Jobs

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
    return finish(*start(arguments, folder, moment, nth))


def start(arguments: list[Any], folder: Path, moment: str | None = None, nth: int = 1) -> tuple[Any, Path]:
    """A process forked from a server that has imported everything and computed nothing; and the file of its output."""
    log = folder / f"log-{time.monotonic_ns()}.txt"
    child = _CONTEXT.Process(
        target=_child, args=([str(a) for a in arguments], folder, log, moment, nth, dict(os.environ))
    )
    child.start()
    return child, log


def _child(
    arguments: list[str], folder: Path, log: Path, moment: str | None, nth: int, environment: dict[str, str]
) -> None:
    handle = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
    os.environ.update(environment)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.chdir(folder)
    code = 70
    try:
        if moment is not None:
            _die_at(moment, nth)
        from qrkt_hw.commands import main

        main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: Any, log: Path) -> tuple[int, str]:
    """Wait for a process."""
    child.join()
    return child.exitcode, log.read_text(errors="replace") if log.is_file() else ""


def kill_when(
    service: Loopback, condition: Callable[[dict[str, Any]], bool], child: Any, log: Path, limit: float = 120.0
) -> tuple[int, str]:
    """Kill the process as soon as the service's report says so."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if child.exitcode is not None:
            break
        if condition(service.report()):
            child.kill()
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
    service.control("calm", keep=["fail"])
    return found


__all__ = ["finish", "forked", "kill_when", "killed", "start"]
