"""The sections of a configuration: every key with its default, its bounds and its line of help."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from qrkt_hw.errors import UserError

# data sets, and the pixels along a side of their images; those of text have none
SIDES = {"digits": 8, "mnist": 28, "cifar10": 32, "cifar100": 32, "imagenet": 64, "imdb": 0, "folder": 64}
TEXT_SETS = ("imdb",)
TWICE = ("wgangp-eps", "nonsaturating-r1")  # losses that differentiate the discriminator twice
POLICIES = ("color", "translation", "cutout")

Projection = Literal["quantum", "classical", "quantum-attention", "quantum-mlp"]
Rule = Literal["rk1", "rk2", "rk3", "rk4", "rk4-enhanced"]


class Section(BaseModel):
    """A section; a key that it does not hold is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads `hidden: yes` as true, and Python takes true for 1
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool and bool not in get_args(kind):
            raise ValueError("yes and no (true and false) are not allowed here")
        return value


class DataConfig(Section):
    """Which images or texts, and how many."""

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
        """Make sure that there is a data set of this name."""
        name, colon, path = self.dataset.partition(":")
        if name not in SIDES or bool(colon) != (name == "folder"):
            known = ", ".join("folder:PATH" if name == "folder" else name for name in SIDES)
            raise UserError(f"--dataset: no data set {self.dataset!r}; there are {known}")
        if colon and not path:
            raise UserError("--dataset: name the folder, as in folder:path/to/images")


