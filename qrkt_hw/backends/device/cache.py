"""Files that processes share: locks, and results worth keeping between calls in the user's cache folder."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # what locking a file ends in that another process holds


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/qrkt-hw``, by default ``~/.cache/qrkt-hw``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qrkt-hw"


def locked(path: Path) -> IO[str] | None:
    """The open file at ``path``, locked until it is closed; None where another process holds it.

    Raises OSError: it cannot be written, is a link, or lies on a file system without locks."""
    # neither emptied nor followed: the folder may be somebody else's, and the lock a link
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    handle = os.fdopen(os.open(path, flags, 0o644), "r+")
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        handle.close()
        if error.errno not in HELD:
            raise
        return None
    return handle


def digest(*parts: Any) -> str:
    """A short name for JSON values; equal values have equal names."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def store(path: Path, data: bytes) -> None:
    """Write a whole file or none; a folder that cannot be written costs time later, nothing else."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)


def remember(kind: str, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The value kept under ``kind`` and ``key``, else a new one, as where the file's checksum does not hold."""
    path = cache_folder() / kind / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and isinstance(kept.get("value"), dict) and kept.get("sha256") == _sum(kept["value"]):
            return kept["value"]
    value = json.loads(json.dumps(compute()))  # the same whether it is new or kept
    store(path, json.dumps({"sha256": _sum(value), "value": value}).encode())
    return value


def _sum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """What results may depend on: versions of the quantum stack, and this package's own files."""
    found = {}
    for name in ("qiskit", "qiskit-ibm-runtime", "rustworkx", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    root = Path(__file__).parents[2]
    # the same for the same sources; circuits is a link in a checkout, which a search does not follow by itself
    files = sorted({path for folder in (root, root / "circuits") for path in folder.rglob("*.py")})
    sums = [(path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    found["qrkt-hw"] = digest(sums)
    return found
