"""The service as a process of its own, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.ibm_service.server import environment

ROOT = Path(__file__).parents[2]
KEY = "TOKEN-that-must-appear-nowhere-7f3a9c51e2"


class Loopback:
    """Started on a free port; use as a context manager."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ibm_service", "--port", "0", "--key", KEY, *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("#"):
                self.port = int(line.split(" on port ")[1].split(",")[0])
                break
        else:
            raise RuntimeError("the loopback service did not start")

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)

    def environment(self, plan: str = "premium", key: str = KEY) -> dict[str, str]:
        """What makes the client talk to this process."""
        return environment(self.port, key, plan)

    def control(self, path: str, **content: Any) -> dict[str, Any]:
        """Tell the service something; gives its report."""
        data = json.dumps(content).encode()
        request = Request(f"http://127.0.0.1:{self.port}/control/{path}", data=data, method="POST")
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def misbehave(self, kind: str, **how: Any) -> None:
        """Show one kind of trouble; see :class:`tests.ibm_service.state.Misbehaviour`."""
        self.control("misbehave", kind=kind, **how)

    def report(self) -> dict[str, Any]:
        """What was submitted, executed and billed."""
        return self.control("report")

    def reset(self, **settings: Any) -> None:
        """Forget everything; then these settings."""
        self.control("reset")
        if settings:
            self.control("settings", **settings)

    def reset_trouble(self) -> None:
        """No more trouble; jobs and counts stay."""
        self.control("calm")
