"""Trained weights as a file: written with their hash, read with every check."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from qrkt_hw.errors import UserError

KEPT = "qrkt-hw"  # the entry of a file's header


def sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of weights: their names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save_weights(state: Mapping[str, Tensor], file: Path, epoch: int) -> None:
    """Write weights as safetensors; the header holds the epoch and the hash of the weights."""
    # stages share their norms; a safetensors file wants each tensor in memory of its own
    own = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    # bytes, not save_file: that makes a file which nobody else may read
    # one entry alone: safetensors writes several in any order, and the same weights must be the same bytes
    file.write_bytes(save(own, {KEPT: json.dumps({"epoch": epoch, "sha256": sha256(own)})}))


def read_weights(model: nn.Module, file: Path, expected: str | None = None) -> dict[str, Tensor]:
    """The weights of a safetensors file that fit ``model``; the model is left as it is.

    Args:
        model: whose names, shapes and dtypes the file must have.
        file: with or without a hash in its header.
        expected: the hash that the run keeps; None where it keeps none.

    Raises UserError: the file is missing, cannot be read, is damaged, or belongs to a model of another shape.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    try:
        state = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        kept = json.loads(header.get("__metadata__", {}).get(KEPT, "{}")).get("sha256")
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged: it is not a safetensors file") from error
    wanted = model.state_dict()
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in wanted.items()}:
        raise UserError(f"{file} is damaged: its tensors do not fit the run's configuration")
    for name, value in state.items():
        if value.dtype != wanted[name].dtype:
            found, right = (str(kind).removeprefix("torch.") for kind in (value.dtype, wanted[name].dtype))
            raise UserError(f"{file} is damaged: {name} holds {found}, not {right}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{file} is damaged: {name} holds values that are not finite numbers")
    mark = sha256(state) if kept is not None or expected is not None else None
    if kept is not None and mark != kept:
        raise UserError(f"{file} is damaged: its weights are not those that were written (another sha256)")
    if expected is not None and mark != expected:
        raise UserError(f"{file} is not the model of this run: results.json keeps another weights_sha256")
    return state


def load_weights(model: nn.Module, file: Path, expected: str | None = None) -> dict[str, Tensor]:
    """Fill ``model`` from a file; returns the weights. Arguments and errors as of :func:`read_weights`."""
    state = read_weights(model, file, expected)
    model.load_state_dict(state)
    return state
