"""Options of the data."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class DataOptions(BaseModel):
    """Which images, and how many."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field("digits", description="data set")
    data_dir: Path | None = Field(None, description="folder with the data set's files")
    limit: int | None = Field(None, ge=1, description="use only this many training images")
    batch_size: int = Field(64, ge=1, description="images in a batch")
