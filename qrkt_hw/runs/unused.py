"""Keys that would change nothing beside the others: whoever gives one is told, and nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Iterable

from qrkt_hw.errors import flag
from qrkt_hw.runs.config import KEYS, Config

_WORDS = {"text_length", "vocabulary", "unique_words", "word_pairs"}
_GENERATOR_BLOCKS = {"generator_projection", "generator_heads", "generator_mlp_ratio"}


def unused(config: Config, given: Iterable[str]) -> str | None:
    """Why one of the flat keys ``given`` by hand has no effect beside the others; None where all have one.

    A key given with its default value asks for nothing and is let through, as is one that the model does not hold: it
    had to be at its default.
    """
    values = config.flat()
    for key in given:
        if key in values and values[key] != KEYS[key].field.default:
            reason = _reason(config, key)
            if reason is not None:
                return f"{flag(key)}: {values[key]} would have no effect: {reason}; leave it out"
    return None


def _reason(config: Config, key: str) -> str | None:
    data, m, circuit = config.data, config.model, config.circuit
    name, parts = data.dataset.partition(":")[0], set(m.projections)
    checks = [
        (key in _WORDS and m.kind != "text", f"the data set {data.dataset} holds images, not texts"),
        (key in ("image_size", "augment") and m.kind == "text", f"the data set {data.dataset} holds texts, not images"),
        (key in ("image_size", "data_dir", "download") and name == "digits", "the digits come with the package, 8x8"),
        (key == "download" and name == "folder", "a folder of your own is not fetched from anywhere"),
        (key == "data_dir" and data.dataset.startswith("folder:/"), f"the path of {data.dataset} is absolute"),
        (KEYS[key].section in ("circuit", "backend") and key != "dtype" and not config.has_circuits,
         "the model has no circuits"),
        (key == "mlp_qubits" and not parts & {"quantum", "quantum-mlp"}, "the MLP has no circuits (--projection)"),
        (key == "qubits" and circuit.mlp_qubits is not None and not parts & {"quantum", "quantum-attention"},
         "only the MLP has circuits, and --mlp-qubits is theirs"),
        (key in ("guard", "quality") and config.backend.pack is False, "--no-pack leaves one circuit at a time"),
    ]  # fmt: skip
    if m.kind == "gan":
        generator = any(int(n) for n in f"{m.generator_blocks},{m.generator_rk_blocks}".split(","))
        # the Runge-Kutta methods of its sides, where they have such blocks
        rules = [m.generator_rk] if any(int(n) for n in m.generator_rk_blocks.split(",")) else []
        fields, rules = bool(rules), rules + ([m.discriminator_rk] if m.discriminator_rk_blocks else [])
        checks += [
            (key == "label_smoothing", "--model is gan, which does not read it"),
            (key in _GENERATOR_BLOCKS and not generator, "the generator has no blocks"),
            (key == "generator_rk" and not fields, "the generator has no Runge-Kutta blocks"),
            (key == "discriminator_rk" and not m.discriminator_rk_blocks,
             "the discriminator has no Runge-Kutta blocks"),
            (key == "discriminator_projection" and not m.discriminator_blocks + m.discriminator_rk_blocks,
             "the discriminator has no blocks"),
            (key == "rk" and bool(rules) and all(rules), "--generator-rk and --discriminator-rk take its place"),
            (key == "projection" and bool(m.generator_projection and m.discriminator_projection),
             "--generator-projection and --discriminator-projection take its place"),
            (key in ("penalty", "penalty_every") and m.loss == "hinge", f"--loss {m.loss} has no gradient penalty"),
            (key == "penalty_every" and not m.penalty, "--penalty is 0"),
            (key == "penalty_target" and (m.loss != "wgangp-eps" or not m.penalty), "it is for --loss wgangp-eps"),
        ]  # fmt: skip
    else:
        rules = [m.rk] if m.rk_blocks else []
        checks += [
            (key in ("heads", "mlp", "projection") and not parts,
             "the model has no blocks (--encoder-blocks, --rk-blocks, --decoder-blocks)"),
            (key == "cross_attention" and not m.decoder_blocks, "the model has no decoder (--decoder-blocks)"),
        ]  # fmt: skip
    checks.append(
        (
            key in ("rk", "share_stages", "field_norms") and not rules,
            "the model has no Runge-Kutta blocks (--rk-blocks)",
        )
    )
    return next((reason for applies, reason in checks if applies), None)
