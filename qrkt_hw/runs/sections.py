"""The sections of a configuration: every key with its default, its bounds and its line of help."""

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from qrkt_hw.backends.entries import Mitigation
from qrkt_hw.errors import UserError, unknown

# data sets, and the pixels along a side of their images; those of text have none
SIDES = {"digits": 8, "mnist": 28, "cifar10": 32, "cifar100": 32, "imagenet": 64, "imdb": 0, "folder": 64}
OWN = "own"  # a torch dataset that was given in Python
TEXT_SETS = ("imdb",)
RANKS = ("devices", "num_nodes", "strategy")  # options that a resume may change
TWICE = ("wgangp-eps", "nonsaturating-r1")  # losses that differentiate the discriminator twice
POLICIES = ("color", "translation", "cutout")
NETWORKS = ("generator", "discriminator")
NETWORK_KEYS = tuple(f"{network}_{key}" for network in NETWORKS for key in ("ansatz", "qubits", "layers"))
ANSATZ_KEYS = ("ansatz", "attention_ansatz", "mlp_ansatz", *(f"{network}_ansatz" for network in NETWORKS))

Projection = Literal["quantum", "classical", "quantum-attention", "quantum-mlp"]
Rule = Literal["rk1", "rk2", "rk3", "rk4", "rk4-enhanced"]


def key(default: Any, text: str, **bounds: Any) -> Any:
    """A key with its default and its line of help."""
    return Field(default, description=text, **bounds)


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

    dataset: str = key(
        "digits", "digits, mnist, cifar10, cifar100, imagenet, imdb, or folder:PATH (one folder per class)"
    )
    data_dir: Path | None = key(None, "folder with the data set's files [default: data]")
    download: bool = key(False, "fetch the data set into the data folder where it is missing")
    limit: int | None = key(None, "use only this many training samples", ge=1)
    batch_size: int = key(64, "samples in a batch", ge=1)
    image_size: int | None = key(
        None, "scale and crop images to this side [default: their own; folder, imagenet: 64]", ge=1
    )
    augment: Literal["none", "flip", "crop", "crop-flip", "shift"] = key(
        "none", "augmentation of training images; shift: by up to a sixteenth, the edge repeated"
    )
    text_length: int = key(512, "tokens of a text that are read", ge=1, le=65_536)
    vocabulary: int = key(20_000, "size of the vocabulary, padding and unknown included", ge=3)
    unique_words: bool = key(False, "read each word of a text once, in the order of first appearance")
    word_pairs: bool = key(False, "frequent pairs of neighbouring words are tokens too")
    workers: int = key(0, "processes that prepare batches", ge=0, le=256)

    def check_name(self) -> None:
        """Make sure that there is a data set of this name. Raises UserError: there is none."""
        name, colon, path = self.dataset.partition(":")
        if name == OWN:
            raise UserError("--dataset: these data were given in Python; infer there, or name images by their paths")
        if name not in SIDES or bool(colon) != (name == "folder"):
            known = ["folder:PATH" if name == "folder" else name for name in SIDES]
            raise UserError(f"--dataset: {unknown('data set', self.dataset, known)}")
        if colon and not path:
            raise UserError("--dataset: name the folder, as in folder:path/to/images")


class TransformerConfig(Section):
    """What every kind of model has."""

    kind: Literal["vit", "text", "gan"] = key("vit", "kind of model; text for a text data set, gan to generate images")
    projection: Projection = key("quantum", "where circuits stand: everywhere, nowhere, or one of both")
    hidden: int = key(32, "width of the tokens", ge=1, le=16_384)
    heads: int = key(4, "attention heads", ge=1, le=1024)
    mlp: int = key(16, "width of the MLP's hidden layer", ge=1, le=16_384)
    rk: Rule = key("rk2", "Runge-Kutta method")
    share_stages: bool = key(True, "all stages of a Runge-Kutta block use the same weights")
    field_norms: Literal[0, 1, 2] = key(
        1, "LayerNorms of a Runge-Kutta block: none, one before F, or one each for attention and MLP"
    )
    positions: Literal["learned", "axial", "sincos", "none"] = key(
        "learned", "position embedding; axial: learned, a row's and a column's added"
    )
    pool: Literal["mean", "class", "weighted"] = key(
        "mean",
        "what the head reads: the tokens' mean, a class token, or sums with learned weights per position and feature",
    )
    pool_maps: int = key(1, "sums that --pool weighted makes", ge=1, le=1024)
    final_norm: bool = key(True, "LayerNorm of the tokens before the pool; without it, embeddings stay unnormalised")
    dropout: float = key(0.1, "dropout", ge=0, lt=1)
    drop_path: float = key(
        0.0,
        "stochastic depth: how often samples leave out the last block; earlier ones less, the first never",
        ge=0,
        lt=1,
    )

    @property
    def quantum_attention(self) -> bool:
        return self.projection in ("quantum", "quantum-attention")

    @property
    def quantum_mlp(self) -> bool:
        return self.projection in ("quantum", "quantum-mlp")

    @property
    def higher_order(self) -> bool:
        """Whether circuits over the tokens stand in the place of softmax."""
        return False