class TransformerConfig(Section):
    """What every kind of model has."""

    kind: Literal["vit", "text", "gan"] = Field(
        "vit", description="kind of model; text for a text data set, gan to generate images"
    )
    projection: Projection = Field("quantum", description="where circuits stand: everywhere, nowhere, or one of both")
    hidden: int = Field(32, ge=1, le=16_384, description="width of the tokens")
    heads: int = Field(4, ge=1, le=1024, description="attention heads")
    mlp: int = Field(16, ge=1, le=16_384, description="width of the MLP's hidden layer")
    rk: Rule = Field("rk2", description="Runge-Kutta method")
    share_stages: bool = Field(True, description="all stages of a Runge-Kutta block use the same weights")
    field_norms: Literal[0, 1, 2] = Field(
        1, description="LayerNorms of a Runge-Kutta block: none, one before F, or one each before attention and MLP"
    )
    positions: Literal["learned", "axial", "sincos", "none"] = Field(
        "learned", description="position embedding; axial: learned, a row's and a column's added"
    )
    pool: Literal["mean", "class", "weighted"] = Field(
        "mean",
        description="what the head reads: the mean of the tokens, a class token, or sums with a learned weight for "
        "each position and feature",
    )
    pool_maps: int = Field(1, ge=1, le=1024, description="sums that --pool weighted makes")
    final_norm: bool = Field(
        True, description="LayerNorm of the tokens before the pool; without it, embeddings stay unnormalised"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout")

    @property
    def quantum_attention(self) -> bool:
        return self.projection in ("quantum", "quantum-attention")

    @property
    def quantum_mlp(self) -> bool:
        return self.projection in ("quantum", "quantum-mlp")


class ClassifierConfig(TransformerConfig):
    """What both kinds of classifier have."""

    encoder_blocks: int = Field(0, ge=0, le=256, description="pre-norm transformer blocks in front")
    rk_blocks: int = Field(3, ge=0, le=256, description="Runge-Kutta blocks")
    decoder_blocks: int = Field(
        0, ge=0, le=256, description="decoder blocks behind, on a second embedding of the input"
    )
    cross_attention: Literal["full", "output"] = Field(
        "full", description="projections of the decoder's cross-attention: all four, or the output's only"
    )

    @property
    def projections(self) -> list[str]:
        """Where circuits stand, for each network that has blocks."""
        return [self.projection] if self.encoder_blocks + self.rk_blocks + self.decoder_blocks else []


class VitConfig(ClassifierConfig):
    """A vision transformer."""

    kind: Literal["vit"] = "vit"
    patch: int = Field(4, ge=1, description="pixels along a side of a patch")


class TextConfig(ClassifierConfig):
    """A transformer that classifies texts."""

    kind: Literal["text"] = "text"
    embedding_scale: float = Field(
        1.0, gt=0, description="deviation of the embeddings before training; rare words keep much of it"
    )
    token_dropout: float = Field(0.0, ge=0, lt=1, description="word dropout: share of words, in training only")


class GanConfig(TransformerConfig):
    """A generator, a vision transformer as discriminator, and the losses that train them."""

    kind: Literal["gan"] = "gan"
    patch: int = Field(4, ge=1, description="pixels along a side of a patch")
    latent: int = Field(64, ge=1, le=65_536, description="size of the noise")
    generator_hidden: int = Field(64, ge=1, le=16_384, description="width of the generator's first tokens")
    generator_stages: int = Field(
        2, ge=1, le=8, description="stages of the generator; between two, tokens double a side, width shrinks by 4"
    )
    generator_patch: int = Field(1, ge=1, le=64, description="pixels along a side that a last token draws")
    generator_blocks: str = Field("0", description="pre-norm blocks of each stage, such as 5,4,0; or one number")
    generator_rk_blocks: str = Field("1", description="Runge-Kutta blocks of each stage, such as 0,0,1")
    generator_rk: Rule | None = Field(None, description="Runge-Kutta method of the generator [default: --rk]")
    generator_heads: int | None = Field(None, ge=1, description="heads of the generator [default: --heads]")
    generator_mlp_ratio: float = Field(1.0, gt=0, le=16, description="MLP over token width in the generator")
    generator_output: Literal["tanh", "linear"] = Field("tanh", description="how pixels end in [-1, 1]")
    generator_projection: Projection | None = Field(
        None, description="where circuits stand in the generator [default: --projection]"
    )
    discriminator_blocks: int = Field(0, ge=0, le=256, description="pre-norm blocks of the discriminator")
    discriminator_rk_blocks: int = Field(2, ge=0, le=256, description="Runge-Kutta blocks of the discriminator")
    discriminator_rk: Rule | None = Field(None, description="its Runge-Kutta method [default: --rk]")
    discriminator_projection: Projection | None = Field(
        None, description="where circuits stand in the discriminator [default: --projection]"
    )
    loss: Literal["wgangp-eps", "hinge", "nonsaturating-r1"] = Field(
        "nonsaturating-r1", description="the two losses and their gradient penalty"
    )
    penalty: float = Field(10.0, ge=0, description="weight of the gradient penalty (for R1 its gamma)")
    penalty_target: float = Field(1.0, gt=0, description="phi, the gradient norm that wgangp-eps asks for")
    penalty_every: int = Field(1, ge=1, description="penalty in every n-th step, n times as strong")
    critic_steps: int = Field(1, ge=1, description="steps of the discriminator for each of the generator")
    diffaugment: str = Field(
        "translation", description="DiffAugment of real and fake images: color,translation,cutout or none"
    )
    generator_learning_rate: float | None = Field(None, gt=0, description="[default: --learning-rate]")
    discriminator_learning_rate: float | None = Field(None, gt=0, description="[default: --learning-rate]")
    beta1: float = Field(0.0, ge=0, lt=1, description="Adam's first decay")
    beta2: float = Field(0.99, ge=0, lt=1, description="Adam's second decay")
    rate_decay: Literal["linear", "none"] = Field("linear", description="learning rates fall to 0, or stay")
    samples_every: int | None = Field(
        None, ge=1, description="epochs between two sample grids [default: a twentieth of all]"
    )

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

    @property
    def projections(self) -> list[str]:
        """Where circuits stand, for each network that has blocks."""
        generator = any(int(n) for n in f"{self.generator_blocks},{self.generator_rk_blocks}".split(","))
        sides = [self.generator_projection] if generator else []
        sides += [self.discriminator_projection] if self.discriminator_blocks + self.discriminator_rk_blocks else []
        return [side or self.projection for side in sides]


class CircuitConfig(Section):
    """The circuits of a model and what is put around them."""

    ansatz: str = Field("ry_rz_ring", description="circuit template: a name, or path/to/file.py:function")
    qubits: int = Field(4, ge=1, le=28, description="qubits per group of features")
    layers: int = Field(1, ge=1, le=64, description="layers of the ansatz")
    mlp_qubits: int | None = Field(
        None, ge=1, le=28, description="qubits per group in the MLP [default: min(qubits, mlp)]"
    )
    initial_angles: Literal["uniform", "conditioned"] = Field(
        "uniform",
        description="angles before training: drawn from [-pi, pi], or moved from there to a mean input-output Jacobian "
        "near the identity",
    )
    input_scale: bool = Field(False, description="a learned scale per feature before each circuit")
    output_scale: bool = Field(True, description="a learned scale per feature after each circuit")
    output_bias: bool = Field(False, description="a learned bias per feature after each circuit")
    dtype: Literal["complex64", "complex128"] = Field("complex64", description="precision of the simulator")


class TrainingConfig(Section):
    """Optimiser and schedule."""

    epochs: int = Field(30, ge=1, description="passes over the training samples")
    learning_rate: float = Field(0.02, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of AdamW")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up; cosine decay follows")
    clip: float = Field(1.0, gt=0, description="gradient norm at which gradients are clipped")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    ema: float = Field(
        0.99, ge=0, lt=1, description="decay per step of the averaged weights that are validated and kept; 0: none"
    )
    accelerator: Literal["cpu", "cuda"] = Field("cpu", description="where the training runs")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of torch [default: 1 where a batch is too small to share, else all cores]",
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="seed of weights, batches and dropout")


