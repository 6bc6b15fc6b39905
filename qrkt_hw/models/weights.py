"""Reading trained weights into a model."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from qrkt_hw.errors import UserError


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill ``model`` from a safetensors file.

    Raises:
        UserError: the file is missing, is not safetensors, or belongs to a model of another shape.
    """
    try:
        model.load_state_dict(load_file(file))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: it is not a safetensors file") from error
    except RuntimeError as error:
        raise UserError(f"{file} is damaged: its tensors do not fit the run's configuration") from error
