"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer: ``python tests/sanitize.py [SEED]``.

Builds the kernels with gcc's sanitizers in a temporary copy of the package, then runs there the kernels' own tests and
the driver below: right sizes of every kind must run clean, wrong ones must be refused in Python. Takes some minutes.
Exit status 0 where nothing was found.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = [
    "tests/simulator/test_native.py",
    "tests/simulator/test_propagated.py",
]
SKIPPED = "unreadable or older or recorders or sixty"  # other libraries, other processes
FOUND = ("AddressSanitizer", "runtime error:")


def build(folder: Path) -> dict[str, str]:
    """Copy the package to ``folder``, build its kernels, and give the environment in which to run."""
    hidden = shutil.ignore_patterns("__pycache__", "*.so*", "*.pyd")
    shutil.copytree(ROOT / "qrkt_hw", folder / "qrkt_hw", ignore=hidden)
    shutil.copytree(ROOT / "circuits", folder / "qrkt_hw/circuits", ignore=hidden, dirs_exist_ok=True)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=hidden)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (module,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    flags = ["-shared", "-fPIC", "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-pthread"]
    library = folder / "qrkt_hw/simulator/native/_kernels.abi3.so"
    kept = [flag for flag in module["extra-compile-args"] if flag not in ("-O3", "-g0")]
    made = ["gcc", *flags, *kept, str(folder / module["sources"][0]), "-lm"]
    subprocess.run([*made, "-o", str(library)], check=True)
    preloaded = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(preloaded),
        "PYTHONPATH": str(folder),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }


