"""The devices the service poses as: configuration and calibration of the runtime's fake backends, as sent."""

from __future__ import annotations

import copy
import json
import random
import warnings
from datetime import datetime, timedelta
from functools import lru_cache
from importlib import resources
from typing import Any

# what is posed as -> folder of the fake backend; lagos is small enough that many a circuit does not fit
FOLDERS = {
    "ibm_fez": "fez", "ibm_kingston": "kingston", "ibm_miami": "miami", "ibm_marrakesh": "marrakesh",
    "ibm_lagos": "lagos", "ibm_torino": "torino",
}  # fmt: skip
LISTED = tuple(name for name in FOLDERS if name != "ibm_torino")  # by most accounts: it is retired


@lru_cache(maxsize=16)
def _read(name: str, kind: str) -> dict[str, Any]:
    folder = resources.files("qiskit_ibm_runtime.fake_provider.backends") / FOLDERS[name]
    return json.loads((folder / f"{kind}_{FOLDERS[name]}.json").read_text(encoding="utf-8"))


def fake_name(name: str) -> str:
    """The fake backend's own name, such as ``fake_fez``."""
    return f"fake_{FOLDERS[name]}"


def configuration(name: str) -> dict[str, Any]:
    """What ``GET /backends/NAME/configuration`` answers."""
    return {**_read(name, "conf"), "backend_name": name}


def properties(name: str, recalibrations: int) -> dict[str, Any]:
    """What ``GET /backends/NAME/properties`` answers: each recalibration is a day later, with other errors."""
    found = copy.deepcopy(_read(name, "props"))
    found["backend_name"] = name
    if recalibrations:
        then = datetime.fromisoformat(found["last_update_date"]) + timedelta(days=recalibrations)
        found["last_update_date"] = then.isoformat()
        rng = random.Random(recalibrations)
        for gate in found["gates"]:
            for entry in gate["parameters"]:
                if entry["name"] == "gate_error" and entry["value"] < 0.1:
                    entry["value"] = min(0.1, entry["value"] * rng.lognormvariate(0, 1))
    return found


@lru_cache(maxsize=16)
def target(name: str) -> Any:
    """The fake backend's target: durations for the bill, which shares no code with the planner of qrkt-hw."""
    from qiskit_ibm_runtime.fake_provider import FakeProviderForBackendV2

    with warnings.catch_warnings(action="ignore"):  # some warn of themselves when any is looked up
        return FakeProviderForBackendV2().backend(fake_name(name)).target


def rep_delay(name: str) -> float:
    """Seconds between two executions where the job does not say."""
    return float(configuration(name).get("default_rep_delay", 250.0)) * 1e-6
