"""Snapshots of IBM devices by name."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

from qrkt_hw.errors import UserError


@lru_cache(maxsize=1)
def _provider() -> Any:
    from qiskit_ibm_runtime.fake_provider import FakeProviderForBackendV2

    return FakeProviderForBackendV2()


@lru_cache(maxsize=1)
def fake_names() -> tuple[str, ...]:
    """Names of all snapshots, such as ``fake_torino``; sorted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(sorted(backend.name for backend in _provider().backends()))


@lru_cache(maxsize=16)
def fake_device(name: str) -> Any:
    """The snapshot of that name as Qiskit's BackendV2: configuration, target and calibration; nothing is downloaded.

    Raises:
        UserError: no such snapshot.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some snapshots remark on themselves when any is looked up
            return _provider().backend(name)
    except Exception as error:
        raise UserError(f"no device snapshot {name!r}; there are {', '.join(fake_names())}") from error
