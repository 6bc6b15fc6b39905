"""The whole report on one subject."""

from __future__ import annotations

from collections.abc import Sequence

from qrkt_hw.resources.costs import costs
from qrkt_hw.resources.devices import on_device
from qrkt_hw.resources.schema import Report
from qrkt_hw.resources.subject import Subject


def make(
    subject: Subject, backends: Sequence[str], levels: Sequence[int], *, shots: int, images: int, training_steps: int
) -> Report:
    """The report on a subject.

    Args:
        subject: a model or a template.
        backends: devices to transpile to; none gives the parts that need none.
        levels: optimisation levels.
        shots: samples per circuit.
        images: to infer.
        training_steps: to price; 0 leaves training out.

    Raises:
        UserError: no such backend, or a circuit too large for it.
    """
    chosen = tuple(dict.fromkeys(levels))
    devices = [on_device(subject, name, chosen) for name in dict.fromkeys(backends)]
    logical = subject.description.logical
    found = []
    for device in devices:
        for level in () if device.simulated or not device.circuits else chosen:
            found += costs(
                logical, device, level, shots=shots, images=images, steps=training_steps, batch=subject.batch
            )
    listed = ""
    if found:
        from qrkt_hw.backends.device.budget import prices

        listed = f"{prices().date} ({prices().source})"
    return Report(
        subject=subject.name,
        shots=shots,
        logical=logical,
        devices=devices,
        costs=found,
        verdicts=subject.description.verdicts,
        parameters=subject.description.parameters,
        prices=listed,
    )
