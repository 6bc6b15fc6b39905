"""The plan of an inference on a device, and its limits."""

from __future__ import annotations

from typing import Any

from qrkt_hw.errors import UserError


def planned(
    model: Any,
    options: Any,
    shape: Any,
    backend: Any,
    samples: int,
    batch: int,
    budget: Any,
    *,
    refuse: bool = True,
) -> Any:
    """The forecast of an inference.

    Args:
        model: of the run, with its options and the shape of its data.
        backend: where it runs.
        samples: images or texts.
        batch: of them that go through the model together.
        budget: limits from flags; without any the backend's own count.
        refuse: whether a plan beyond the limits is an error.

    Raises:
        UserError: the backend is no device that samples, or the plan exceeds a limit.
    """
    from qrkt_hw.resources.forecast import cheaper_model, check, forecast
    from qrkt_hw.resources.logical import stages_of

    if getattr(backend, "packer", None) is None or not backend.shots:
        raise UserError(
            f"--dry-run, --max-qpu-seconds and --max-cost are for devices that sample; {backend.name} does not: "
            "name a device, or a snapshot with --shots"
        )
    stages = stages_of(model, shape)
    plan = forecast(stages, samples, batch, backend)
    budget = backend.budget(budget)
    if refuse and budget is not None:

        def cheaper(limit: float) -> str | None:
            return cheaper_model(options, shape, samples, batch, backend, limit)

        check(plan, budget, stages, batch, backend, cheaper)
    return plan
