"""Options of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qrkt_hw.errors import UserError

# data sets, and the pixels along a side of their images; those of text have none
SIDES = {"digits": 8, "mnist": 28, "cifar10": 32, "cifar100": 32, "imagenet": 64, "imdb": 0, "folder": 64}


class DataOptions(BaseModel):
    """Which images or texts, and how many."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(
        "digits", description="digits, mnist, cifar10, cifar100, imagenet, imdb, or folder:PATH (one folder per class)"
    )
    data_dir: Path | None = Field(None, description="folder with the data set's files [default: data]")
    download: bool = Field(False, description="fetch the data set into the data folder where it is missing")
    limit: int | None = Field(None, ge=1, description="use only this many training samples")
    batch_size: int = Field(64, ge=1, description="samples in a batch")
    image_size: int | None = Field(
        None, ge=1, description="scale and crop images to this side [default: their own; 64 for folders and imagenet]"
    )
    augment: Literal["none", "flip", "crop", "crop-flip", "shift"] = Field(
        "none", description="augmentation of training images; shift: by up to a sixteenth, the edge repeated"
    )
    text_length: int = Field(512, ge=1, le=65_536, description="tokens of a text that are read")
    vocabulary: int = Field(20_000, ge=3, description="size of the vocabulary, padding and unknown included")
    unique_words: bool = Field(False, description="read each word of a text once, in the order of first appearance")
    word_pairs: bool = Field(False, description="frequent pairs of neighbouring words are tokens too")
    workers: int = Field(0, ge=0, le=256, description="processes that prepare batches")

    def check_name(self) -> None:
        """Make sure that there is a data set of this name.

        Raises:
            UserError: there is none.
        """
        name, colon, path = self.dataset.partition(":")
        if name not in SIDES or bool(colon) != (name == "folder"):
            known = ", ".join("folder:PATH" if name == "folder" else name for name in SIDES)
            raise UserError(f"--dataset: no data set {self.dataset!r}; there are {known}")
        if colon and not path:
            raise UserError("--dataset: name the folder, as in folder:path/to/images")