class ClassifierConfig(TransformerConfig):
    """What both kinds of classifier have."""

    encoder_blocks: int = key(0, "pre-norm transformer blocks in front", ge=0, le=256)
    rk_blocks: int = key(3, "Runge-Kutta blocks", ge=0, le=256)
    attention: Literal["softmax", "higher-order"] = key(
        "softmax", "how tokens meet; higher-order: by circuits over all tokens, such as --ansatz higher_order"
    )
    decoder_blocks: int = key(0, "decoder blocks after all others, on a second embedding of the input", ge=0, le=256)
    cross_attention: Literal["full", "output"] = key(
        "full", "projections of the decoder's cross-attention: all four, or the output's only"
    )

    @property
    def projections(self) -> list[str]:
        """Where circuits stand, for each network that has blocks."""
        return [self.projection] if self.encoder_blocks + self.rk_blocks + self.decoder_blocks else []

    @property
    def higher_order(self) -> bool:
        return self.attention == "higher-order" and bool(self.projections)


class VitConfig(ClassifierConfig):
    """A vision transformer."""

    kind: Literal["vit"] = "vit"
    patch: int = key(4, "pixels along a side of a patch", ge=1)


class TextConfig(ClassifierConfig):
    """A transformer that classifies texts."""

    kind: Literal["text"] = "text"
    embedding_scale: float = key(1.0, "deviation of the embeddings before training; rare words keep it", gt=0)
    token_dropout: float = key(0.0, "word dropout: share of words, in training only", ge=0, lt=1)


class GanConfig(TransformerConfig):
    """A generator, a vision transformer as discriminator, and the losses that train them."""

    kind: Literal["gan"] = "gan"
    patch: int = key(4, "pixels along a side of a patch", ge=1)
    conditional: bool = key(
        False, "class-conditional: a class embedding in each stage of the generator, a projection discriminator"
    )
    latent: int = key(64, "size of the noise", ge=1, le=65_536)
    generator_hidden: int = key(64, "width of the generator's first tokens", ge=1, le=16_384)
    generator_stages: int = key(
        2, "stages of the generator; between two, tokens double a side, width shrinks by 4", ge=1, le=8
    )
    generator_patch: int = key(1, "pixels along a side that a last token draws", ge=1, le=64)
    generator_blocks: str = key("0", "pre-norm blocks of each stage, such as 5,4,0; or one number")
    generator_rk_blocks: str = key("1", "Runge-Kutta blocks of each stage, such as 0,0,1")
    generator_rk: Rule | None = key(None, "Runge-Kutta method of the generator [default: --rk]")
    generator_heads: int | None = key(None, "heads of the generator [default: --heads]", ge=1)
    generator_mlp_ratio: float = key(1.0, "MLP over token width in the generator", gt=0, le=16)
    generator_output: Literal["tanh", "linear"] = key("tanh", "how pixels end in [-1, 1]")
    generator_projection: Projection | None = key(None, "where circuits stand in the generator [default: --projection]")
    discriminator_blocks: int = key(0, "pre-norm blocks of the discriminator", ge=0, le=256)
    discriminator_rk_blocks: int = key(2, "Runge-Kutta blocks of the discriminator", ge=0, le=256)
    discriminator_rk: Rule | None = key(None, "its Runge-Kutta method [default: --rk]")
    discriminator_projection: Projection | None = key(
        None, "where circuits stand in the discriminator [default: --projection]"
    )
    loss: Literal["wgangp-eps", "hinge", "nonsaturating-r1"] = key(
        "nonsaturating-r1", "the two losses and their gradient penalty"
    )
    penalty: float = key(10.0, "weight of the gradient penalty (for R1 its gamma)", ge=0)
    penalty_target: float = key(1.0, "phi, the gradient norm that wgangp-eps asks for", gt=0)
    penalty_every: int = key(1, "penalty in every n-th step, n times as strong", ge=1)
    critic_steps: int = key(1, "steps of the discriminator for each of the generator", ge=1)
    diffaugment: str = key("translation", "DiffAugment of real and fake images: color,translation,cutout or none")
    generator_learning_rate: float | None = key(None, "[default: --learning-rate]", gt=0)
    discriminator_learning_rate: float | None = key(None, "[default: --learning-rate]", gt=0)
    beta1: float = key(0.0, "Adam's first decay", ge=0, lt=1)
    beta2: float = key(0.99, "Adam's second decay", ge=0, lt=1)
    rate_decay: Literal["linear", "none"] = key("linear", "learning rates fall to 0, or stay")
    accumulate: int = key(
        1, "gradient accumulation: compute each batch in so many parts, for less memory; the step is the same", ge=1
    )
    samples_every: int | None = key(None, "epochs between two sample grids [default: a twentieth of all]", ge=1)
    live_fid: int | None = key(
        None, "samples whose FID is measured with each grid, and shown; the weights of the lowest are kept", ge=100
    )
    patience: int | None = key(None, "stop after so many live FIDs in a row that are not the lowest", ge=1)

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
        return list(self._of_networks().values())

    @property
    def quantum_networks(self) -> dict[str, bool]:
        """Whether a network has circuits."""
        return {network: self._of_networks().get(network, "classical") != "classical" for network in NETWORKS}

    def _of_networks(self) -> dict[str, str]:
        generator = any(int(n) for n in f"{self.generator_blocks},{self.generator_rk_blocks}".split(","))
        blocks = generator, self.discriminator_blocks + self.discriminator_rk_blocks
        own = self.generator_projection, self.discriminator_projection
        return {n: p or self.projection for n, p, there in zip(NETWORKS, own, blocks, strict=True) if there}


