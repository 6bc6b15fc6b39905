"""Spoilt files: fixtures, bounds on a reader, and what came of each input.

``QRKT_HW_FUZZ`` is the number of spoilt inputs (380, and 20 in processes of their own), or their range as ``120:130``;
``QRKT_HW_FUZZ_SEED`` their seed (19). ``QRKT_HW_FUZZ_LOG`` names a file for what came of each.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qrkt_hw.errors import UserError
from tests.fuzz.mutators import mutate
from tests.fuzz.subjects import Subject, inside, last_line

START, _, STOP = os.environ.get("QRKT_HW_FUZZ", "380").rpartition(":")
SEED = os.environ.get("QRKT_HW_FUZZ_SEED", "19")
PATIENCE = 30  # seconds for an input
MEMORY = 6 << 30  # bytes that reading may take beside what is taken


class Hang(BaseException):
    """An input takes longer than anybody waits; no reader's ``except Exception`` keeps it."""


def _hangs(*_: object) -> None:
    raise Hang(f"longer than {PATIENCE} s")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Fixture and sound result of a subject; each is made when it is first asked for."""
    root, results = tmp_path_factory.mktemp("fuzz"), {}

    def get(subject: Subject) -> tuple[Path, Any]:
        if subject.name not in results:
            folder = root / subject.name.replace(" ", "-")
            key = next((name for name, other in results.items() if other[2] is subject.make), None)
            if key is not None:
                shutil.copytree(results[key][0], folder)
            else:
                folder.mkdir()
                with inside(folder):
                    subject.make(folder)
            copy = root / "sound"
            shutil.copytree(folder, copy)
            with inside(copy):
                results[subject.name] = (folder, subject.read(), subject.make)
            shutil.rmtree(copy)
        return results[subject.name][:2]

    return get


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """Folders of our own for caches and settings, a bound on memory, and an end to every wait."""
    home = tmp_path_factory.mktemp("home")
    taken = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) << 10
    bounds, handler = resource.getrlimit(resource.RLIMIT_DATA), signal.signal(signal.SIGALRM, _hangs)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, bounds[1]))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HOME"):
            patch.setenv(name, str(home))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
    resource.setrlimit(resource.RLIMIT_DATA, bounds)
    signal.signal(signal.SIGALRM, handler)


def same(found: Any, sound: Any) -> bool:
    """Equal, numbers up to rounding."""
    if isinstance(sound, dict):
        return isinstance(found, dict) and found.keys() == sound.keys() and all(same(found[k], sound[k]) for k in sound)
    if isinstance(sound, (list, tuple)):
        return len(found) == len(sound) and all(map(same, found, sound))
    if isinstance(sound, (float, torch.Tensor)):
        return bool(np.allclose(found, sound, rtol=1e-5, atol=2e-6, equal_nan=True))
    return type(found) is type(sound) and bool(found == sound)


def spoilt(number: int, subjects: list[Subject], made: Any, folder: Path) -> tuple[Subject, str]:
    """Copies a fixture and spoils one of its files, by seed and number alone."""
    r = random.Random(f"{SEED} {number}")
    subject = r.choices(subjects, [s.weight for s in subjects])[0]
    shutil.copytree(made(subject)[0], folder, symlinks=True)
    file = r.choice(subject.files(folder))
    return subject, f"{number} {subject.name}: {file}: {mutate(folder / file, r)}"


def removed(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


def outcome_of(subject: Subject, sound: Any, folder: Path) -> str:
    """``refused``, ``right``, or what is wrong."""
    signal.alarm(PATIENCE)
    try:
        with inside(folder):
            found = subject.read()
        return "right" if same(found, sound) else f"WRONG RESULT: {str(found)[:200]} instead of {str(sound)[:200]}"
    except UserError as error:
        text = str(error)
        return "refused" if text and "\n" not in text.strip() and "Traceback" not in text else f"SENTENCE: {text!r}"
    except (Exception, Hang) as error:
        return last_line(error)
    finally:
        signal.alarm(0)


def report(outcomes: dict[str, str]) -> None:
    """Fails with all that is wrong."""
    print(f"seed {SEED}:", dict(Counter(o if o in ("right", "refused") else "WRONG" for o in outcomes.values())))
    wrong = [f"{label} -> {o}" for label, o in outcomes.items() if o not in ("right", "refused")]
    assert not wrong, f"seed {SEED}, {len(wrong)} of {len(outcomes)}:\n" + "\n".join(wrong)
    # a reader that refused everything, or took everything, would show nothing
    least = len(outcomes) // 10
    assert all(list(outcomes.values()).count(o) >= least for o in ("right", "refused"))