def main(seed: str) -> int:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        environment = build(folder)
        failed = False
        for command in (
            ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", f"not ({SKIPPED})", *TESTS],
            ["tests/sanitize.py", "--driver", seed],
        ):
            done = subprocess.run(
                [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            found = [line for line in done.stdout.splitlines() if any(word in line for word in FOUND)]
            print(done.stdout[-6000:], *found[:20], sep="\n", flush=True)
            failed |= bool(done.returncode or found)
        return int(failed)


# ---- the driver, inside the copy ------------------------------------------------------------------------------------

BATCHES = [0, 1, 7, 8, 9, 15, 16, 17, 33, 400]


def placed(shape: tuple[int, ...], dtype, how: str):
    """Random numbers of that shape that lie in memory in one of several ways."""
    import torch

    if how == "apart":  # in a tensor with gaps, off any alignment
        return torch.randn(*shape[:-1], shape[-1] * 2 + 1, dtype=dtype)[..., 1 : shape[-1] + 1]
    if how == "turned":
        return torch.randn(*reversed(shape), dtype=dtype).permute(*reversed(range(len(shape))))
    if how == "offset":
        return torch.randn(torch.Size(shape).numel() + 1, dtype=dtype)[1:].view(shape)
    if how == "expanded":  # stride 0
        return torch.randn(1, *shape[1:], dtype=dtype).expand(shape)
    return torch.randn(shape, dtype=dtype)


WAYS = ["plain", "apart", "turned", "offset", "expanded"]


def simulators(draw: random.Random, counts: Counter) -> None:
    import torch

    from qrkt_hw import circuits
    from qrkt_hw.simulator import Simulator

    for qubits, name, method in itertools.product(
        range(1, 12), ("qrkt", "ry_rz_ring", "reuploading"), ("pauli", "adjoint")
    ):
        try:
            template = circuits.build(name, qubits, draw.choice([1, 2]))
            single, double = (Simulator(template, d, method) for d in (torch.complex64, torch.complex128))
        except Exception:  # not on so few qubits, or not by this method
            counts["not built"] += 1
            continue
        for real, batch in itertools.product((torch.float32, torch.float64), BATCHES):
            simulate = single if real == torch.float32 else double
            groups = draw.choice([1, 2, 3, 6])
            torch.set_num_threads(draw.choice([1, 2, 5]))
            x = placed((batch, groups, template.num_inputs), real, draw.choice(WAYS))
            w = placed((groups, template.num_weights), real, draw.choice(WAYS))
            x, w = x.requires_grad_(draw.random() < 0.6), w.requires_grad_(draw.random() < 0.6)
            with torch.set_grad_enabled(draw.random() < 0.8):
                values = simulate(x, w)
            given = [t for t in (x, w) if t.requires_grad]
            assert values.shape == (batch, groups, template.num_outputs)
            assert bool(values.isfinite().all())
            if values.requires_grad:
                cotangent = placed(tuple(values.shape), real, draw.choice(WAYS))
                found = torch.autograd.grad(values, given, cotangent, allow_unused=True)
                assert all(t is None or t.isfinite().all() for t in found)
            counts[f"{method} calls"] += 1


def wrong(draw: random.Random, counts: Counter) -> None:
    """Wrong sizes of everything, through the public doors: each is refused in Python, before native code."""
    for name, method in itertools.product(("qrkt", "reuploading"), ("pauli", "adjoint")):
        wrong_for(name, method, counts)


def wrong_for(name: str, method: str, counts: Counter) -> None:
    import torch

    from qrkt_hw import QuantumLayer, circuits
    from qrkt_hw.errors import UserError
    from qrkt_hw.simulator import Simulator

    def refuses(what: str, call) -> None:
        try:
            call()
        except (ValueError, UserError, TypeError):
            counts["wrong sizes refused"] += 1
            return
        except RuntimeError as error:
            if "shape" in str(error) or "size" in str(error):
                counts["wrong sizes refused by torch"] += 1
                return
        counts["not refused"] += 1
        print("not refused:", what, flush=True)

    def replaced(layer, weight):
        layer.weight.data = weight
        return layer

    template = circuits.build(name, 3, 1)
    simulate = Simulator(template, torch.complex64, method)
    inputs, weights = template.num_inputs, template.num_weights
    x, w = torch.randn(4, 2, inputs), torch.randn(2, weights)
    for what, call in {
        "inputs too wide": lambda: simulate(torch.randn(4, 2, inputs + 1), w),
        "inputs too narrow": lambda: simulate(torch.randn(4, 2, inputs - 1), w),
        "inputs without groups": lambda: simulate(torch.randn(inputs), w),
        "weights too short": lambda: simulate(x, w[:, :-1]),
        "weights too long": lambda: simulate(x, torch.randn(2, weights + 1)),
        "weights flat": lambda: simulate(x, w.reshape(-1)),
        "weights of one group": lambda: simulate(x, w[:1]),
        "weights of three groups": lambda: simulate(x, torch.randn(3, weights)),
    }.items():
        refuses(f"{name}, {method}: {what}", call)
    build = {"features": 6, "ansatz": template, "method": method}
    for what, call in {
        "initial weights too short": lambda: QuantumLayer(**build, initial_weights=torch.zeros(2 * weights - 1)),
        "initial weights too long": lambda: QuantumLayer(**build, initial_weights=torch.zeros(2 * weights + 1)),
        "initial weights empty": lambda: QuantumLayer(**build, initial_weights=[]),
        "weight data too short": lambda: replaced(QuantumLayer(**build), torch.zeros(3))(torch.randn(5, 6)),
        "weight data too long": lambda: replaced(QuantumLayer(**build), torch.zeros(99))(torch.randn(5, 6)),
        "weight data empty": lambda: replaced(QuantumLayer(**build), torch.zeros(0))(torch.randn(5, 6)),
        "features too narrow": lambda: QuantumLayer(**build)(torch.randn(5, 3)),
        "features too wide": lambda: QuantumLayer(**build)(torch.randn(5, 12)),
        "a number": lambda: QuantumLayer(**build)(torch.tensor(1.0)),
    }.items():
        refuses(f"{name}, {method}: {what}", call)


def driver(seed: str) -> None:
    import torch

    from qrkt_hw.simulator import native

    assert native.library() is not None, "the sanitized kernels were not found"
    torch.manual_seed(int(seed))
    draw, counts = random.Random(int(seed)), Counter()
    for part in (simulators, wrong):
        part(draw, counts)
        print(part.__name__, dict(counts), flush=True)
    sys.exit(min(1, counts["not refused"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--driver"]:
        driver(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "0"))
