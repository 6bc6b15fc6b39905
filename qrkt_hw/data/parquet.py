"""Parquet files in the hub's layout; their features as ``datasets`` describes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.data.images import decoded
from qrkt_hw.errors import UserError


def rows(file: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one parquet file in order, encoded images as bytes; memory holds a row group of these columns.

    It reads with Arrow itself: a stream of ``datasets`` would give each worker process other rows.

    Raises:
        UserError: the file is damaged, or lacks a column.
    """
    import fsspec
    import pyarrow.parquet as pq

    try:
        with fsspec.open(file, "rb") as handle:
            for batch in pq.ParquetFile(handle).iter_batches(64, columns=list(columns), use_threads=False):
                yield from batch.to_pylist()
    except UserError:
        raise
    except Exception as error:  # arrow and fsspec raise many kinds for a file that is not whole
        raise UserError(f"{file} is damaged, or no parquet file with columns {', '.join(columns)}") from error


def row_count(file: str) -> int:
    """Rows of a parquet file, from its last bytes.

    Raises:
        UserError: the file is damaged.
    """
    return _metadata(file)[0]


def _metadata(file: str) -> tuple[int, list[str], Any]:
    import fsspec
    import pyarrow.parquet as pq

    try:
        with fsspec.open(file, "rb") as handle:
            opened = pq.ParquetFile(handle)
            return opened.metadata.num_rows, opened.schema_arrow.names, opened.schema_arrow
    except Exception as error:
        raise UserError(f"{file} is damaged: it is not a parquet file") from error


def column(file: str, wanted: Sequence[str]) -> str:
    """The first of the wanted columns that the file has.

    Raises:
        UserError: it has none of them.
    """
    names = _metadata(file)[1]
    for name in wanted:
        if name in names:
            return name
    raise UserError(f"{file} has no column {' or '.join(wanted)}; there are {', '.join(names)}")


def class_names(file: str, label: str) -> tuple[str, ...] | None:
    """Names of the classes where the file knows them."""
    import datasets

    try:
        feature = datasets.Features.from_arrow_schema(_metadata(file)[2]).get(label)
    except (ValueError, TypeError, KeyError):
        return None
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def read_images(
    files: Sequence[Path], images: Sequence[str], labels: Sequence[str], channels: int, size: int | None
) -> tuple[Tensor, Tensor]:
    """All images of the files as bytes ``(samples, channels, size, size)``, and int64 labels ``(samples,)``.

    Args:
        files: in order.
        images, labels: names the columns may have.
        channels: 1 or 3.
        size: scale to this; None keeps the size, which must then be the same for all.

    Raises:
        UserError: a damaged file or image; names file and row.
    """
    pixels: list[Tensor] = []
    found: list[int] = []
    for file in files:
        image, label = column(str(file), images), column(str(file), labels)
        for k, row in enumerate(rows(str(file), [image, label])):
            pixels.append(decoded(row[image]["bytes"], f"{file}: row {k}", channels, size))
            found.append(int(row[label]))
            if pixels[-1].shape != pixels[0].shape:
                raise UserError(f"{file}: row {k} is an image of another size; give --image-size")
    return torch.stack(pixels), torch.from_numpy(np.array(found, dtype=np.int64))