class BackendConfig(Section):
    """Where the circuits run."""

    name: str = Field("exact", description="backend by its name in backends.yaml (qrkt-hw backends list)")
    shots: int | None = Field(
        None, ge=0, le=10_000_000, description="samples per circuit, 0 for exact values [default: the backend's]"
    )
    gradient: Literal["adjoint", "parameter_shift", "spsa"] | None = Field(
        None, description="how circuits are differentiated [default: the backend's]"
    )
    strict_backend: bool = Field(False, description="refuse a backend that is not available instead of its fallback")
    pack: bool | None = Field(
        None, description="run replicas of a circuit side by side [default: the backend's, where it is on]"
    )
    spacing: int | None = Field(None, ge=0, le=3, description="buffer qubits between two replicas, against crosstalk")
    min_fidelity: float | None = Field(
        None, ge=0, le=1, description="share of the best replica's estimated success probability that a replica needs"
    )
    mitigation: Literal["none", "mthree"] | None = Field(
        None, description="correction of readout errors [default: the backend's]"
    )
    mode: Literal["job", "batch", "session", "auto"] | None = Field(
        None, description="IBM: how jobs run; auto: a session where the plan has them [default: the backend's]"
    )
    instance: str | None = Field(None, description="IBM: instance by name or CRN [default: the account's own]")
    max_time: int | None = Field(None, ge=1, description="IBM: seconds after which the service ends a session or batch")
    dynamical_decoupling: bool | None = Field(None, description="IBM: echo pulses on idle qubits")
    twirl_gates: bool | None = Field(None, description="IBM: Pauli twirling of two-qubit gates")
    twirl_measure: bool | None = Field(None, description="IBM: twirling of measurements")
    rep_delay: float | None = Field(
        None, ge=0, le=1, description="IBM: seconds between two executions [default: the device's]"
    )
    backends_file: Path | None = Field(None, description="a backends.yaml over all others")


MODELS: dict[str, type[TransformerConfig]] = {"vit": VitConfig, "text": TextConfig, "gan": GanConfig}
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "data": (DataConfig,),
    "model": (TransformerConfig, *MODELS.values()),
    "circuit": (CircuitConfig,),
    "training": (TrainingConfig,),
    "backend": (BackendConfig,),
}

# what a GAN starts from where other models have defaults of their own
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
