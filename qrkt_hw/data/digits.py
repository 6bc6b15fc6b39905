"""The 1,797 real 8x8 handwritten digits that ship with scikit-learn (Alpaydin and Kaynak, UCI, 1998)."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import TensorDataset

from qrkt_hw.data.base import Data, DataShape
from qrkt_hw.data.split import stratified
from qrkt_hw.options.data import DataOptions

TEST, VALIDATION = 360, 144


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the 1,293 training, 144 validation and 360 test images; stratified, the same for every seed."""
    test, rest = stratified(labels, TEST)
    validation, train = stratified(labels[rest], VALIDATION, salt=1)
    return {"train": rest[train], "validation": rest[validation], "test": test}


def load(options: DataOptions) -> Data:
    """The digits, pixel values 0..16 mapped to [0, 1], then normalised by the training part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16.0).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    indices = {name: torch.from_numpy(index) for name, index in split_indices(bunch.target).items()}
    mean, std = images[indices["train"]].mean().item(), images[indices["train"]].std().item()
    if options.limit is not None:
        indices["train"] = indices["train"][: options.limit]
    splits = {name: TensorDataset((images[index] - mean) / std, labels[index]) for name, index in indices.items()}
    names = tuple(str(n) for n in bunch.target_names)
    return Data("digits", DataShape(1, 8, 10), names, (mean,), (std,), splits)
