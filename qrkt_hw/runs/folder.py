"""A run folder and what lies in it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qrkt_hw.errors import UserError
from qrkt_hw.options.run import RunOptions
from qrkt_hw.options.validation import sentence
from qrkt_hw.runs.atomic import write_json, write_text
from qrkt_hw.runs.environment import environment

RUNS = Path("runs")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and _number(value) and value > 0


# what data.json must hold under a key, where it holds the key
_IMAGES_ONLY = ("channels", "image_size", "mean", "std")
_DESCRIPTION: dict[str, Callable[[Any], bool]] = {
    "channels": _count,
    "image_size": _count,
    "class_names": lambda v: isinstance(v, list) and len(v) > 0 and all(isinstance(name, str) for name in v),
    "mean": lambda v: isinstance(v, list) and all(map(_number, v)),
    "std": lambda v: isinstance(v, list) and all(_number(x) and x > 0 for x in v),
}


class RunFolder:
    """Paths and contents of one run. The names are fixed; later work adds files and renames none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.data = path / "data.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.csv"
        self.results = path / "results.json"
        self.model = path / "model.safetensors"
        self.checkpoint = path / "last.ckpt"
        self.plots = path / "plots"
        self.inference = path / "inference"
        self.tensorboard = path / "tensorboard"
        self.journal = path / "journal.sqlite"

    @classmethod
    def create(cls, options: RunOptions, data: dict[str, Any], path: Path | None = None) -> RunFolder:
        """Make a new run folder in one step: it appears with its configuration inside, or not at all.

        Raises:
            UserError: the folder exists and is not empty, or cannot be written.
        """
        path = path or _fresh_name(options)
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"--out: {str(path)!a} is not a name in UTF-8") from error
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(f"--out: {path} exists already; name another folder, or go on with --resume {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        except OSError as error:
            raise UserError(f"--out: {path} cannot be written: {error.strerror}") from error
        try:
            staging.chmod(0o755)
            run = cls(staging)
            write_text(run.config, yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False))
            write_json(run.data, data)
            write_json(run.environment, environment())
            staging.replace(path)
        except OSError as error:
            raise UserError(f"--out: {path} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            UserError: no such folder, or it is not a run.
        """
        run = cls(path)
        if not path.is_dir():
            raise UserError(f"run: no folder {path}")
        if not run.config.is_file() or not run.data.is_file():
            raise UserError(f"run: {path} is not a run folder (no config.yaml and data.json in it)")
        return run

    def options(self) -> RunOptions:
        """The run's configuration.

        Raises:
            UserError: the file is damaged.
        """
        try:
            values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            return RunOptions.model_validate(values)
        except OSError as error:
            raise UserError(f"{self.config} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{self.config} is damaged: it is not YAML") from error
        except ValidationError as error:
            raise UserError(f"{self.config} is damaged: {sentence(error)}") from error

    def description(self) -> dict[str, Any]:
        """The run's ``data.json``: what the model must know of its data.

        Raises:
            UserError: the file is damaged.
        """
        value = read_json(self.data)
        missing = {"dataset", "channels", "image_size", "class_names", "mean", "std"} - set(value)
        if missing:
            raise UserError(f"{self.data} is damaged: it lacks {', '.join(sorted(missing))}")
        text = bool(value.get("vocabulary"))
        for key, wanted in _DESCRIPTION.items():
            if text and key in _IMAGES_ONLY:
                continue
            if key in value and not wanted(value[key]):
                raise UserError(f"{self.data} is damaged: its {key} is {str(value[key])[:40]!r}")
        return value

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that trains into this run; clears away what a killed one left half-written.

        Raises:
            UserError: another process is training into it, or the folder cannot be written.
        """
        try:
            handle = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"run: {self.path} cannot be written: {error.strerror}") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"run: another process is training into {self.path}") from error
            try:
                for leftover in self.path.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
                yield
            except OSError as error:
                where = Path(os.fsdecode(error.filename)).absolute() if error.filename is not None else Path("/")
                if self.path.absolute() not in where.parents and error.errno not in _DISK:
                    raise
                raise UserError(f"run: {error.filename or self.path} cannot be written: {error.strerror}") from error

    def check_inference(self) -> None:
        """Make sure that an inference can be kept, before its work is done.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.inference.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=self.inference).close()
        except OSError as error:
            raise UserError(f"run: {self.inference} cannot be written: {error.strerror}") from error

    def keep_inference(self, record: dict[str, Any]) -> Path:
        """Write an inference under a name of its own; returns the file."""
        self.check_inference()
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        path = self.inference / f"{stamp}-{record['backend']}.json"
        write_json(path, record)
        return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: missing, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object")
    return value


def newest(root: Path = RUNS) -> Path:
    """The newest run under ``root``, by the time its configuration was written.

    Raises:
        UserError: there is none.
    """
    found = [config for config in root.glob("*/config.yaml") if (config.parent / "data.json").is_file()]
    if not found:
        raise UserError(f"run: no run under {root}{'/'}; train one first (qrkt-hw train) or name a run folder")
    return max(found, key=lambda config: (config.stat().st_mtime_ns, config.parent.name)).parent


def _fresh_name(options: RunOptions) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = RUNS / f"{stamp}-{options.dataset.replace(':', '-').replace('/', '-')}-{options.model}"
    path, k = base, 1
    while path.exists():
        k += 1
        path = base.with_name(f"{base.name}-{k}")
    return path
