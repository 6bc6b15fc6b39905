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

MOST_ROWS = 10**8


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
                for row in batch.to_pylist():
                    if not row.keys() >= {name.partition(".")[0] for name in columns}:
                        raise ValueError("columns are missing")
                    yield row
    except UserError:
        raise
    except Exception as error:  # arrow and fsspec raise many kinds for a file that is not whole
        raise UserError(f"{file} is damaged, or no parquet file with columns {', '.join(columns)}") from error


def row_count(file: str) -> int:
    """Rows of a parquet file, from its last bytes.

    Raises:
        UserError: the file is damaged.
    """
    count = _metadata(file)[0]
    if not 0 <= count <= MOST_ROWS:
        raise UserError(f"{file} is damaged: it says to hold {count} rows; at most {MOST_ROWS:,} are read")
    return count


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

    schema = _metadata(file)[2]
    try:
        feature = datasets.Features.from_arrow_schema(schema).get(label)
        return tuple(map(str, feature.names)) if isinstance(feature, datasets.ClassLabel) else None
    except Exception:  # metadata are anybody's text, and datasets checks none of it
        return None


def image_and_label(row: dict[str, Any], columns: Sequence[str], name: str) -> tuple[bytes, int]:
    """The encoded image and the label of a row.

    Args:
        row: of :func:`rows`.
        columns: of image and label.
        name: what to call the row in an error.

    Raises:
        UserError: there is no image, or no whole number from 0 as label.
    """
    image, label = (row[column] for column in columns)
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        raise UserError(f"{name} holds no image: its {columns[0]} has no bytes")
    if type(label) is not int or not 0 <= label < 2**31:
        raise UserError(f"{name} has the {columns[1]} {str(label)[:40]!r}; a label is a whole number from 0")
    return content, label


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
            content, mark = image_and_label(row, (image, label), f"{file}: row {k}")
            pixels.append(decoded(content, f"{file}: row {k}", channels, size))
            found.append(mark)
            if pixels[-1].shape != pixels[0].shape or pixels[0].shape[1] != pixels[0].shape[2]:
                raise UserError(f"{file}: row {k} is an image of another size, or not square; give --image-size")
    if not pixels:
        raise UserError(f"{files[0]} holds no rows")
    return torch.stack(pixels), torch.from_numpy(np.array(found, dtype=np.int64))
