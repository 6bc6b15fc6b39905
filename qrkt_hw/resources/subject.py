"""What a report is about: a run, a preset or a lone circuit; and the whole report on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from qrkt_hw import circuits
from qrkt_hw.backends.budget import prices
from qrkt_hw.backends.device.cache import digest, remember, versions
from qrkt_hw.errors import UserError
from qrkt_hw.resources.devices import costs, on_device
from qrkt_hw.resources.schema import Description, Parameters, Report
from qrkt_hw.runs.config import Config

if TYPE_CHECKING:  # torch is imported only where a model is built: not for a report that is kept
    from qrkt_hw.ansatz import CircuitTemplate
    from qrkt_hw.data.base import DataShape
    from qrkt_hw.resources.logical import Stages

LARGEST_WORK = 1e7  # gates x outputs of a lone circuit: about a minute
# what a preset's model is built for when its images are not at hand
SHAPES = {
    "digits": {"channels": 1, "image_size": 8, "classes": 10},
    "mnist": {"channels": 1, "image_size": 28, "classes": 10},
    "cifar10": {"channels": 3, "image_size": 32, "classes": 10},
    "cifar100": {"channels": 3, "image_size": 32, "classes": 100},
}


@dataclass
class Subject:
    """A model or a circuit to report on."""

    name: str
    description: Description  # the parts without a device
    batch: int  # images of a training step
    templates: Callable[[], Sequence[CircuitTemplate]]  # distinct, in the order of description.logical.circuits

    def report(
        self, backends: Sequence[str], levels: Sequence[int], *, shots: int, images: int, training_steps: int
    ) -> Report:
        """The whole report.

        Args:
            backends: devices to transpile to; none gives the parts that need none.
            levels: optimisation levels of the transpiler.
            shots: samples per circuit.
            images: to infer.
            training_steps: to price; 0 leaves training out.

        Raises UserError: no such backend, or a circuit too large for it.
        """
        logical, chosen = self.description.logical, tuple(dict.fromkeys(levels))
        devices = [on_device(logical.circuits, self.templates, name, chosen) for name in dict.fromkeys(backends)]
        found = [
            cost
            for device in devices
            for level in (chosen if device.circuits else ())
            for cost in costs(
                logical, device, level, shots=shots, images=images, steps=training_steps, batch=self.batch
            )
        ]
        return Report(
            subject=self.name,
            shots=shots,
            devices=devices,
            costs=found,
            prices=f"{prices().date} ({prices().source})" if found else "",
            **dict(self.description),
        )


def of_options(name: str, options: Config, shape: DataShape | None = None) -> Subject:
    """The model of these options.

    Args:
        name: its name in the report.
        options: of a run or a preset.
        shape: of the data; default: that of the data set.

    Raises UserError: options that do not fit each other or the data.
    """
    size = usual_shape(options) if shape is None else asdict(shape)

    def build() -> tuple[Stages, Parameters]:
        from qrkt_hw.data import DataShape, load_data
        from qrkt_hw.models.factory import build_model, count_parameters
        from qrkt_hw.resources.logical import CountingBackend, stages_of

        data = load_data(options.data).shape if size is None else DataShape(**size)
        model, baseline = build_model(options, data, CountingBackend()), build_model(options.without_circuits(), data)
        parameters = Parameters(**count_parameters(model), twin=count_parameters(baseline)["total"])
        return stages_of(model, data), parameters

    # circuits that a run keeps are named by what they are, whatever the ansatz of that name is today
    kept = options.circuits.digest if options.circuits is not None else None
    known = size is not None and (kept or all(map(circuits.is_built_in, options.circuit.ansaetze)))
    return _subject(name, options.data.batch_size, build, [options.flat(mode="json"), size, kept] if known else [])


def of_template(ansatz: str, qubits: int, layers: int) -> Subject:
    """A lone circuit, evaluated once for an "image".

    Raises UserError: no such ansatz, a size it does not accept, or one that would take minutes."""

    def build() -> tuple[Stages, Parameters]:
        from qrkt_hw.compiler import derive
        from qrkt_hw.resources.logical import CircuitCall, as_written

        template = derive(circuits.build(ansatz, qubits, layers)).template
        work = len(template.circuit.data) * template.num_outputs
        if work > LARGEST_WORK:
            raise UserError(
                f"--layers: {ansatz} of {qubits} qubits and {layers} layers has {len(template.circuit.data):,} gates "
                f"and {template.num_outputs} outputs, which would take minutes to analyze; up to "
                f"{max(1, int(layers * LARGEST_WORK / work))} layers fit"
            )
        weights = as_written(template).num_weights
        parameters = Parameters(quantum=weights, classical=0, total=weights, twin=None)
        return [[CircuitCall("circuit", template, 1, 1)]], parameters

    key = [ansatz, qubits, layers] if circuits.is_built_in(ansatz) else []
    return _subject(f"{ansatz}:{qubits}:{layers}", 64, build, key)


def _subject(name: str, batch: int, build: Callable[[], tuple[Stages, Parameters]], key: list[Any]) -> Subject:
    """A subject whose description is kept under ``key``; without a key it is made anew, and nothing is kept."""
    built = cache(build)

    def templates() -> list[CircuitTemplate]:
        from qrkt_hw.resources.logical import templates_of

        return templates_of(built()[0])

    def describe() -> dict[str, Any]:
        from qrkt_hw.resources.logical import logical, simulability

        stages, parameters = built()
        verdicts = [simulability(template, place) for place, template in enumerate(templates())]
        return Description(logical=logical(stages), verdicts=verdicts, parameters=parameters).model_dump(mode="json")

    kept = remember("subjects", digest(*key, versions()), describe) if key else describe()
    return Subject(name, Description.model_validate(kept), batch, templates)


def usual_shape(options: Config) -> dict[str, int] | None:
    """The shape of a data set of a known one, as :class:`~qrkt_hw.data.DataShape` takes it; else None."""
    if options.data.dataset == "imdb":  # as many words as the options allow: the true vocabulary needs the texts
        words, length = options.data.vocabulary, options.data.text_length
        return {"channels": 0, "image_size": 0, "classes": 2, "vocabulary": words, "length": length}
    return SHAPES.get(options.data.dataset)
