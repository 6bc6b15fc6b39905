"""All options of a training run, flat: a YAML key is its flag with underscores."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import ConfigDict, ValidationInfo, field_validator, model_validator

from qrkt_hw.options.data import DataOptions
from qrkt_hw.options.gan import GAN_DEFAULTS, GanOptions
from qrkt_hw.options.model import ModelOptions
from qrkt_hw.options.training import BackendOptions, TrainingOptions

TEXT_SETS = ("imdb",)


class RunOptions(BackendOptions, TrainingOptions, GanOptions, ModelOptions, DataOptions):
    """What ``qrkt-hw train`` takes and what a run folder's ``config.yaml`` holds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads `hidden: yes` as true, and Python takes true for 1
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool and bool not in get_args(kind):
            raise ValueError("yes and no (true and false) are not allowed here")
        return value

    @model_validator(mode="before")
    @classmethod
    def _model_of_the_data(cls, values: Any) -> Any:
        # a text data set needs no --model text
        if isinstance(values, dict) and values.get("dataset") in TEXT_SETS:
            return {"model": "text", **values}
        if isinstance(values, dict) and values.get("model") == "gan":
            return {**GAN_DEFAULTS, **values}
        return values

    @property
    def projections(self) -> list[str]:
        """Where circuits stand, for each part of the model that has blocks: the transformer, or a GAN's two sides."""
        if self.model != "gan":
            return [self.projection] if self.encoder_blocks + self.rk_blocks + self.decoder_blocks else []
        generator = any(int(n) for n in f"{self.generator_blocks},{self.generator_rk_blocks}".split(","))
        sides = [self.generator_projection] if generator else []
        sides += [self.discriminator_projection] if self.discriminator_blocks + self.discriminator_rk_blocks else []
        return [side or self.projection for side in sides]

    @property
    def has_circuits(self) -> bool:
        """Whether any part of the model is quantum."""
        return any(projection != "classical" for projection in self.projections)

    def without_circuits(self) -> RunOptions:
        """The same shape with dense maps instead of circuits."""
        return self.model_copy(
            update={"projection": "classical", "generator_projection": None, "discriminator_projection": None}
        )
