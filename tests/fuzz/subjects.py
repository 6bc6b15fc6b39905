"""What reads files: commands in this process, and readers called directly; each with the files that are spoilt.

A subject works on a copy of a fixture, a folder that is made once. It returns what it found there, or raises UserError.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from qrkt_hw.backends import budget as pricing
from qrkt_hw.backends import entries as backend_files
from qrkt_hw.backends import noise as backend_noise
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.packing import Packer
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.circuits import build
from qrkt_hw.commands import main
from qrkt_hw.commands.options import merge
from qrkt_hw.data import load_data
from qrkt_hw.data.batches import loader
from qrkt_hw.data.images import read_image
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.comparison import MEASURES
from qrkt_hw.experiments.loading import load
from qrkt_hw.models.metrics import ReferenceClassifier, reference_classifier
from qrkt_hw.runs.config import Config
from tests.backends.device.test_journal import outcome
from tests.data import writing

TINY = ("--epochs", "1", "--limit", "32", "--qubits", "2", "--hidden", "4")
FEATURES = torch.linspace(0, 1, 64).view(1, 1, 8, 8)


class Broken(Exception):
    """Neither right nor refused."""


def command(*arguments: Any) -> str:
    """Standard output of ``qrkt-hw arguments...`` in the folder we are in.

    Raises:
        UserError: status 2 with one sentence.
        Broken: another end.
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(a) for a in arguments])
        code: Any = "no exit"
    except SystemExit as stop:
        code = stop.code or 0
    return judged(code, out.getvalue(), err.getvalue())


def judged(code: Any, out: str, err: str) -> str:
    """Standard output of a command that ended well; see :func:`command`."""
    complaints = [line for line in err.splitlines() if line.startswith("qrkt-hw: ")]
    if "Traceback" in err or code not in (0, 2) or len(complaints) != (code == 2):
        raise Broken(f"exit {code}: {err.strip()[-300:]}")
    if code == 2:
        raise UserError(complaints[0])
    return out


