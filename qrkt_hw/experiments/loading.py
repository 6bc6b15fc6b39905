"""A trained model from its run folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from qrkt_hw.backends import Backend
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.build import build_model
from qrkt_hw.models.weights import load_weights
from qrkt_hw.runs import RunFolder, newest


def load(run: str | Path | RunFolder | None = None, backend: str | Backend = "exact") -> nn.Module:
    """The trained model of a run, in evaluation mode.

    Args:
        run: its folder; None takes the newest under ``runs/``.
        backend: where its circuits run; the weights do not depend on it.

    Raises:
        UserError: not a run, a damaged one, or one without a trained model yet.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(Path(run) if run is not None else newest())
    model = build_model(folder.options(), DataShape.of(folder.description()), backend)
    if not folder.model.is_file():
        raise UserError(
            f"run: {folder.path} has no trained model yet; go on with: qrkt-hw train --resume {folder.path}"
        )
    load_weights(model, folder.model)
    return model.eval()
