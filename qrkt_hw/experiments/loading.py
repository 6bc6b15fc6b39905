"""A trained model from its run folder."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from qrkt_hw.backends import Backend
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.build import build_model
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
    shape = folder.description()
    model = build_model(
        folder.options(), DataShape(shape["channels"], shape["image_size"], len(shape["class_names"])), backend
    )
    if not folder.model.is_file():
        raise UserError(
            f"run: {folder.path} has no trained model yet; go on with: qrkt-hw train --resume {folder.path}"
        )
    try:
        model.load_state_dict(load_file(folder.model))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder.model} is damaged: it is not a safetensors file") from error
    except RuntimeError as error:
        raise UserError(f"{folder.model} is damaged: its tensors do not fit the run's configuration") from error
    return model.eval()
