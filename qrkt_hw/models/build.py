"""From options and the shape of the data to a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from qrkt_hw import circuits
from qrkt_hw.backends import Backend
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.transformer import Transformer
from qrkt_hw.nn.attention import Attention, CrossAttention
from qrkt_hw.nn.blocks import EncoderBlock, RungeKuttaBlock, TransformerField
from qrkt_hw.nn.decoder import Decoder, DecoderBlock
from qrkt_hw.nn.feedforward import FeedForward
from qrkt_hw.nn.patches import ImageTokens
from qrkt_hw.nn.pooling import WeightedPool
from qrkt_hw.nn.projection import ProjectionFactory, QuantumProjection
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.nn.tableaus import TABLEAUS
from qrkt_hw.nn.texts import TextTokens
from qrkt_hw.nn.tokens import Tokens
from qrkt_hw.runs.config import ClassifierConfig, Config, TextConfig, VitConfig

DTYPES = {"complex64": torch.complex64, "complex128": torch.complex128}


def build_model(options: Config, shape: DataShape, backend: str | Backend = "exact") -> nn.Module:
    """The model of these options, freshly initialised from torch's generator.

    Raises:
        UserError: sizes that do not fit each other or the data, or an unknown ansatz or backend.
    """
    if options.model.kind == "gan":
        from qrkt_hw.models.gan import build_gan

        return tagged(build_gan(options, shape, backend), options)
    return tagged(build_transformer(options, shape, backend), options)


def tagged(model: nn.Module, options: Config) -> nn.Module:
    """The model in the precision of its options, its quantum layers named after their place in it."""
    for name, module in model.named_modules():
        if isinstance(module, QuantumLayer):
            module.network.tag = name
    return model.double() if options.circuit.dtype == "complex128" else model


def build_transformer(options: Config, shape: DataShape, backend: str | Backend = "exact") -> Transformer:
    """The transformer of these options, with a logit per class; raises as :func:`build_model`."""
    _check(options, shape)
    attention, make_attention, make_mlp = _parts(options, backend)
    blocks = make_blocks(options, backend)
    tokens = _tokens(options, shape)
    assert isinstance(options.model, ClassifierConfig)
    decoder = None
    if options.model.decoder_blocks:
        only = options.model.cross_attention == "output"
        decoding = [
            DecoderBlock(
                make_attention(),
                CrossAttention(
                    hidden=options.model.hidden,
                    heads=options.model.heads,
                    projection=attention,
                    dropout=options.model.dropout,
                    output_only=only,
                ),
                make_mlp(),
                hidden=options.model.hidden,
                dropout=options.model.dropout,
            )
            for _ in range(options.model.decoder_blocks)
        ]
        decoder = Decoder(_tokens(options, shape), decoding, hidden=options.model.hidden)
    pool = None
    if options.model.pool == "weighted" and isinstance(options.model, VitConfig):
        pool = WeightedPool(
            (shape.image_size // options.model.patch) ** 2, options.model.hidden, options.model.pool_maps
        )
    return Transformer(
        tokens,
        blocks,
        hidden=options.model.hidden,
        classes=shape.classes,
        decoder=decoder,
        pool=pool,
        final_norm=options.model.final_norm,
    )


def make_blocks(options: Config, backend: str | Backend = "exact") -> list[nn.Module]:
    """The ordinary blocks of these options, then their Runge-Kutta blocks; tokens keep their width ``hidden``."""
    _, make_attention, make_mlp = _parts(options, backend)
    assert isinstance(options.model, ClassifierConfig)
    dropout = options.model.dropout
    blocks: list[nn.Module] = []
    for _ in range(options.model.encoder_blocks):
        blocks.append(
            EncoderBlock(make_attention(), make_mlp(), hidden=options.model.hidden, dropout=options.model.dropout)
        )
    tableau = TABLEAUS[options.model.rk]
    for _ in range(options.model.rk_blocks):
        norm = nn.LayerNorm(options.model.hidden) if options.model.field_norms else None
        second = nn.LayerNorm(options.model.hidden) if options.model.field_norms == 2 else None
        count = 1 if options.model.share_stages else tableau.stages
        fields = [TransformerField(norm, make_attention(), make_mlp(), dropout, second) for _ in range(count)]
        blocks.append(RungeKuttaBlock(fields, tableau))
    return blocks


def _parts(
    options: Config, backend: str | Backend
) -> tuple[ProjectionFactory | None, Callable[[], Attention], Callable[[], FeedForward]]:
    attention = _quantum(options, options.circuit.qubits, backend) if options.model.quantum_attention else None
    middle = _quantum(options, options.mlp_qubits, backend) if options.model.quantum_mlp else None
    hidden, dropout = options.model.hidden, options.model.dropout
    return (
        attention,
        partial(Attention, hidden=hidden, heads=options.model.heads, dropout=dropout, projection=attention),
        partial(FeedForward, hidden=hidden, size=options.model.mlp, projection=middle, dropout=dropout),
    )


def quantum_layers(model: nn.Module) -> list[QuantumLayer]:
    """All quantum layers of a model, in the order of its modules."""
    return [m for m in model.modules() if isinstance(m, QuantumLayer)]


def set_backend(model: nn.Module, backend: str | Backend) -> None:
    """Let all circuits of a model run elsewhere; its weights stay."""
    for layer in quantum_layers(model):
        layer.backend = backend  # type: ignore[assignment]


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
    """How often a forward pass evaluates attention and feed-forward: once for each ordinary block, once for each stage
    of a Runge-Kutta block."""
    return sum(
        block.tableau.stages if isinstance(block, RungeKuttaBlock) else 1 for block in named_blocks(model).values()
    )


def _tokens(options: Config, shape: DataShape) -> Tokens:
    common: dict[str, Any] = {
        "hidden": options.model.hidden,
        "positions": options.model.positions,
        "class_token": options.model.pool == "class",
        "dropout": options.model.dropout,
    }
    if isinstance(options.model, TextConfig):
        common.update(left_out=options.model.token_dropout, scale=options.model.embedding_scale)
        return TextTokens(vocabulary=shape.vocabulary, length=shape.length, **common)
    assert isinstance(options.model, VitConfig)
    return ImageTokens(image_size=shape.image_size, channels=shape.channels, patch=options.model.patch, **common)


def _quantum(options: Config, qubits: int, backend: str | Backend) -> ProjectionFactory:
    circuit = options.circuit

    def make(features: int) -> nn.Module:
        template = (options.circuits or circuits.build)(circuit.ansatz, qubits, circuit.layers)
        layer = QuantumLayer(features, template, backend=backend, dtype=DTYPES[circuit.dtype])
        return QuantumProjection(
            layer,
            input_scale=options.circuit.input_scale,
            scale=options.circuit.output_scale,
            bias=options.circuit.output_bias,
        )

    return make


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
            f"--patch: images of {shape.image_size} pixels cannot be cut into patches of {options.model.patch}"
        )
    options.check_sizes()
