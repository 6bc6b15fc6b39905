"""Options that would change nothing beside the others: whoever gives one is told, and nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Iterable

from qrkt_hw.options.gan import GanOptions
from qrkt_hw.options.run import RunOptions
from qrkt_hw.options.training import BackendOptions
from qrkt_hw.options.validation import flag

# those of the GAN's group that other models read, too
_GAN = set(GanOptions.model_fields) - {"accelerator"}
_WORDS = {"text_length", "vocabulary", "unique_words", "word_pairs", "embedding_scale", "token_dropout"}
_IMAGES = {"image_size", "augment", "patch"}
_CLASSIFIER = {"encoder_blocks", "rk_blocks", "decoder_blocks", "cross_attention", "label_smoothing"}
_CIRCUITS = {
    "ansatz", "qubits", "layers", "mlp_qubits", "initial_angles", "input_scale", "output_scale", "output_bias",
    *BackendOptions.model_fields,
}  # fmt: skip
_FIELDS = {"rk", "share_stages", "field_norms"}
_GENERATOR_BLOCKS = {"generator_projection", "generator_heads", "generator_mlp_ratio"}


def unused_option(options: RunOptions, given: Iterable[str]) -> str | None:
    """Why one of the options ``given`` by hand has no effect beside the others; None where all have one.

    An option given with its default value asks for nothing and is let through.
    """
    for key in given:
        if getattr(options, key) == RunOptions.model_fields[key].default:
            continue
        reason = _reason(options, key)
        if reason is not None:
            return f"{flag(key)}: {getattr(options, key)} would have no effect: {reason}; leave it out"
    return None


def _reason(o: RunOptions, key: str) -> str | None:
    gan, name = o.model == "gan", o.dataset.partition(":")[0]
    generator = gan and any(int(n) for n in f"{o.generator_blocks},{o.generator_rk_blocks}".split(","))
    generator_fields = gan and any(int(n) for n in o.generator_rk_blocks.split(","))
    discriminator_fields = gan and o.discriminator_rk_blocks > 0
    discriminator = gan and o.discriminator_blocks + o.discriminator_rk_blocks > 0
    parts = set(o.projections)
    # the Runge-Kutta methods in use
    rules = [(o.generator_rk or o.rk)] if generator_fields else []
    rules += [(o.discriminator_rk or o.rk)] if discriminator_fields else []
    rules += [o.rk] if o.rk_blocks and not gan else []
    own_rule = not gan or (generator_fields and not o.generator_rk)
    own_rule = own_rule or (discriminator_fields and not o.discriminator_rk)
    checks = [
        (key in _GAN and not gan, f"--model is {o.model}, and only a gan reads it"),
        (key in _CLASSIFIER and gan, "--model is gan, which does not read it"),
        (key in _WORDS and o.model != "text", f"the data set {o.dataset} holds images, not texts"),
        (key in _IMAGES and o.model == "text", f"the data set {o.dataset} holds texts, not images"),
        (key in ("image_size", "data_dir", "download") and name == "digits", "the digits come with the package, 8x8"),
        (key == "download" and name == "folder", "a folder of your own is not fetched from anywhere"),
        (key == "data_dir" and o.dataset.startswith("folder:/"), f"the path of {o.dataset} is absolute"),
        (key in ("heads", "mlp", "projection") and not gan and not parts,
         "the model has no blocks (--encoder-blocks, --rk-blocks, --decoder-blocks)"),
        (key in _GENERATOR_BLOCKS and not generator, "the generator has no blocks"),
        (key == "generator_rk" and not generator_fields, "the generator has no Runge-Kutta blocks"),
        (key == "discriminator_rk" and not discriminator_fields, "the discriminator has no Runge-Kutta blocks"),
        (key == "discriminator_projection" and not discriminator, "the discriminator has no blocks"),
        (key == "rk" and bool(rules) and not own_rule, "--generator-rk and --discriminator-rk take its place"),
        (key == "projection" and gan and bool(o.generator_projection and o.discriminator_projection),
         "--generator-projection and --discriminator-projection take its place"),
        (key in _FIELDS and not rules, "the model has no Runge-Kutta blocks (--rk-blocks)"),
        (key == "cross_attention" and not o.decoder_blocks, "the model has no decoder (--decoder-blocks)"),
        (key in _CIRCUITS and not o.has_circuits, "the model has no circuits"),
        (key == "mlp_qubits" and not parts & {"quantum", "quantum-mlp"}, "the MLP has no circuits (--projection)"),
        (key == "qubits" and o.mlp_qubits is not None and not parts & {"quantum", "quantum-attention"},
         "only the MLP has circuits, and --mlp-qubits is theirs"),
        (key in ("penalty", "penalty_every") and o.loss == "hinge", f"--loss {o.loss} has no gradient penalty"),
        (key == "penalty_every" and not o.penalty, "--penalty is 0"),
        (key == "penalty_target" and (o.loss != "wgangp-eps" or not o.penalty), "it is for --loss wgangp-eps"),
        (key in ("guard", "quality") and o.pack is False, "--no-pack leaves one circuit at a time"),
    ]  # fmt: skip
    return next((reason for applies, reason in checks if applies), None)
