"""The 1,797 real 8x8 handwritten digits that ship with scikit-learn (Alpaydin and Kaynak, UCI, 1998)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from qrkt_hw.data.base import Data, DataShape
from qrkt_hw.data.split import stratified
from qrkt_hw.runs.config import DataConfig

TEST, VALIDATION = 360, 144


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the 1,293 training, 144 validation and 360 test images; stratified, the same for every seed."""
    test, rest = stratified(labels, TEST)
    validation, train = stratified(labels[rest], VALIDATION, salt=1)
    return {"train": rest[train], "validation": rest[validation], "test": test}


def read() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels ``(1797, 8, 8)``, 0 to 16, and labels, as ``sklearn.datasets.load_digits`` gives them.

    The file is read without importing scikit-learn, which takes most of a second.
    """
    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.submodule_search_locations
    table = np.loadtxt(Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def load(options: DataConfig) -> Data:
    """The digits, pixel values 0..16 mapped to [0, 1], then normalised by the training part."""
    pixels, digits = read()
    images = torch.from_numpy(pixels / 16.0).float().unsqueeze(1)
    labels = torch.from_numpy(digits)
    indices = {name: torch.from_numpy(index) for name, index in split_indices(digits).items()}
    mean, std = images[indices["train"]].mean().item(), images[indices["train"]].std().item()
    if options.limit is not None:
        indices["train"] = indices["train"][: options.limit]
    splits = {name: TensorDataset((images[index] - mean) / std, labels[index]) for name, index in indices.items()}
    return Data("digits", DataShape(1, 8, 10), tuple("0123456789"), (mean,), (std,), splits)