@dataclass(frozen=True)
class Subject:
    """Something that reads files.

    Attributes:
        make: fills an empty folder with a sound fixture.
        read: what is found in it; reads in the current folder. Where the file alone decides what is right (other pixels
            are another image) it checks that it can be, and says only that something was read.
        spoilt: patterns of the files that are spoilt.
        weight: how often, beside the others.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[], Any]
    spoilt: tuple[str, ...]
    weight: float = 1.0
    left_out: tuple[str, ...] = field(default=("plots", "tensorboard", "samples", ".lock"))

    def files(self, folder: Path) -> list[Path]:
        """All that can be spoilt, in a fixed order, relative to the folder."""
        found = {path.relative_to(folder) for pattern in self.spoilt for path in folder.glob(pattern) if path.is_file()}
        return sorted(path for path in found if not set(path.parts) & set(self.left_out))


# runs ----------------------------------------------------------------------------------------------------------------
def a_run(*options: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        command("train", *options, "--out", "run")
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save("one.png")
        command("infer", "run", "--image", "one.png") if "gan" not in options else None

    return make


tiny_run = a_run(*TINY)


gan_run = a_run("--model", "gan", *TINY[:4])


def evaluated_run(folder: Path) -> None:
    gan_run(folder)
    record = {
        "protocol_digest": "1",
        "protocol": {"samples": 9, "split": "test"},
        "metrics": dict.fromkeys(MEASURES, 1.5),
    }
    Path("run/evaluation").mkdir()
    Path("run/evaluation/1.json").write_text(json.dumps(record))


def stopped_run(folder: Path) -> None:
    """Trained for one epoch of two."""
    tiny_run(folder)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("epochs: 1\n", "epochs: 2\n"))
    Path("run/results.json").unlink()


def text_run(folder: Path) -> None:
    writing.imdb(folder)
    command("train", "--dataset", "imdb", "--model", "text", "--data-dir", ".", *TINY, "--out", "run")


def tidy(record: Any) -> Any:
    """Without what differs from call to call."""
    return {key: value for key, value in record.items() if "seconds" not in key and key != "created"}


def inferred(*arguments: str) -> Callable[[], Any]:
    return lambda: tidy(json.loads(command("infer", "run", *arguments, "--json")))


def loaded() -> Any:
    with torch.no_grad():
        return load(Path("run"))(FEATURES).tolist()


def resumed() -> Any:
    command("train", "--resume", "run")
    return [json.loads(Path("run/results.json").read_text())["test"], load_file("run/model.safetensors")]


def generated() -> Any:
    command("generate", "run", "--count", "2", "--grid", "grid.png")
    return Path("grid.png").read_bytes()


# devices -------------------------------------------------------------------------------------------------------------
def a_journal(folder: Path) -> None:
    tiny_run(folder)
    with Journal(Path("run/journal.sqlite")) as journal:
        activity = journal.start("infer", "ibm_fez", {"limit": 3, "shots": 1024})
        for state in ("planned", "submitted"):
            one = journal.intend(activity, "ibm_fez", ["a" * 64, "b" * 64], 100, 2.5)
            journal.mark(one, state, job="j")
        journal.done(one, [outcome(1), outcome(2)], 2.75)
        journal.keep_plan(activity, b"plan", "today")


def journal_read() -> Any:
    """Kinds of everything; values of the raw results, which bear a checksum."""
    with Journal(Path("run/journal.sqlite"), write=False) as journal:
        for one in journal.submissions():
            if not (isinstance(one.executions, int) and isinstance(one.state, str) and float(one.estimated) >= 0):
                raise Broken(f"a submission {one}")
        for activity in journal.activities():
            journal.plan(activity)
            journal.billed(activity)
            found = journal.outcome(activity, "b" * 64)
            if found is not None and any(not np.array_equal(outcome(2)[k].array, v.array) for k, v in found.items()):
                raise Broken("other results")


def packer() -> Packer:
    device = fake_device("fake_manila")
    return Packer(device.target, device="fake_manila", level=1, shots=256)


def a_plan(folder: Path) -> None:
    planned = packer()
    planned.plan([build("brickwork", 2, 1), build("qrkt", 3, 1)])
    Path("plan").write_bytes(planned.to_bytes())


def plan_read() -> Any:
    if not Path("plan").is_file():
        raise UserError("a plan is a cell of the journal, which something else cannot replace")
    try:
        return packer().from_bytes(Path("plan").read_bytes()).to_bytes()
    except ValueError as error:  # of which the backend that reads the journal makes its sentence
        raise UserError(str(error)) from error


def a_cache(folder: Path) -> None:
    tiny_run(folder)
    cached()


def cached() -> Any:
    usual, os.environ["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"], str(Path("cache").resolve())
    try:
        backend_noise.device_noise.cache_clear()
        noise = backend_noise.device_noise("fake_manila")
        report = json.loads(command("resources", "run", "--backend", "fake_manila", "--format", "json"))
        return report, noise.readout.tolist(), [noise.gates[key].tolist() for key in sorted(noise.gates)]
    finally:
        os.environ["XDG_CACHE_HOME"] = usual


# options -------------------------------------------------------------------------------------------------------------
def written(name: str, text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)

    return make


def run_beside_backends(folder: Path) -> None:
    tiny_run(folder)
    written("backends.yaml", BACKENDS)(folder)


def priced() -> Any:
    usual, os.environ["XDG_CONFIG_HOME"] = os.environ["XDG_CONFIG_HOME"], str(Path.cwd())
    pricing.prices.cache_clear()
    try:
        return repr(pricing.prices())
    finally:
        os.environ["XDG_CONFIG_HOME"] = usual
        pricing.prices.cache_clear()


def study() -> Any:
    from qrkt_hw.experiments import tuning

    url = f"sqlite:///{Path('study.db').absolute()}"
    found = tuning.open_study("qrkt-hw", url, [tuning.parse("qubits=2,4")], "random", True, 0)
    return tuning.rows(found)


def a_study(folder: Path) -> None:
    command("tune", "--search", "qubits=2,4", "--trials", "1", "--sampler", "random", *TINY[:4], "--out", "out")
    Path("out/study.db").rename("study.db")


BACKENDS = "mine: {provider: aer, shots: 100, optimization_level: 1}\nother: {provider: aer, fallback: mine}\n"
ANSATZ = """from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from qrkt_hw.ansatz import CircuitTemplate

