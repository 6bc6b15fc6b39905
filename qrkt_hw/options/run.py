"""All options of a training run, flat: a YAML key is its flag with underscores."""

from __future__ import annotations

from typing import Any

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
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
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
    def has_circuits(self) -> bool:
        """Whether any side of the model is quantum."""
        if self.model != "gan":
            return self.projection != "classical"
        sides = (self.generator_projection, self.discriminator_projection)
        return any((side or self.projection) != "classical" for side in sides)

    def without_circuits(self) -> RunOptions:
        """The same shape with dense maps instead of circuits."""
        return self.model_copy(
            update={"projection": "classical", "generator_projection": None, "discriminator_projection": None}
        )