class CircuitConfig(Section):
    """The circuits of a model and their pre- and post-scaling."""

    ansatz: str = key("ry_rz_ring", "circuit template: a name, path/to/file.py:function, FILE.qasm or FILE.qpy")
    qubits: int = key(4, "features per circuit, a qubit each; orthogonal circuits add a reference qubit", ge=1, le=384)
    layers: int = key(1, "layers of the ansatz", ge=1, le=64)
    attention_ansatz: str | None = key(None, "ansatz of the attention's circuits [default: --ansatz]")
    mlp_ansatz: str | None = key(None, "ansatz of the MLP's circuits [default: --ansatz]")
    mlp_layers: int | None = key(None, "layers of the ansatz in the MLP [default: --layers]", ge=1, le=64)
    mlp_qubits: int | None = key(None, "features per circuit in the MLP [default: min(qubits, mlp)]", ge=1, le=384)
    initial_angles: Literal["uniform", "conditioned", "identity", "gelu"] | None = key(
        None,
        "angles before training: drawn from [-pi, pi], moved from there to a mean Jacobian near the identity, or the "
        "ansatz' own where it has them [default: its own, else uniform]",
    )
    structured: bool = key(False, "classical layers of the circuits' structure in their place (see qrkt-hw baseline)")
    input_scale: bool = key(False, "a learned scale per feature before each circuit")
    output_scale: bool = key(True, "a learned scale per feature after each circuit")
    initial_output_scale: float = key(1.0, "where it starts; a linear layer's rows have a norm of 0.577", gt=0, le=10)
    output_bias: bool = key(False, "a learned bias per feature after each circuit")
    dtype: Literal["complex64", "complex128"] = key("complex64", "precision of the simulator")

    # of a GAN's networks
    generator_ansatz: str | None = key(None, "circuit template of the generator [default: --ansatz]")
    generator_qubits: int | None = key(None, "most features per circuit there [default: --qubits]", ge=1, le=384)
    generator_layers: int | None = key(None, "layers of the ansatz there [default: --layers]", ge=1, le=64)
    discriminator_ansatz: str | None = key(None, "circuit template of the discriminator [default: --ansatz]")
    discriminator_qubits: int | None = key(None, "features per circuit there [default: --qubits]", ge=1, le=384)
    discriminator_layers: int | None = key(None, "layers of the ansatz there [default: --layers]", ge=1, le=64)

    @property
    def ansaetze(self) -> tuple[str, ...]:
        """All that are named, ``ansatz`` first."""
        return tuple(dict.fromkeys(filter(None, (getattr(self, key) for key in ANSATZ_KEYS))))

    def of_network(self, network: str) -> Self:
        """The circuits of a GAN's ``generator`` or ``discriminator``."""
        own = {key: getattr(self, f"{network}_{key}") for key in ("ansatz", "qubits", "layers")}
        return self.model_copy(update={key: value for key, value in own.items() if value is not None})


