"""A run folder and what lies in it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import qrkt_hw
from qrkt_hw.backends.device.cache import locked
from qrkt_hw.backends.entries import load_yaml
from qrkt_hw.errors import RunWarning, UserError, sentence
from qrkt_hw.runs.atomic import check_writable, write_json, write_text
from qrkt_hw.runs.config import Config, is_nested, of_kept, problem

RUNS = Path("runs")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
LARGEST = 256 * 1024  # bytes of a configuration
PACKAGES = (
    "qiskit", "qiskit-machine-learning", "qiskit-aer", "qiskit-ibm-runtime", "torch", "torchvision", "lightning-fabric",
    "datasets", "numpy",
)  # fmt: skip


Count = Annotated[int, Field(gt=0, le=10_000_000)]
Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
Names = Annotated[list[str], Field(min_length=1)]


class _Description(BaseModel):
    """What data.json must hold under a key, where it holds the key."""

    model_config = ConfigDict(strict=True)

    channels: Count = 1
    image_size: Count = 1
    class_names: Names = [""]
    mean: list[Number] = []
    std: list[Annotated[Number, Field(gt=0)]] = []
    vocabulary: list[str] = []
    length: Count = 1


class RunFolder:
    """Paths and contents of one run. The names are fixed; later work adds files and renames none.

    Args:
        path: of the folder.
        trust: of an old run without kept circuits, import the Python file that its configuration names.
    """

    def __init__(self, path: Path, trust: bool = False) -> None:
        self.path, self.trust = path, trust
        self._circuits: Any = None
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
        self.origin = path / "origin.json"  # when it was made, of which preset, from which run's weights
        self.initial = path / "initial.safetensors"  # the weights that a fine-tuning starts from

    @classmethod
    def create(
        cls,
        options: Config,
        data: dict[str, Any],
        path: Path | None = None,
        origin: dict[str, Any] | None = None,
        initial: Callable[[Path], None] | None = None,
    ) -> RunFolder:
        """Make a new run folder in one step: it appears with its configuration inside, or not at all.

        Args:
            options, data: its configuration, and what the model must know of its data.
            path: its place; None makes a new one under ``runs/``.
            origin: for ``origin.json``: ``preset``, and ``from``, the run whose weights it starts from.
            initial: writes these weights into a file.

        Raises:
            UserError: the folder exists and is not empty, or cannot be written.
        """
        path = path or _fresh_name(options)
        _check_name(path, "--out")
        staging = None
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(f"--out: {path} exists already; name another folder, or resume it with --resume {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            staging.chmod(0o755)
            run = cls(staging)
            run.write_options(options)
            write_json(run.data, data)
            write_json(run.origin, {"created": datetime.now().isoformat(timespec="seconds"), **(origin or {})})
            if initial is not None:
                initial(run.initial)
            write_json(run.environment, environment())
            if options.circuits is not None:
                options.circuits.write(staging / "circuits")
            staging.replace(path)
        except OSError as error:
            raise UserError(f"--out: {path} cannot be written: {error.strerror}") from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path, trust: bool = False) -> RunFolder:
        """An existing run; ``trust`` as above.

        Raises:
            UserError: no such folder, or it is not a run.
        """
        _check_name(path, "run")
        if not path.exists() and len(path.parts) == 1 and (RUNS / path).is_dir():
            path = RUNS / path
        run = cls(path, trust)
        if path.is_file():
            raise UserError(f"run: {path} is a file; name the folder of a run")
        if not path.is_dir():
            raise UserError(f"run: no folder {path}; qrkt-hw runs lists the runs under {RUNS}/")
        if not run.config.is_file() or not run.data.is_file():
            raise UserError(
                f"run: {path} is not a run folder (no config.yaml and data.json in it); qrkt-hw runs lists the runs"
            )
        return run

    def options(self) -> Config:
        """The run's configuration; its ``circuits`` are those that the run keeps, read when they are first used.

        Raises:
            UserError: the file is damaged.
        """
        values, text = read_yaml(self.config, f"{self.config} is damaged: it")
        # what was cut off at its end would read as another configuration; the last key of a flat one is backends_file
        whole = text.endswith("\n...\n") if is_nested(values) else text.endswith("\n") and "backends_file" in values
        if not whole:
            raise UserError(f"{self.config} is damaged: its end is missing")
        try:
            options = of_kept(values)
        except (ValidationError, ValueError) as error:
            said = problem(error)[1] if isinstance(error, ValidationError) else error
            raise UserError(f"{self.config} is damaged: {said}") from error
        return options.with_circuits(partial(self._kept, options.circuit.ansaetze))

    def write_options(self, options: Config) -> None:
        """Write ``config.yaml``, whole or not at all."""
        write_text(self.config, yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False, explicit_end=True))

    def epochs_done(self) -> int:
        """Whole epochs, by ``metrics.csv``."""
        try:
            return max(0, len(self.metrics.read_bytes().splitlines()) - 1)
        except OSError:
            return 0

    def summary(self) -> dict[str, Any]:
        """The run in a few figures, for a list: ``name, path, preset, dataset, model, backend, seed, accuracy, epochs,
        epochs_done, state, created``; ``accuracy`` on the test split, None without. A damaged run is one ``state``."""
        found: dict[str, Any] = {"name": self.path.name, "path": str(self.path)}
        known = "preset dataset model backend seed accuracy epochs epochs_done state created"
        found.update(dict.fromkeys(known.split()))
        try:
            options = self.options()
            origin = read_json(self.origin) if self.origin.is_file() else {}
            results = read_json(self.results) if self.results.is_file() else None
        except UserError as error:
            return found | {"state": "damaged", "problem": str(error)}
        done, epochs, test = self.epochs_done(), options.training.epochs, (results or {}).get("test")
        found |= {"preset": origin.get("preset"), "created": origin.get("created"), "epochs": epochs}
        found |= {"dataset": options.data.dataset, "model": options.model.kind, "backend": options.backend.name}
        found |= {"seed": options.training.seed, "epochs_done": done}
        found["accuracy"] = test.get("accuracy") if isinstance(test, dict) else None
        whole = results is not None and done >= epochs
        return found | {"state": "finished" if whole else f"{done} of {epochs} epochs"}

    def _kept(self, ansaetze: tuple[str, ...]) -> Any:
        if self._circuits is None or self._circuits.ansaetze != ansaetze:
            from qrkt_hw.runs import circuits  # it takes qiskit, which a comparison of runs does not need

            self._circuits = circuits.of_run(self.path, ansaetze, self.trust)
        return self._circuits

    def description(self) -> dict[str, Any]:
        """The run's ``data.json``: what the model must know of its data.

        Raises:
            UserError: the file is damaged.
        """
        value = read_json(self.data)
        check_description(value, f"{self.data} is damaged")
        if self._of_results("data_sha256") not in (None, self.data_sha256()):
            raise UserError(f"{self.data} is not what this run was trained with: results.json has another data_sha256")
        return value

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that trains into this run; clears away what a killed one left half-written.

        Raises:
            UserError: another process is training into it, or the folder cannot be written.
        """
        try:
            handle = locked(self.path / ".lock")
        except OSError as error:
            raise UserError(f"run: {self.path} cannot be written: {error.strerror}") from error
        if handle is None:
            raise UserError(f"run: another process is training into {self.path}")
        with handle:
            try:
                for leftover in self.path.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
                yield
            except OSError as error:
                where = Path(os.fsdecode(error.filename)).absolute() if error.filename is not None else Path("/")
                if self.path.absolute() not in where.parents and error.errno not in _DISK:
                    raise
                raise UserError(f"run: {error.filename or self.path} cannot be written: {error.strerror}") from error

    def weights_sha256(self) -> str | None:
        """The hash of the trained weights that ``results.json`` keeps; None for an old or unfinished run."""
        return self._of_results("weights_sha256")

    def data_sha256(self) -> str:
        """The hash of ``data.json``, which ``results.json`` keeps beside that of the weights."""
        return hashlib.sha256(self.data.read_bytes()).hexdigest()

    def _of_results(self, key: str) -> str | None:
        kept = read_json(self.results).get(key) if self.results.is_file() else None
        return kept if isinstance(kept, str) else None

    def discard_untrained(self) -> None:
        """Remove a folder in which no epoch was finished and from which nothing was sent to a device."""
        if not self.checkpoint.exists() and not self.model.exists() and not self._sent():
            shutil.rmtree(self.path, ignore_errors=True)

    def _sent(self) -> bool:
        if not self.journal.exists():
            return False
        from qrkt_hw.backends.device.journal import Journal

        try:
            with Journal(self.journal, write=False) as journal:
                return bool(journal.submissions())
        except UserError:
            return True

    def check_inference(self) -> None:
        """Make sure that an inference can be kept, before its work is done.

        Raises:
            UserError: the folder cannot be written.
        """
        check_writable(self.inference, "run")

    def keep_inference(self, record: dict[str, Any]) -> Path | None:
        """Write an inference under a name of its own; returns the file. Warns where the folder cannot be written."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        path = self.inference / f"{stamp}-{record['backend']}.json"
        try:
            self.inference.mkdir(exist_ok=True)
            write_json(path, record)
        except OSError as error:
            text = f"run: {self.inference} cannot be written ({error.strerror}); the record is not kept"
            warnings.warn(text, RunWarning)
            return None
        return path


def check_description(value: dict[str, Any], damaged: str) -> None:
    """Make sure that a ``data.json`` holds what a model and its reader ask for. Raises UserError, ``damaged`` first."""
    missing = {"dataset", "channels", "image_size", "class_names", "mean", "std"} - set(value)
    if missing:
        raise UserError(f"{damaged}: it lacks {', '.join(sorted(missing))}")
    text = bool(value.get("vocabulary"))
    images_only = ("channels", "image_size", "mean", "std") if text else ()
    try:
        _Description.model_validate({key: given for key, given in value.items() if key not in images_only})
    except ValidationError as error:
        raise UserError(f"{damaged}: {sentence(error)}") from error
    if text and "length" not in value:
        raise UserError(f"{damaged}: it has a vocabulary and lacks length")
    for key in () if text else ("mean", "std"):
        if len(value[key]) != value["channels"]:
            raise UserError(f"{damaged}: its {key} has {len(value[key])} numbers for {value['channels']} channels")


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object")
    return value


def read_yaml(path: Path, named: str) -> tuple[dict[str, Any], str]:
    """The keys of a YAML file, and its text.

    Raises:
        UserError: no such file, too large, not YAML, or not a mapping of names; begins with ``named``.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{named} is no file that can be read: it is a folder, a pipe or a device")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{named} holds more than {LARGEST:,} bytes")
        text = path.read_text(encoding="utf-8")
        values = load_yaml(text)
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{named} is not text") from error
    except RecursionError as error:
        raise UserError(f"{named} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # also a number of thousands of digits
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else f": {str(error).splitlines()[0].partition(';')[0]}"
        why = str(getattr(error, "problem", None))
        if why.endswith("stands twice"):
            raise UserError(f"{named} is not right: {why}{where}") from error
        raise UserError(f"{named} is not YAML{where}") from error
    if values is None:
        return {}, text
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{named} must hold keys and values, such as 'hidden: 16'")
    return values, text


def newest(root: Path = RUNS, having: str = "model.safetensors") -> Path:
    """The newest run under ``root`` that has a trained model, by the time its configuration was written.

    Args:
        root: folder of runs.
        having: the file that it must have. Newer runs without it are passed over with a warning.

    Raises:
        UserError: there is none.
    """
    found = [config for config in root.glob("*/config.yaml") if (config.parent / "data.json").is_file()]
    if not found:
        raise UserError(f"run: no run under {root}/; train one first (qrkt-hw train) or name a run folder")
    found.sort(key=lambda config: (config.stat().st_mtime_ns, config.parent.name), reverse=True)
    skipped: list[Path] = []
    for run in (config.parent for config in found):
        if (run / having).is_file():
            if skipped:
                others = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
                warnings.warn(f"skipped {skipped[0]}{others}, which has no {having}; took {run}", RunWarning)
            return run
        skipped.append(run)
    how = f" (resume it with: qrkt-hw train --resume {skipped[0]})" if having == "model.safetensors" else ""
    raise UserError(f"run: no run under {root}/ has a {having}; the newest is {skipped[0]}{how}")


def under(root: Path) -> list[RunFolder]:
    """The run folders in a folder and up to three below it, the newest last; itself where it is one."""
    configs = [file for below in ("", "*/", "*/*/", "*/*/*/") for file in root.glob(f"{below}config.yaml")]
    found = [file for file in configs if (file.parent / "data.json").is_file()]
    return [RunFolder(f.parent) for f in sorted(found, key=lambda f: (f.stat().st_mtime_ns, f.parent.name))]


def environment() -> dict[str, Any]:
    """What a figure was measured on: versions, processor count, accelerators; no user name, host name or path."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "qrkt-hw": qrkt_hw.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "packages": versions,
    }


def _check_name(path: Path, named: str) -> None:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{named}: {str(path)!a} is not a name in UTF-8; take another name") from error


def named(name: str) -> Path:
    """The folder of a run of this name: ``runs/NAME``."""
    if (
        name in ("", ".", "..")
        or name != name.strip()
        or name != Path(name).name
        or name.startswith((".", "-"))
        or not name.isprintable()
    ):
        raise UserError(f"--name: {name!r} is not a name of a folder; --out takes a path")
    return RUNS / name


def _fresh_name(options: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = RUNS / f"{stamp}-{options.data.dataset.replace(':', '-').replace('/', '-')}-{options.model.kind}"
    path, k = base, 1
    while path.exists():
        k += 1
        path = base.with_name(f"{base.name}-{k}")
    return path