def mine(qubits, layers):
    x, w = ParameterVector("x", qubits), ParameterVector("w", qubits)
    circuit = QuantumCircuit(qubits)
    for k in range(qubits):
        circuit.rx(x[k], k)
        circuit.ry(w[k], k)
    return CircuitTemplate("mine", circuit, x, w, tuple(SparsePauliOp.from_sparse_list(
        [("Z", [k], 1)], qubits) for k in range(qubits)))
"""


# data ----------------------------------------------------------------------------------------------------------------
def data(dataset: str, **more: Any) -> Callable[[], None]:
    """Reads every sample of a data set and checks that it can be one."""

    def read() -> None:
        found = load_data(Config(dataset=dataset, data_dir=Path(), **more).data)
        shape = found.shape
        if len(found.class_names) != shape.classes or not np.isfinite((*found.mean, *found.std)).all():
            raise Broken(str(found))
        for split in found.splits.values():
            for inputs, labels in loader(split, 64):
                wanted = (
                    (shape.channels, shape.image_size, shape.image_size) if not shape.vocabulary else (inputs.shape[1],)
                )
                if tuple(inputs.shape[1:]) != wanted or not 0 <= int(labels.min()) <= int(labels.max()) < shape.classes:
                    raise Broken(f"a batch of {tuple(inputs.shape)}, labels {labels.tolist()}")
                if not (torch.isfinite(inputs).all() if not shape.vocabulary else inputs.max() < shape.vocabulary):
                    raise Broken("inputs out of bounds")

    return read


def acl_imdb(folder: Path) -> None:
    for part in ("train", "test"):
        for kind in ("pos", "neg"):
            (folder / "aclImdb" / part / kind).mkdir(parents=True)
            for k in range(4):
                (folder / "aclImdb" / part / kind / f"{k}.txt").write_text(f"a {kind} film {k}")


def cifar_parquet(folder: Path) -> None:
    for part in ("train", "test"):
        writing.image_parquet(folder / f"{part}-0.parquet", 20, 32, [str(k) for k in range(10)], "img", "label")


def images(folder: Path) -> None:
    array = writing.pixels(1, 24)[0]
    for kind in ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm"):
        Image.fromarray(array).save(f"one.{kind}")
    Image.fromarray(array[..., 0].astype(np.uint16) * 257).save("deep.png")
    Image.fromarray(array).quantize(9).save("palette.png")


def images_read() -> None:
    description = {"channels": 3, "image_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3, "resized": True}
    for path in sorted(Path().iterdir()):
        found = read_image(path, description)
        if found.shape != (3, 16, 16) or not found.abs().max() <= 2:
            raise Broken(f"an image {found.shape} up to {found.abs().max()}")


def a_classifier(folder: Path) -> None:
    torch.manual_seed(0)
    save_file(ReferenceClassifier(1, 10).state_dict(), "classifier.safetensors", {"accuracy": "0.9"})


def classifier_read() -> None:
    place = Path("classifier.safetensors")
    if not place.exists():
        raise UserError("where there is no reference classifier one is trained, which takes minutes")
    model, _ = reference_classifier(load_data(Config(dataset="digits").data), Console(file=io.StringIO()), place)
    with torch.no_grad():
        if not torch.isfinite(model(FEATURES)).all():
            raise Broken("a reference classifier that gives no numbers")


RUN = ("run/**/*",)
WEIGHTS = ("run/*.safetensors", "run/config.yaml", "run/data.json", "run/results.json", "run/circuits/*")
SUBJECTS = [
    Subject("infer", tiny_run, inferred("--image", "one.png"), RUN, weight=3),
    Subject("infer split", tiny_run, inferred("--limit", "8"), RUN, weight=0.5),
    Subject("load", tiny_run, loaded, WEIGHTS, weight=4),
    Subject("infer text", text_run, inferred("--text", "a wonderful film"), WEIGHTS, weight=2),
    Subject("resources", tiny_run, lambda: command("resources", "run", "--format", "json"), WEIGHTS, weight=2),
    Subject("compare", tiny_run, lambda: bool(command("compare", "run")),
            ("run/metrics.csv", "run/results.json", "run/config.yaml", "run/data.json"), weight=0.7),
    Subject("compare gan", evaluated_run, lambda: bool(command("compare", "run")),
            ("run/evaluation/*", "run/metrics.csv"), weight=0.4),
    Subject("resume", stopped_run, resumed, (*RUN, "run/last.ckpt"), weight=0.7),
    Subject("generate", gan_run, generated, WEIGHTS, weight=1.5),
    Subject("jobs", a_journal, lambda: bool(command("jobs", "list", "run") + command("jobs", "show", "run")),
            ("run/journal.sqlite",), weight=1.5),
    Subject("journal", a_journal, journal_read, ("run/journal.sqlite",), weight=2),
    Subject("plan", a_plan, plan_read, ("plan",), weight=2),
    Subject("cache", a_cache, cached, ("cache/qrkt-hw/**/*",), weight=1.5),
    Subject("backends", written("mine.yaml", BACKENDS), lambda: bool(backend_files.layers(Path("mine.yaml"))),
            ("mine.yaml",), weight=2),
    Subject("backends here", run_beside_backends, inferred("--image", "one.png"), ("backends.yaml",)),
    Subject("config", written("mine.yaml", "epochs: 3\nlearning_rate: 0.01\naugment: flip\nqubits: 4\n"),
            lambda: isinstance(merge(None, Path("mine.yaml"), {}), Config), ("mine.yaml",), weight=2),
    Subject("prices", written("qrkt-hw/prices.yaml", (Path(pricing.__file__).parent / "prices.yaml").read_text()),
            lambda: bool(priced()), ("qrkt-hw/prices.yaml",), weight=1.5),
    Subject("ansatz", written("mine.py", ANSATZ), lambda: bool(command("circuits", "show", "mine.py:mine")),
            ("mine.py",)),
    Subject("study", a_study, lambda: isinstance(study(), list), ("study.db",), weight=0.7),
    Subject("reference classifier", a_classifier, classifier_read, ("classifier.safetensors",)),
    Subject("mnist", lambda folder: writing.mnist(folder), data("mnist"), ("mnist/*",), weight=2),
    Subject("mnist plain", lambda folder: writing.mnist(folder, packed=False), data("mnist"), ("mnist/*",)),
    Subject("cifar10", lambda folder: writing.cifar_pickles(folder, "cifar10"), data("cifar10"),
            ("cifar10/*/*",), weight=2),
    Subject("cifar100 archive", lambda folder: writing.cifar_pickles(folder, "cifar100", True), data("cifar100"),
            ("cifar100/*",), weight=2),
    Subject("cifar10 parquet", cifar_parquet, data("cifar10"), ("*.parquet",), weight=2),
    Subject("imagenet", lambda folder: writing.imagenet_parquet(folder, 2, 10, 16), data("imagenet", image_size=16),
            ("imagenet/*",), weight=2),
    Subject("imdb", lambda folder: writing.imdb(folder), data("imdb"), ("imdb/*",), weight=2),
    Subject("imdb texts", acl_imdb, data("imdb"), ("aclImdb/**/*",)),
    Subject("folder", lambda folder: writing.image_folder(folder / "pets", {"train": 8, "val": 4}, 16),
            data("folder:pets", image_size=16), ("pets/**/*",), weight=2),
    Subject("images", images, images_read, ("*",), weight=4),
]  # fmt: skip


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def last_line(error: BaseException) -> str:
    """Kind and place of an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "qrkt_hw" in f.filename] or [None]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames[-1] else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"