class TrainingConfig(Section):
    """Optimiser and schedule."""

    epochs: int = key(30, "passes over the training samples", ge=1)
    learning_rate: float = key(0.02, "peak learning rate of AdamW", gt=0)
    weight_decay: float = key(0.1, "weight decay of AdamW", ge=0)
    angle_learning_rate: float | None = key(
        None, "peak learning rate of the circuits' angles, of both networks of a GAN [default: that of the rest]", gt=0
    )
    angle_weight_decay: float | None = key(None, "weight decay of the circuits' angles [default: --weight-decay]", ge=0)
    warmup_steps: int = key(100, "steps of linear warm-up", ge=0)
    schedule: Literal["cosine", "linear", "constant"] = key(
        "cosine", "learning rate after the warm-up: falls to 0 along a cosine or a line, or stays"
    )
    clip: float = key(1.0, "gradient norm at which gradients are clipped", gt=0)
    label_smoothing: float = key(0.0, "label smoothing of the cross-entropy", ge=0, lt=1)
    mixup: float = key(
        0.0, "alpha of mixup (0: none), which mixes each training image and its label with another one's", ge=0, le=100
    )
    shot_noise: int | None = key(
        None,
        "shots whose noise is added to the values of all circuits in training [default: none]",
        ge=1,
        le=10_000_000,
    )
    readout_error: float = key(0.0, "chance to misread a qubit, which damps these values in training", ge=0, lt=0.5)
    noise_device: str | None = key(None, "device whose calibration damps these values in training, such as fake_torino")
    ema: float = key(0.99, "decay per step of the averaged weights (0: none), which are validated and kept", ge=0, lt=1)
    accelerator: Literal["cpu", "cuda"] = key("cpu", "where the training runs")
    devices: str | None = key(
        None,
        "processes of this machine, one for each GPU with cuda; auto: all GPUs [default: 1, or as srun and "
        "torchrun started them]",
    )
    num_nodes: int = key(1, "machines", ge=1, le=65_536)
    strategy: Literal["auto", "ddp"] = key("auto", "ddp: each process computes a part of every batch; auto: the same")
    precision: Literal["32-true", "bf16-mixed"] = key(
        "32-true", "of classical layers in training; circuits keep --dtype"
    )
    threads: int | None = key(
        None, "CPU threads of torch [default: 1 for small batches, else all cores]", ge=1, le=1024
    )
    seed: int = key(42, "seed of weights, batches and dropout", ge=0, le=2**32 - 1)

    @field_validator("devices", mode="before")
    @classmethod
    def _number(cls, value: object) -> str | None:
        text = None if value is None else str(value).strip()
        if text not in (None, "auto") and not (text.isdigit() and 1 <= int(text) <= 1024):
            raise ValueError("must be a number of processes from 1 to 1024, or auto")
        return text


class BackendConfig(Section):
    """Where the circuits run."""

    name: str = key("exact", "backend by its name in backends.yaml (qrkt-hw backends list)")
    shots: int | None = key(
        None, "samples per circuit, 0 for exact values [default: the backend's]", ge=0, le=10_000_000
    )
    gradient: Literal["adjoint", "parameter_shift", "spsa"] | None = key(
        None, "how circuits are differentiated [default: the backend's]"
    )
    strict_backend: bool = key(False, "refuse a backend that is not available instead of its fallback")
    pack: bool | None = key(None, "run replicas of a circuit side by side [default: the backend's, where it is on]")
    spacing: int | None = key(None, "buffer qubits between two replicas, against crosstalk", ge=0, le=3)
    min_fidelity: float | None = key(
        None, "share of the best replica's ESP (estimated success probability) to reach", ge=0, le=1
    )
    mitigation: Mitigation | None = key(
        None, "of readout errors (mthree, trex), of all errors (postselection, zne) [default: the backend's]"
    )
    mode: Literal["job", "batch", "session", "auto"] | None = key(
        None, "IBM: how jobs run; auto: a session where the plan has them [default: the backend's]"
    )
    instance: str | None = key(None, "IBM: instance by name or CRN [default: the account's own]")
    max_time: int | None = key(None, "IBM: seconds after which the service ends a session or batch", ge=1)
    dynamical_decoupling: bool | None = key(None, "echo pulses on idle qubits")
    twirl_gates: bool | None = key(None, "Pauli twirling of two-qubit gates")
    twirl_measure: bool | None = key(None, "IBM: twirling of measurements")
    rep_delay: float | None = key(None, "IBM: seconds between two executions [default: the device's]", ge=0, le=1)
    backends_file: Path | None = key(None, "a backends.yaml over all others")


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
