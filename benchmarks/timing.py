"""What all benchmarks share: sizes, a timer, tables and JSON."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# name: (qubits, layers, batch)
SIZES = {"A": (4, 1, 64), "B": (6, 1, 260), "C": (6, 3, 260), "D": (8, 2, 256), "E": (12, 1, 260)}


def median_ms(make: Callable[[], object], run: Callable[[object], object], repeats: int = 40) -> dict[str, float]:
    """Milliseconds of ``run`` on fresh arguments: the first call, median, minimum; median CPU time."""
    argument = make()
    started = time.perf_counter()
    run(argument)
    first = time.perf_counter() - started
    for _ in range(4):
        run(make())
    seconds, processor = [], []
    for _ in range(repeats):
        argument = make()
        started, used = time.perf_counter(), time.process_time()
        run(argument)
        processor.append(time.process_time() - used)
        seconds.append(time.perf_counter() - started)
    return {
        "first": 1e3 * first,
        "median": 1e3 * statistics.median(seconds),
        "minimum": 1e3 * min(seconds),
        "processor": 1e3 * statistics.median(processor),
    }


def save(path: Path | None, rows: list[dict]) -> None:
    """Print the rows as a table; write them with the machine's load as JSON."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    print(" | ".join(keys))
    for row in rows:
        print(" | ".join(f"{row[k]:.3f}" if isinstance(row.get(k), float) else str(row.get(k, "")) for k in keys))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if path is not None:
        path.write_text(json.dumps({"load": os.getloadavg(), "cores": os.cpu_count(), "rows": rows}, indent=1))
