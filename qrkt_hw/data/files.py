"""Finding a data set's files, and saying where they were looked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

DEFAULT = Path("data")


def root(options: DataConfig) -> Path:
    """The folder of the data files."""
    return options.data_dir or DEFAULT


def places(options: DataConfig, *names: str) -> list[Path]:
    """Folders a data set may lie in: ``DIR/name`` for each name, then ``DIR`` itself."""
    return [*(root(options) / name for name in names), root(options)]


def regular(path: Path, name: str = "") -> Path:
    """The path of a file that can be read to its end; ``name`` is what to call it in an error.

    Raises:
        UserError: a folder, a device or a pipe, on which reading would wait for ever.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{name or path} is no file that can be read: it is a folder, a pipe or a device")
    return path


def missing(options: DataConfig, looked: Sequence[Path], what: str, where: str) -> UserError:
    """The one sentence for a data set that is not there."""
    name = options.dataset.partition(":")[0]
    advice = "" if options.download or name == "folder" else ", or add --download"
    folders = ", ".join(str(path) for path in looked)
    return UserError(
        f"--dataset {name}: no {what} in {folders}; get it from {where} and name its folder with --data-dir{advice}"
    )


def parquet_files(folders: Sequence[Path], split: str) -> list[Path]:
    """Parquet files of a split in the hub's layout (``train-00000-of-00001.parquet``), sorted; in the first folder
    that has any, or in its ``data`` or ``plain_text`` sub-folder."""
    for folder in folders:
        for inner in (folder, folder / "data", folder / "plain_text", folder / "cifar100"):
            found = sorted(inner.glob(f"{split}-*.parquet")) or sorted(inner.glob(f"{split}.parquet"))
            if found:
                return [regular(file) for file in found]
    return []
