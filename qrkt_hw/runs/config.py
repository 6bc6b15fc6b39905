"""The configuration of a run: five nested sections, from which flags, YAML keys, defaults, help and checks come.

Every key has a name of its own, so that flags stay flat: ``hidden`` is ``model.hidden`` and ``--hidden``; ``model``
alone is ``model.kind``, and ``backend`` alone is ``backend.name``. :class:`Config` reads both forms and writes the
nested one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ValidationInfo

from qrkt_hw.errors import UserError, flag, sentence

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
    def projections(self) -> list[str]:
        """Where circuits stand, for each part of the model that has blocks: the transformer, or a GAN's two sides."""
        raise NotImplementedError

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
    guard: int | None = Field(None, ge=0, le=3, description="couplings left unused between two replicas")
    quality: float | None = Field(
        None, ge=0, le=1, description="share of the best replica's success probability that a replica needs"
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
_ALONE = {("model", "kind"): "model", ("backend", "name"): "backend"}

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


class Key(NamedTuple):
    """A key: its section, its name there, its field, and the kinds of model that read it (all for most)."""

    section: str
    name: str
    field: FieldInfo
    kinds: tuple[str, ...]


def _keys() -> Iterator[tuple[str, Key]]:
    for section, types in SECTIONS.items():
        fields: dict[str, FieldInfo] = {}
        for one in types:
            fields = {**one.model_fields, **fields}
        for name, field in fields.items():
            kinds = tuple(kind for kind, one in MODELS.items() if section != "model" or name in one.model_fields)
            yield _ALONE.get((section, name), name), Key(section, name, field, kinds)


KEYS = dict(_keys())  # by flat name


class Config(BaseModel):
    """What ``qrkt-hw train`` takes and what a run folder's ``config.yaml`` holds; equal wherever its circuits are kept.

    ``Config(hidden=8)``, ``Config(model={"hidden": 8})`` and mixtures are read alike.
    """

    model_config = ConfigDict(extra="forbid")

    data: DataConfig
    model: Annotated[
        Annotated[VitConfig, Tag("vit")] | Annotated[TextConfig, Tag("text")] | Annotated[GanConfig, Tag("gan")],
        Discriminator(lambda value: value.get("kind") if isinstance(value, dict) else value.kind),
    ]
    circuit: CircuitConfig
    training: TrainingConfig
    backend: BackendConfig

    _circuits: Callable[[], Any] | None = PrivateAttr(default=None)

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        flat = flattened(values)
        if "model" not in flat:
            flat["model"] = "text" if flat.get("dataset") in TEXT_SETS else "vit"
        kind = flat["model"]
        flat = {**(GAN_DEFAULTS if kind == "gan" else {}), **flat}
        nested: dict[str, Any] = {section: {} for section in SECTIONS}
        for name, value in flat.items():
            key = KEYS.get(name)
            if key is None:
                nested[name] = value
            elif kind in key.kinds or value != key.field.default:
                nested[key.section][key.name] = value  # a default that is foreign to the model asks for nothing
        return nested

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    @property
    def gan(self) -> GanConfig:
        """The model's section, which is that of a GAN."""
        assert isinstance(self.model, GanConfig)
        return self.model

    def flat(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """All keys by their flat names."""
        return flattened(self.model_dump(mode=mode))

    def replace(self, **keys: Any) -> Self:
        """The same configuration with other values of flat keys.

        Raises:
            ValidationError: a value that is not allowed, or a key that the model does not read.
        """
        return type(self)(**{**self.flat(), **keys}).with_circuits(self._circuits)

    @property
    def circuits(self) -> Any:
        """What gives the template for an ansatz, qubits and layers: those a run keeps; None for the registry."""
        return None if self._circuits is None else self._circuits()

    def with_circuits(self, circuits: Callable[[], Any] | None) -> Self:
        """The same configuration, whose circuits come from there, as do those of its copies."""
        copy = self.model_copy()
        copy._circuits = circuits
        return copy

    @property
    def has_circuits(self) -> bool:
        """Whether any part of the model is quantum."""
        return any(projection != "classical" for projection in self.model.projections)

    def without_circuits(self) -> Self:
        """The same shape with linear layers instead of circuits."""
        sides = {"generator_projection": None, "discriminator_projection": None} if self.model.kind == "gan" else {}
        return self.replace(projection="classical", **sides)

    @property
    def mlp_qubits(self) -> int:
        """Qubits per group in the MLP, the default resolved."""
        return self.circuit.mlp_qubits or min(self.circuit.qubits, self.model.mlp)

    def check_sizes(self) -> None:
        """Make sure that the sizes of a transformer fit each other; they need no data for that.

        Raises:
            UserError: two that do not, by their flags.
        """
        model, qubits = self.model, self.circuit.qubits
        if not model.final_norm and getattr(model, "decoder_blocks", 0):
            raise UserError("--no-final-norm: the decoder has a norm of its own; take --decoder-blocks 0")
        if model.pool_maps > 1 and model.pool != "weighted":
            raise UserError(f"--pool-maps: {model.pool_maps} sums need --pool weighted; --pool is {model.pool}")
        if model.hidden % model.heads:
            raise UserError(f"--heads: hidden size {model.hidden} is not divisible by {model.heads} heads")
        if model.quantum_attention and model.hidden % qubits:
            raise UserError(f"--qubits: hidden size {model.hidden} is not divisible by {qubits} qubits per group")
        if model.quantum_mlp and model.mlp % self.mlp_qubits:
            raise UserError(
                f"--mlp-qubits: MLP size {model.mlp} is not divisible by {self.mlp_qubits} qubits per group"
            )


def flattened(values: dict[str, Any]) -> dict[str, Any]:
    """Keys by their flat names, of a flat or nested mapping or a mixture; an unknown key keeps its whole path.

    Raises:
        ValueError: a key that is given twice.
    """
    flat: dict[str, Any] = {}
    for section, inner in values.items():
        found = {section: inner}
        if isinstance(inner, BaseModel):
            inner = dict(inner)
        if section in SECTIONS and isinstance(inner, dict):
            found = {}
            for name, value in inner.items():
                key = _ALONE.get((section, name), name)
                there = KEYS.get(key)
                found[key if there is not None and there[:2] == (section, name) else f"{section}.{name}"] = value
        twice = [key for key in found if key in flat]
        if twice:
            raise ValueError(f"{twice[0]} is given twice, by itself and in its section")
        flat.update(found)
    return flat


def is_nested(values: Any) -> bool:
    """Whether a mapping has a section."""
    return isinstance(values, dict) and any(isinstance(values.get(section), dict) for section in SECTIONS)


def of_kept(values: Any) -> Config:
    """The configuration that a run folder keeps; an old, flat one also holds keys that its model never read.

    Raises:
        ValidationError: a key or a value that is not allowed.
    """
    if isinstance(values, dict) and not is_nested(values):
        kind = values.get("model", "vit")
        values = {key: value for key, value in values.items() if key not in KEYS or kind in (*KEYS[key].kinds, None)}
    return Config.model_validate(values)


def problem(error: ValidationError) -> tuple[str, str]:
    """The first problem with a configuration: the flat name of its key (may be empty), and one sentence."""
    first: ErrorDetails = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in MODELS]
    name = _ALONE.get((where[0], where[-1]), where[-1]) if where else ""
    key = KEYS.get(name)
    if first["type"] == "extra_forbidden" and key is not None:
        readers = " or ".join(f"--model {kind}" for kind in key.kinds)
        return name, f"{flag(name)}: {first['input']} would have no effect: only {readers} reads it; leave it out"
    if first["type"].startswith("union_tag"):
        return "model", f"model is {str(first['ctx'].get('tag', '?'))!r}: must be vit, text or gan"
    return name, sentence(error, name)
