"""Aer beside the torch simulator, which trains in its place: the same circuits on both, compared."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.exact import ExactBackend, evaluate_by_weights
from qrkt_hw.data import Data
from qrkt_hw.data.batches import first, loader
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import evaluated_on
from qrkt_hw.models.gan import Gan
from qrkt_hw.simulator import REAL

BOUNDS = {torch.complex128: 1e-8, torch.complex64: 1e-5}  # of a difference of two expectation values
SAMPLES = 32  # that the backend evaluates after a training


class _Both(Backend):
    """Values of a backend; ``largest`` is how far those of the torch simulator were from them, in each precision."""

    def __init__(self, backend: Backend, stand_in: ExactBackend) -> None:
        super().__init__(backend.name)
        self.backend, self.other = backend, stand_in
        self.largest = dict.fromkeys(BOUNDS, 0.0)

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        found = self.backend.run(calls)
        for call, values in zip(calls, found, strict=True):
            for dtype in BOUNDS:
                function, real = self.other.simulator(call.template, dtype), REAL[dtype]

                def computed(inputs: Tensor, weights: Tensor, function: Any = function, real: Any = real) -> Tensor:
                    return function(inputs.to(real), weights.to(real)).double()

                other = evaluate_by_weights(call, computed, call.template.num_outputs)
                difference = np.abs(values.reshape(other.shape) - other)
                # NaN is as wrong as can be
                self.largest[dtype] = max(self.largest[dtype], float(np.nan_to_num(difference, nan=np.inf).max()))
        return found


def agreement(backend: Backend, model: nn.Module, data: Data, count: int = 1) -> dict[str, Any]:
    """Compare a backend with ``backend.stand_in``, which computes in its place in a training.

    Args:
        backend: with a stand-in.
        model: a classifier, or a GAN.
        data: its first test samples are evaluated; a GAN generates images and scores them.
        count: samples; fewer where the split has fewer.

    Returns:
        What ``results.json`` keeps under ``agreement``: ``samples``, ``accuracy`` of a classifier, ``circuits``,
        ``largest_difference`` of two expectation values, and ``seconds``.

    Raises:
        UserError: an expectation value differs by more than rounding.
    """
    started, both = time.perf_counter(), _Both(backend, backend.stand_in)  # type: ignore[arg-type]
    circuits, found, like = backend.counters.circuits, dict[str, Any](), next(model.parameters())
    with evaluated_on(model, both):
        if isinstance(model, Gan):
            noise = torch.randn(count, model.latent, generator=torch.Generator().manual_seed(0))
            model.discriminator(model.generator(noise.to(like)))
        else:
            inputs, labels = next(iter(loader(first(data.splits["test"], count), count)))
            classes = model(inputs.to(like.device)).argmax(-1).cpu()
            count, found = len(labels), {"accuracy": float((classes == labels).double().mean())}
    for dtype, bound in BOUNDS.items():
        if not both.largest[dtype] <= bound:
            what = f"an expectation value differs by {both.largest[dtype]:.1e} from the torch simulator's ({dtype})"
            raise UserError(
                f"backend {backend.name!r}: {what}; the bound is {bound:g}. Train with --backend exact, or with "
                "--gradient parameter_shift on this backend"
            )
    return {
        "samples": count, **found, "circuits": backend.counters.circuits - circuits,
        "largest_difference": both.largest[torch.complex128], "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip
