"""From options and the shape of the data to a model, and what a model is made of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends import Backend
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.images import evaluating
from qrkt_hw.errors import UserError, take_divisor
from qrkt_hw.models.ablation import StructuredLayer
from qrkt_hw.models.transformer import Decoder, Gan, Generator, Transformer
from qrkt_hw.nn.attention import Attention, CrossAttention, HigherOrderAttention
from qrkt_hw.nn.blocks import TABLEAUS, FeedForward, RungeKuttaBlock, TransformerBlock, TransformerField
from qrkt_hw.nn.embeddings import ImageTokens, TextTokens, Tokens, WeightedPool
from qrkt_hw.nn.quantum import ProjectionFactory, QuantumLayer, QuantumProjection
from qrkt_hw.runs.config import ClassifierConfig, Config, TextConfig, VitConfig

DTYPES = {"complex64": torch.complex64, "complex128": torch.complex128}


def build_model(options: Config, shape: DataShape, backend: str | Backend = "exact") -> nn.Module:
    """The model of these options, freshly initialised from torch's generator; its quantum layers named by their place.

    Raises:
        UserError: sizes that do not fit each other or the data, or an unknown ansatz or backend.
    """
    build = build_gan if options.model.kind == "gan" else build_transformer
    model: nn.Module = build(options, shape, backend)
    start = options.circuit.initial_angles
    for name, module in model.named_modules():
        if isinstance(module, QuantumLayer):
            module.network.tag = name
    if start in ("identity", "gelu") and not any(start in layer.template.initial for layer in quantum_layers(model)):
        raise UserError(f"--initial-angles: --ansatz {options.circuit.ansatz} has no angles for {start}; leave it out")
    check_mitigation(model, backend)
    return model.double() if options.circuit.dtype == "complex128" else model


def check_mitigation(model: nn.Module, backend: str | Backend) -> None:
    """Refuse post-selection of a model none of whose circuits allows it; the others run without."""
    packer = getattr(backend, "packer", None)
    if packer is not None and packer.mitigation == "postselection":
        from qrkt_hw.backends.device.measurement import weight_bases

        if not any(weight_bases(layer.network.evaluated) for layer in quantum_layers(model)):
            what = "no circuit of the model keeps its Hamming weight and is read by Z, or by XX of two qubits"
            raise UserError(f"--mitigation: {what}; orthogonal circuits do")


def build_transformer(options: Config, shape: DataShape, backend: str | Backend = "exact") -> Transformer:
    """The transformer of these options, with a logit per class; raises as :func:`build_model`."""
    _check(options, shape)
    model = options.model
    assert isinstance(model, ClassifierConfig)
    first = model.encoder_blocks + model.rk_blocks
    drops = _drops(options, first + model.decoder_blocks)
    blocks = make_blocks(options, backend, drops, _count(options, shape))
    tokens = _tokens(options, shape)
    decoder = _decoder(options, shape, backend, drops[first:]) if model.decoder_blocks else None
    pool = None
    if model.pool == "weighted" and isinstance(model, VitConfig):
        pool = WeightedPool((shape.image_size // model.patch) ** 2, model.hidden, model.pool_maps)
    return Transformer(
        tokens,
        blocks,
        hidden=model.hidden,
        classes=shape.classes,
        decoder=decoder,
        pool=pool,
        final_norm=model.final_norm,
    )


def make_blocks(
    options: Config, backend: str | Backend = "exact", drops: Sequence[float] | None = None, tokens: int = 0
) -> list[nn.Module]:
    """The pre-norm blocks of these options, then their Runge-Kutta blocks; tokens keep their width ``hidden``.

    ``drops`` are the rates of stochastic depth, default: those of a model of these blocks alone. Higher-order attention
    must know how many ``tokens`` there can be.
    """
    model = options.model
    assert isinstance(model, ClassifierConfig)
    drop = iter(_drops(options, model.encoder_blocks + model.rk_blocks) if drops is None else drops)
    _, make_attention, make_mlp = _parts(options, backend, tokens)
    blocks: list[nn.Module] = []
    for _ in range(model.encoder_blocks):
        parts = make_attention(), make_mlp()
        blocks.append(TransformerBlock(*parts, hidden=model.hidden, dropout=model.dropout, drop_path=next(drop)))
    tableau = TABLEAUS[model.rk]
    for _ in range(model.rk_blocks):
        norm = nn.LayerNorm(model.hidden) if model.field_norms else None
        second = nn.LayerNorm(model.hidden) if model.field_norms == 2 else None
        count = 1 if model.share_stages else tableau.stages
        fields = [TransformerField(norm, make_attention(), make_mlp(), model.dropout, second) for _ in range(count)]
        blocks.append(RungeKuttaBlock(fields, tableau, drop_path=next(drop)))
    return blocks


def _drops(options: Config, depth: int) -> list[float]:
    """Rates of stochastic depth of so many blocks, rising from 0 as timm's do."""
    return torch.linspace(0, options.model.drop_path, depth, dtype=torch.float64, device="cpu").tolist()


def _decoder(options: Config, shape: DataShape, backend: str | Backend, drops: Sequence[float]) -> Decoder:
    model = options.model
    assert isinstance(model, ClassifierConfig)
    projection, make_attention, make_mlp = _parts(options, backend, _count(options, shape))
    make_cross = partial(
        CrossAttention, hidden=model.hidden, heads=model.heads, projection=projection, dropout=model.dropout,
        output_only=model.cross_attention == "output",
    )  # fmt: skip
    blocks = [
        TransformerBlock(
            attention=make_attention(), cross_attention=make_cross(), feed_forward=make_mlp(), hidden=model.hidden,
            dropout=model.dropout, drop_path=drop,
        )
        for drop in drops
    ]  # fmt: skip
    return Decoder(_tokens(options, shape), blocks, hidden=model.hidden)


def _count(options: Config, shape: DataShape) -> int:
    return shape.tokens(getattr(options.model, "patch", 1)) + (options.model.pool == "class")


def _parts(
    options: Config, backend: str | Backend, tokens: int
) -> tuple[ProjectionFactory | None, Callable[[], Attention | HigherOrderAttention], Callable[[], FeedForward]]:
    attention = _quantum(options, "attention", backend) if options.model.quantum_attention else None
    middle = _quantum(options, "mlp", backend) if options.model.quantum_mlp else None
    hidden, heads, dropout = options.model.hidden, options.model.heads, options.model.dropout
    softmax = partial(Attention, hidden=hidden, heads=heads, dropout=dropout, projection=attention)

    def higher_order() -> HigherOrderAttention:
        circuits = _layer(options, tokens * heads, options.template("tokens", tokens), backend)
        return HigherOrderAttention(hidden=hidden, circuits=circuits, projection=attention)

    return (
        attention,
        higher_order if options.model.higher_order else softmax,
        partial(FeedForward, hidden=hidden, size=options.model.mlp, projection=middle, dropout=dropout),
    )


def _tokens(options: Config, shape: DataShape) -> Tokens:
    common: dict[str, Any] = {
        "hidden": options.model.hidden,
        "positions": options.model.positions,
        "class_token": options.model.pool == "class",
        "dropout": options.model.dropout,
    }
    if isinstance(options.model, TextConfig):
        common.update(word_dropout=options.model.token_dropout, scale=options.model.embedding_scale)
        return TextTokens(vocabulary=shape.vocabulary, length=shape.length, **common)
    assert isinstance(options.model, VitConfig)
    return ImageTokens(image_size=shape.image_size, channels=shape.channels, patch=options.model.patch, **common)


def _quantum(options: Config, place: Literal["attention", "mlp"], backend: str | Backend) -> ProjectionFactory:
    circuit = options.circuit

    def make(features: int) -> nn.Module:
        template = options.template(place)
        scale = circuit.output_scale and circuit.initial_output_scale
        scaling: Any = {"input_scale": circuit.input_scale, "scale": scale, "bias": circuit.output_bias}
        structured = circuit.structured
        layer = StructuredLayer(features, template) if structured else _layer(options, features, template, backend)
        return QuantumProjection(layer, **scaling)  # type: ignore[arg-type]

    return make


def _layer(options: Config, features: int, template: CircuitTemplate, backend: str | Backend) -> QuantumLayer:
    start = options.circuit.initial_angles
    if start is not None and start not in template.initial:
        start = "uniform"  # conditioned angles are moved from there
    return QuantumLayer(features, template, backend=backend, dtype=DTYPES[options.circuit.dtype], initial_weights=start)


def _check(options: Config, shape: DataShape) -> None:
    if (options.model.kind == "text") != bool(shape.vocabulary):
        fitting = "text" if shape.vocabulary else "vit"
        raise UserError(f"--model: {options.model.kind} does not read this data set; take --model {fitting}")
    if options.model.kind == "text" and options.model.positions == "axial":
        raise UserError("--positions: axial is for images; take learned, sincos or none")
    if options.model.kind == "text" and options.model.pool == "weighted":
        raise UserError("--pool: weighted is for images, whose positions mean places; take mean or class")
    if isinstance(options.model, VitConfig) and shape.image_size % options.model.patch:
        raise UserError(
            f"--patch: images of {shape.image_size} pixels cannot be cut into patches of {options.model.patch}; "
            f"{take_divisor(shape.image_size)}"
        )
    options.check_sizes()


def build_gan(options: Config, shape: DataShape, backend: str | Backend = "exact") -> Gan:
    """The GAN of these options for images of this shape.

    Raises:
        UserError: sizes that do not fit each other or the data.
    """
    gan = options.gan
    if shape.vocabulary or shape.channels not in (1, 3):
        raise UserError("--model: gan draws images of 1 or 3 channels; this data set has none")
    if gan.accumulate > 1 and gan.loss == "wgangp-eps":
        raise UserError(
            f"--accumulate: {gan.accumulate} parts, and the drift of wgangp-eps needs the scores of the whole batch; "
            "take --accumulate 1, or --loss hinge or nonsaturating-r1"
        )
    classes = shape.classes if gan.conditional else 0
    if gan.conditional and classes < 2:
        raise UserError(f"--conditional: the data set has {classes} class; leave it out")
    side, widths = _sizes(options, shape)
    ordinary = _per_stage(options, "generator_blocks")
    steps = _per_stage(options, "generator_rk_blocks")
    depths = [a + b for a, b in zip(ordinary, steps, strict=True)]
    drops = _drops(options, sum(depths))
    stages = [
        make_blocks(generator_stage(options, width, ordinary[k], steps[k]), backend, drops[sum(depths[:k]) :])
        for k, width in enumerate(widths)
    ]
    generator = Generator(
        latent=gan.latent,
        side=side,
        widths=widths,
        stages=stages,
        channels=shape.channels,
        patch=gan.generator_patch,
        bounded=gan.generator_output == "tanh",
        classes=classes,
    )
    scored = DataShape(shape.channels, shape.image_size, 1 + classes)
    return Gan(generator, build_transformer(discriminator_options(options), scored, backend))


def discriminator_options(options: Config) -> Config:
    """Those of the vision transformer that scores images."""
    gan = options.gan
    return _vit(
        options.of_network("discriminator"),
        projection=gan.discriminator_projection or gan.projection,
        encoder_blocks=gan.discriminator_blocks,
        rk_blocks=gan.discriminator_rk_blocks,
        rk=gan.discriminator_rk or gan.rk,
    )


def _vit(options: Config, **keys: Any) -> Config:
    """A part of the GAN as a vision transformer."""
    shared = {key: value for key, value in options.gan if key in VitConfig.model_fields and key != "kind"}
    return options.model_copy(update={"model": VitConfig(**{**shared, **keys})})


def generator_stage(options: Config, width: int, ordinary: int, steps: int) -> Config:
    """Those of the blocks of a stage whose tokens have this width; in its attention circuits are no wider.

    Raises:
        UserError: heads or qubits that do not divide the width.
    """
    size = max(1, round(width * options.gan.generator_mlp_ratio))
    gan = options.gan
    stage = _vit(
        options.of_network("generator"),
        projection=gan.generator_projection or gan.projection,
        hidden=width,
        heads=gan.generator_heads or gan.heads,
        mlp=size,
        encoder_blocks=ordinary,
        rk_blocks=steps,
        rk=gan.generator_rk or gan.rk,
    )
    if stage.model.quantum_attention and stage.circuit.qubits > width:
        stage = stage.model_copy(update={"circuit": stage.circuit.model_copy(update={"qubits": width})})
    if not ordinary + steps:
        return stage
    name = "--generator-hidden: a stage of the generator has tokens of width"
    if width % stage.model.heads:
        raise UserError(f"{name} {width}, which {stage.model.heads} heads do not divide (--generator-heads)")
    if stage.model.quantum_attention and width % stage.circuit.qubits:
        flag = "--generator-qubits" if options.circuit.generator_qubits else "--qubits"
        raise UserError(f"{name} {width}, which groups of {stage.circuit.qubits} qubits do not divide ({flag})")
    if stage.model.quantum_mlp and size % stage.mlp_qubits:
        raise UserError(f"--generator-mlp-ratio: a stage's MLP of {size} is not divisible by {stage.mlp_qubits} qubits")
    return stage


def _sizes(options: Config, shape: DataShape) -> tuple[int, list[int]]:
    """Tokens along a side, and widths, of the stages.

    Raises:
        UserError: the images or the width cannot be divided so often.
    """
    growth = options.gan.generator_patch * 2 ** (options.gan.generator_stages - 1)
    if shape.image_size % growth:
        raise UserError(
            f"--generator-stages: images of {shape.image_size} pixels are not a multiple of {growth}, which "
            f"{options.gan.generator_stages} stages and last patches of {options.gan.generator_patch} need"
        )
    shrink = 4 ** (options.gan.generator_stages - 1)
    if options.gan.generator_hidden % shrink:
        raise UserError(
            f"--generator-hidden: {options.gan.generator_hidden} is not divisible by {shrink}, "
            f"as {options.gan.generator_stages} stages need"
        )
    return shape.image_size // growth, [
        options.gan.generator_hidden // 4**k for k in range(options.gan.generator_stages)
    ]


def _per_stage(options: Config, key: str) -> list[int]:
    counts = [int(part) for part in getattr(options.gan, key).split(",")]
    if len(counts) == 1:
        counts *= options.gan.generator_stages
    if len(counts) != options.gan.generator_stages:
        raise UserError(
            f"--{key.replace('_', '-')}: {len(counts)} numbers for {options.gan.generator_stages} stages "
            "(--generator-stages); name one, or one for each"
        )
    return counts


def quantum_layers(model: nn.Module) -> list[QuantumLayer]:
    """All quantum layers of a model, in the order of its modules."""
    return [m for m in model.modules() if isinstance(m, QuantumLayer)]


def set_backend(model: nn.Module, backend: str | Backend) -> None:
    """Let all circuits of a model run elsewhere; its weights stay."""
    for layer in quantum_layers(model):
        layer.backend = backend  # type: ignore[assignment]


@contextmanager
def evaluated_on(model: nn.Module, backend: Backend) -> Iterator[None]:
    """Let all circuits of a model in evaluation mode run on a backend, without gradients; afterwards backends, modes
    and torch's random numbers are what they were."""
    before = {layer: layer.backend for layer in quantum_layers(model)}
    set_backend(model, backend)
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for layer, own in before.items():
            layer.backend = own  # type: ignore[assignment]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters: ``quantum`` (circuit angles), ``classical`` (all others) and ``total``."""
    quantum = sum(layer.weight.numel() for layer in quantum_layers(model))
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"quantum": quantum, "classical": total - quantum, "total": total}


def largest_circuit(model: nn.Module) -> int:
    """Qubits of the largest circuit; 0 for a classical model."""
    return max((layer.template.num_qubits for layer in quantum_layers(model)), default=0)


def summed_qubits(model: nn.Module) -> int:
    """Qubits of all circuits of a model added up, as the thesis counts them; no device needs that many."""
    return sum(layer.groups * layer.template.num_qubits for layer in quantum_layers(model))


def named_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model by name, from the input to the output."""
    sides: Any = getattr(model, "sides", None)
    if sides is not None:
        return {f"{side}_{name}": block for side, part in sides.items() for name, block in named_blocks(part).items()}
    found = {f"block_{k}": block for k, block in enumerate(getattr(model, "blocks", ()), start=1)}
    decoder = getattr(model, "decoder", None)
    if decoder is not None:
        found.update({f"decoder_{k}": block for k, block in enumerate(decoder.blocks, start=1)})
    return found


def field_evaluations(model: nn.Module) -> int:
    """How often a forward pass evaluates attention and feed-forward: once for each pre-norm transformer
    block, once for each stage of a Runge-Kutta block."""
    return sum(
        block.tableau.stages if isinstance(block, RungeKuttaBlock) else 1 for block in named_blocks(model).values()
    )
