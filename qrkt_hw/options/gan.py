"""Options of a generative adversarial network; a run of another kind keeps their defaults and reads none."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qrkt_hw.options.model import Projection, Rule

Loss = Literal["wgangp-eps", "hinge", "nonsaturating-r1"]
TWICE = ("wgangp-eps", "nonsaturating-r1")  # losses that differentiate the discriminator twice
POLICIES = ("color", "translation", "cutout")

# what `--model gan` starts from where the options of other models have defaults of their own
GAN_DEFAULTS = {
    "learning_rate": 0.002,
    "weight_decay": 0.0,
    "dropout": 0.0,
    "ema": 0.999,
    "pool": "class",
    "patch": 2,
    "mlp": 64,
    "epochs": 250,
}


class GanOptions(BaseModel):
    """Generator, losses and schedule of a GAN. The discriminator reads the options of the vision transformer."""

    model_config = ConfigDict(extra="forbid")

    latent: int = Field(64, ge=1, le=65_536, description="gan: size of the noise")
    generator_hidden: int = Field(64, ge=1, le=16_384, description="gan: width of the generator's first tokens")
    generator_stages: int = Field(
        2, ge=1, le=8, description="gan: stages of the generator; between two, tokens double a side, width shrinks by 4"
    )
    generator_patch: int = Field(1, ge=1, le=64, description="gan: pixels along a side that a last token draws")
    generator_blocks: str = Field("0", description="gan: ordinary blocks of each stage, such as 5,4,0; or one number")
    generator_rk_blocks: str = Field("1", description="gan: Runge-Kutta blocks of each stage, such as 0,0,1")
    generator_rk: Rule | None = Field(None, description="gan: Runge-Kutta rule of the generator [default: --rk]")
    generator_heads: int | None = Field(None, ge=1, description="gan: heads of the generator [default: --heads]")
    generator_mlp_ratio: float = Field(1.0, gt=0, le=16, description="gan: MLP over token width in the generator")
    generator_output: Literal["tanh", "linear"] = Field("tanh", description="gan: how pixels end in [-1, 1]")
    generator_projection: Projection | None = Field(
        None, description="gan: where circuits stand in the generator [default: --projection]"
    )
    discriminator_blocks: int = Field(0, ge=0, le=256, description="gan: ordinary blocks of the discriminator")
    discriminator_rk_blocks: int = Field(2, ge=0, le=256, description="gan: Runge-Kutta blocks of the discriminator")
    discriminator_rk: Rule | None = Field(None, description="gan: its Runge-Kutta rule [default: --rk]")
    discriminator_projection: Projection | None = Field(
        None, description="gan: where circuits stand in the discriminator [default: --projection]"
    )
    loss: Loss = Field("nonsaturating-r1", description="gan: the two losses and their gradient penalty")
    penalty: float = Field(10.0, ge=0, description="gan: weight of the gradient penalty (for R1 its gamma)")
    penalty_target: float = Field(1.0, gt=0, description="gan: phi, the gradient norm that wgangp-eps asks for")
    penalty_every: int = Field(1, ge=1, description="gan: penalty in every n-th step, n times as strong")
    critic_steps: int = Field(1, ge=1, description="gan: steps of the discriminator for each of the generator")
    diffaugment: str = Field(
        "translation", description="gan: DiffAugment of real and fake images: color,translation,cutout or none"
    )
    generator_learning_rate: float | None = Field(None, gt=0, description="gan: [default: --learning-rate]")
    discriminator_learning_rate: float | None = Field(None, gt=0, description="gan: [default: --learning-rate]")
    beta1: float = Field(0.0, ge=0, lt=1, description="gan: Adam's first decay")
    beta2: float = Field(0.99, ge=0, lt=1, description="gan: Adam's second decay")
    rate_decay: Literal["linear", "none"] = Field("linear", description="gan: learning rates fall to 0, or stay")
    samples_every: int | None = Field(
        None, ge=1, description="gan: epochs between two sample grids [default: a twentieth of all]"
    )
    accelerator: Literal["cpu", "cuda"] = Field("cpu", description="gan: where the training runs")

    @field_validator("generator_blocks", "generator_rk_blocks", mode="before")
    @classmethod
    def _counts(cls, value: object) -> str:
        text = str(value).strip("[]() ") if isinstance(value, (str, int, list, tuple)) else ""
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isdigit() and int(part) <= 64 for part in parts):
            raise ValueError("must be numbers of blocks from 0 to 64, one for each stage, such as 5,4,0")
        return ",".join(str(int(part)) for part in parts)

    @field_validator("diffaugment")
    @classmethod
    def _policies(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",")]
        if parts != ["none"] and not set(parts) <= set(POLICIES):
            raise ValueError(f"must be none, or some of {', '.join(POLICIES)} with commas between")
        return ",".join(parts)
