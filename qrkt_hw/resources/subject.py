"""What a report is about: a model or a lone template, with the parts of the report that need no device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrkt_hw.backends.device.cache import digest, remember, versions
from qrkt_hw.errors import UserError
from qrkt_hw.options.run import RunOptions
from qrkt_hw.resources.schema import Logical, Parameters, Part, Verdict

if TYPE_CHECKING:
    from qrkt_hw.ansatz import CircuitTemplate
    from qrkt_hw.data.base import DataShape

LARGEST_WORK = 1e7  # gates x outputs of a lone template: about a minute
BUILT_IN = Path(__file__).parents[2] / "circuits"
# what a preset's model is built for when its images are not at hand
SHAPES = {
    "digits": {"channels": 1, "image_size": 8, "classes": 10},
    "mnist": {"channels": 1, "image_size": 28, "classes": 10},
    "cifar10": {"channels": 3, "image_size": 32, "classes": 10},
    "cifar100": {"channels": 3, "image_size": 32, "classes": 100},
}


class Description(Part):
    """The parts of a report that do not depend on a device."""

    logical: Logical
    verdicts: list[Verdict]
    parameters: Parameters


@dataclass
class Subject:
    """A model or a template to report on.

    Attributes:
        name: how it is called in the report.
        description: the parts without a device.
        batch: images of a training step.
        make: builds the distinct templates in the order of ``description.logical.circuits``.
    """

    name: str
    description: Description
    batch: int
    make: Callable[[], list[CircuitTemplate]]
    _templates: list[CircuitTemplate] | None = field(default=None, repr=False)

    def template(self, circuit: int) -> CircuitTemplate:
        """The template of a circuit of the description; built on first use."""
        if self._templates is None:
            self._templates = self.make()
        return self._templates[circuit]


def of_options(name: str, options: RunOptions, shape: dict[str, int] | None = None) -> Subject:
    """The model of these options.

    Args:
        name: how it is called in the report.
        options: of a run or a preset.
        shape: fields of the data's ``DataShape``; default: those of the data set.

    Raises:
        UserError: options that do not fit each other or the data.
    """
    size = shape or _usual_shape(options)

    def traced() -> tuple[Description, list[CircuitTemplate]]:
        return _describe_model(options, _shape(options, size))

    found: list[list[CircuitTemplate]] = []

    def compute() -> dict[str, Any]:
        description, templates = traced()
        found.append(templates)
        return description.model_dump(mode="json")

    # circuits that a run keeps are named by what they are, whatever the ansatz of that name is today
    circuits = options.circuits.digest if options.circuits is not None else None
    fixed = [options.model_dump(mode="json"), size, circuits]
    kept = (
        compute()
        if size is None or not (circuits or _cacheable(options.ansatz))
        else remember("subjects", digest(fixed, versions()), compute)
    )
    return Subject(
        name,
        Description.model_validate(kept),
        options.batch_size,
        lambda: found[0] if found else traced()[1],
    )


def of_run(name: str, options: RunOptions, description: dict[str, Any]) -> Subject:
    """The model of a run, by its options and its ``data.json``."""
    return of_options(name, options, shape_of(description))


def shape_of(description: dict[str, Any]) -> dict[str, int]:
    """Fields of the ``DataShape`` that a run's ``data.json`` describes."""
    shape = {key: description[key] for key in ("channels", "image_size")}
    shape["classes"] = len(description["class_names"])
    if description.get("vocabulary"):
        shape.update(vocabulary=len(description["vocabulary"]), length=description["length"])
    return shape


def summarize(options: RunOptions, shape: DataShape, shots: int | None) -> list[str]:
    """Two lines on the circuits of these options for the start of a command; leaves torch's generator alone."""
    import torch

    from qrkt_hw.models.factory import build_model
    from qrkt_hw.resources.logical import logical
    from qrkt_hw.resources.tables import summary
    from qrkt_hw.resources.trace import CountingBackend, trace

    with torch.random.fork_rng(devices=[]):
        backend = CountingBackend()
        part, _ = logical(trace(build_model(options, shape, backend), backend, shape))
    return summary(part, shots, "text" if shape.vocabulary else "image")


def of_template(ansatz: str, qubits: int, layers: int) -> Subject:
    """A lone template, evaluated once for an "image".

    Raises:
        UserError: no such ansatz, a size it does not accept, or one that would take minutes.
    """

    def make() -> list[CircuitTemplate]:
        from qrkt_hw.circuits import build
        from qrkt_hw.compiler import derive

        template = derive(build(ansatz, qubits, layers)).template
        work = len(template.circuit.data) * template.num_outputs
        if work > LARGEST_WORK:
            fitting = max(1, int(layers * LARGEST_WORK / work))
            raise UserError(
                f"--layers: {ansatz} of {qubits} qubits and {layers} layers has {len(template.circuit.data):,} gates "
                f"and {template.num_outputs} outputs, which would take minutes to analyze; up to {fitting} layers fit"
            )
        return [template]

    def compute() -> dict[str, Any]:
        from qrkt_hw.resources.logical import as_written, logical
        from qrkt_hw.resources.trace import Asked
        from qrkt_hw.resources.verdict import verdict

        (template,) = make()
        part, _ = logical([[Asked("circuit", template, 1, 1)]])
        weights = as_written(template).num_weights
        parameters = Parameters(quantum=weights, classical=0, total=weights, twin=None)
        return Description(logical=part, verdicts=[verdict(template, 0)], parameters=parameters).model_dump(mode="json")

    key = digest(ansatz, qubits, layers, versions())
    kept = remember("subjects", key, compute) if _cacheable(ansatz) else compute()
    return Subject(f"{ansatz}:{qubits}:{layers}", Description.model_validate(kept), 64, make)


def _describe_model(options: RunOptions, shape: DataShape) -> tuple[Description, list[CircuitTemplate]]:
    from qrkt_hw.models.factory import build_model, count_parameters
    from qrkt_hw.resources.logical import logical
    from qrkt_hw.resources.trace import CountingBackend, trace
    from qrkt_hw.resources.verdict import verdict

    backend = CountingBackend()
    model = build_model(options, shape, backend)
    part, templates = logical(trace(model, backend, shape))
    twin = build_model(options.without_circuits(), shape)
    counts = count_parameters(model)
    return (
        Description(
            logical=part,
            verdicts=[verdict(template, place) for place, template in enumerate(templates)],
            parameters=Parameters(**counts, twin=count_parameters(twin)["total"]),
        ),
        templates,
    )


def _usual_shape(options: RunOptions) -> dict[str, int] | None:
    if options.dataset == "imdb":  # as many words as the options allow: the true vocabulary needs the texts
        words, length = getattr(options, "vocabulary", 0), getattr(options, "text_length", 0)
        return {"channels": 0, "image_size": 0, "classes": 2, "vocabulary": words, "length": length}
    return SHAPES.get(options.dataset)


def _shape(options: RunOptions, size: dict[str, int] | None) -> DataShape:
    from qrkt_hw.data import DataShape, load_data

    return DataShape(**size) if size is not None else load_data(options).shape


def _cacheable(ansatz: str) -> bool:
    """Whether the circuits are ours: a user's own file or package may change without notice."""
    return (BUILT_IN / f"{ansatz}.py").is_file()
