"""The configuration of a run: five nested sections, from which flags, YAML keys, defaults, help and checks come.

Every key has a name of its own, so that flags stay flat: ``hidden`` is ``model.hidden`` and ``--hidden``; ``model``
alone is ``model.kind``, and ``backend`` alone is ``backend.name``. :class:`Config` reads both forms and writes the
nested one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Discriminator, PrivateAttr, Tag, ValidationError, model_validator
from pydantic.fields import FieldInfo

from qrkt_hw.backends.entries import RENAMED
from qrkt_hw.errors import UserError, flag, nearest, sentence, take_divisor
from qrkt_hw.runs.sections import (
    GAN_DEFAULTS,
    MODELS,
    NETWORK_KEYS,
    NETWORKS,
    SECTIONS,
    TEXT_SETS,
    BackendConfig,
    CircuitConfig,
    ClassifierConfig,
    DataConfig,
    GanConfig,
    TextConfig,
    TrainingConfig,
    VitConfig,
)

__all__ = [
    "KEYS", "BackendConfig", "CircuitConfig", "ClassifierConfig", "Config", "DataConfig", "GanConfig", "TextConfig",
    "TrainingConfig", "VitConfig", "flattened", "is_nested", "of_kept", "problem", "unused",
]  # fmt: skip

_ALONE = {("model", "kind"): "model", ("backend", "name"): "backend"}
_WORDS = {"text_length", "vocabulary", "unique_words", "word_pairs"}
_OF_PROJECTIONS = {"qubits", "structured", "input_scale", "output_scale", "initial_output_scale", "output_bias"}
_GENERATOR_BLOCKS = {"generator_projection", "generator_heads", "generator_mlp_ratio"}


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
            kinds = ("gan",) if name in NETWORK_KEYS else kinds
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

    def __init__(self, **keys: Any) -> None:  # of both forms, whatever mypy expects of a model
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
        for name, key in KEYS.items():
            # a default that is foreign to the model asks for nothing
            if name in flat and (kind in key.kinds or flat[name] != key.field.default):
                nested[key.section if kind in key.kinds else "model"][key.name] = flat[name]  # where it is refused
        return {**nested, **{name: value for name, value in flat.items() if name not in KEYS}}

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
        return self.model.higher_order or (self.has_projections and not self.circuit.structured)

    @property
    def has_projections(self) -> bool:
        """Whether any part of the model is quantum, or has the structure of circuits."""
        return self.model.higher_order or any(projection != "classical" for projection in self.model.projections)

    def without_circuits(self) -> Self:
        """The same shape with linear layers instead of circuits."""
        sides = {"generator_projection": None, "discriminator_projection": None}
        others = sides if self.model.kind == "gan" else {"attention": "softmax"}
        return self.replace(projection="classical", structured=False, **others)

    def alone(self) -> Self:
        """The same configuration on one process."""
        return self.replace(devices=None, num_nodes=1)

    @property
    def mlp_qubits(self) -> int:
        """Qubits per group in the MLP, the default resolved."""
        return self.circuit.mlp_qubits or min(self.circuit.qubits, self.model.mlp)

    def template(self, place: Literal["attention", "mlp", "tokens"], tokens: int = 0) -> Any:
        """The circuit of a place: the one that the run keeps, or that of the registry.

        ``tokens``: that of higher-order attention over so many tokens, by the ansatz of the attention.
        Raises UserError: no such ansatz or size, by the flag that names it."""
        from qrkt_hw import circuits  # it takes qiskit, which most commands do without

        circuit, key = self.circuit, "mlp_ansatz" if place == "mlp" else "attention_ansatz"
        own = getattr(circuit, key)
        size = (tokens if place == "tokens" else circuit.qubits, circuit.layers)
        if place == "mlp":
            size = (self.mlp_qubits, circuit.mlp_layers or circuit.layers)
        try:
            return (self.circuits or circuits.build)(own or circuit.ansatz, *size)
        except UserError as error:
            if own is None:
                raise
            raise UserError(str(error).replace("--ansatz:", f"{flag(key)}:")) from error

    def of_network(self, network: str) -> Self:
        """The same configuration with the circuits of a GAN's ``generator`` or ``discriminator``."""
        return self.model_copy(update={"circuit": self.circuit.of_network(network)})

    def check_source(self, theirs: Config, run: Path) -> None:
        """Make sure that a model can start from the weights of a run: angles mean nothing in other circuits."""
        here, there = self.flat(), theirs.flat()
        own = ("ansatz", "attention_ansatz", "mlp_ansatz", "qubits", "layers", "mlp_qubits", "mlp_layers")
        for key in ("model", *own, *NETWORK_KEYS):
            if here[key] != there[key] and (key == "model" or self.has_projections):
                raise UserError(f"{flag(key)}: {run}, whose weights are taken, has {there[key]}; leave it out")

    def check_own(self, found: dict[str, Any], kept: dict[str, Any], run: Path) -> None:
        """Make sure that a data set given in Python is described as the one that a run was trained on."""
        odd = next((key for key in kept if json.dumps(kept[key]) != json.dumps(found.get(key))), None)
        if odd is not None:
            raise UserError(f"--train: {run} was trained on other data ({odd} differs)")

    def check_sizes(self) -> None:
        """Make sure that the sizes of a transformer fit each other; they need no data for that.

        Raises UserError: two that do not, by their flags."""
        model, qubits = self.model, self.circuit.qubits
        if self.training.mixup and model.kind == "text":
            raise UserError(f"--mixup: {self.training.mixup} mixes images; words cannot be mixed, so leave it out")
        if not model.final_norm and getattr(model, "decoder_blocks", None):
            raise UserError("--no-final-norm: the decoder has a norm of its own; take --decoder-blocks 0")
        if model.pool_maps > 1 and model.pool != "weighted":
            raise UserError(f"--pool-maps: {model.pool_maps} sums need --pool weighted; --pool is {model.pool}")
        if model.hidden % model.heads:
            raise UserError(
                f"--heads: hidden size {model.hidden} is not divisible by {model.heads} heads; "
                f"{take_divisor(model.hidden)}, or another --hidden"
            )
        if model.quantum_attention and model.hidden % qubits:
            raise UserError(
                f"--qubits: hidden size {model.hidden} is not divisible by {qubits} qubits per group; "
                f"{take_divisor(model.hidden)}, or another --hidden"
            )
        if model.quantum_mlp and model.mlp % self.mlp_qubits:
            raise UserError(
                f"--mlp-qubits: MLP size {model.mlp} is not divisible by {self.mlp_qubits} qubits per group; "
                f"{take_divisor(model.mlp)}, or another --mlp"
            )


def flattened(values: dict[str, Any]) -> dict[str, Any]:
    """Keys by their flat names, of a flat or nested mapping or a mixture; an unknown key keeps its whole path.

    Raises:
        ValueError: a key that is given twice.
    """
    flat: dict[str, Any] = {}
    for section, inner in values.items():
        found = {RENAMED.get(section, section): inner}
        if isinstance(inner, BaseModel):
            inner = dict(inner)
        if section in SECTIONS and isinstance(inner, dict):
            found = {}
            for name, value in inner.items():
                key = _ALONE.get((section, str(name)), str(name))
                place = KEYS[key][:2] if key in KEYS else None
                found[key if place == (section, name) else f"{section}.{name}"] = value
        twice = [key for key in found if key in flat]
        if twice:
            raise ValueError(f"{twice[0]} is given twice, also in its section or under its old name")
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
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in MODELS]
    name = _ALONE.get((where[0], where[-1]), where[-1]) if where else ""
    key = KEYS.get(name)
    if first["type"] == "extra_forbidden" and key is not None:
        readers = " or ".join(f"--model {kind}" for kind in key.kinds)
        return name, f"{flag(name)}: {first['input']} would have no effect: only {readers} reads it; leave it out"
    if first["type"] == "extra_forbidden":
        near = " or ".join(nearest(name, KEYS))
        way = f"did you mean {near}?" if near else "qrkt-hw train --help-all shows the flags, whose names keys have"
        return name, f"{sentence(error, name)}; {way}"
    if first["type"].startswith("union_tag"):
        return "model", f"model is {first['ctx'].get('tag')!r}: must be vit, text or gan"
    return name, sentence(error, name)


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
    attention, mlp = bool(parts & {"quantum", "quantum-attention"}), bool(parts & {"quantum", "quantum-mlp"})
    there = {"attention": attention or m.higher_order, "mlp": mlp}  # circuits over tokens have the attention's ansatz
    places = [getattr(circuit, f"{place}_ansatz") for place, has_circuits in there.items() if has_circuits]
    checks = [
        (key in _WORDS and m.kind != "text", f"the data set {data.dataset} holds images, not texts"),
        (key in ("image_size", "augment") and m.kind == "text", f"the data set {data.dataset} holds texts, not images"),
        (key in ("image_size", "data_dir", "download") and name == "digits", "the digits come with the package, 8x8"),
        (key == "download" and name == "folder", "a folder of your own is not fetched from anywhere"),
        (key == "data_dir" and data.dataset.startswith("folder:/"), f"the path of {data.dataset} is absolute"),
        (KEYS[key].section in ("circuit", "backend") and key != "dtype" and not config.has_projections,
         "the model has no circuits"),
        ((KEYS[key].section == "backend" or key == "initial_angles") and not config.has_circuits,
         "--structured leaves no circuits"),
        (key in ("angle_learning_rate", "angle_weight_decay", "shot_noise", "readout_error", "noise_device")
         and not config.has_circuits, "the model has no circuits"),
        (key == "readout_error" and config.training.noise_device is not None, "--noise-device brings readout errors"),
        (key in ("mlp_qubits", "mlp_ansatz", "mlp_layers") and not mlp, "the MLP has no circuits (--projection)"),
        (key == "attention_ansatz" and not there["attention"], "the attention has no circuits (--projection)"),
        (key == "qubits" and circuit.mlp_qubits is not None and not attention,
         "only the MLP has circuits over features, and --mlp-qubits is theirs"),
        (key == "layers" and circuit.mlp_layers is not None and not there["attention"],
         "only the MLP has circuits, and --mlp-layers is theirs"),
        (key == "ansatz" and bool(places) and all(places), "all circuits have an ansatz of their own"),
        (key in _OF_PROJECTIONS and not parts - {"classical"},
         "only the attention has circuits, over tokens (--attention)"),
        (key == "initial_output_scale" and not circuit.output_scale, "no circuit has a learned scale after it"),
        (key in ("spacing", "min_fidelity") and config.backend.pack is False, "--no-pack leaves one circuit at a time"),
    ]  # fmt: skip
    if m.kind == "gan":
        per_stage = [m.generator_blocks.split(","), m.generator_rk_blocks.split(",")]
        counts = [int(n) for part in per_stage for n in (part * m.generator_stages if len(part) == 1 else part)]
        generator = any(counts)
        # the Runge-Kutta methods of its sides, where they have such blocks
        rules = [m.generator_rk] if any(int(n) for n in m.generator_rk_blocks.split(",")) else []
        fields, rules = bool(rules), rules + ([m.discriminator_rk] if m.discriminator_rk_blocks else [])
        checks += [
            (key in ("label_smoothing", "mixup"), "--model is gan, which does not read it"),
            (key == "patience" and m.live_fid is None, "no FID is measured in training (--live-fid)"),
            *[(key in NETWORK_KEYS and key.startswith(network) and not quantum, f"the {network} has no circuits")
              for network, quantum in m.quantum_networks.items()],
            (key in ("ansatz", "qubits", "layers") and all(getattr(circuit, f"{n}_{key}", None) for n in NETWORKS),
             f"--generator-{key} and --discriminator-{key} take its place"),
            (key == "learning_rate" and bool(m.generator_learning_rate and m.discriminator_learning_rate),
             "--generator-learning-rate and --discriminator-learning-rate take its place"),
            (key == "drop_path" and max(sum(counts), m.discriminator_blocks + m.discriminator_rk_blocks) < 2,
             "the first block of a network always stays, and neither has another"),
            (key == "schedule", "--model is gan, and --rate-decay is its schedule"),
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
            (key in ("heads", "mlp", "projection", "attention") and not parts,
             "the model has no blocks (--encoder-blocks, --rk-blocks, --decoder-blocks)"),
            (key == "drop_path" and m.encoder_blocks + m.rk_blocks + m.decoder_blocks < 2,
             "the first block always stays, and the model has no other"),
            (key == "mixup" and m.kind == "text", "it mixes images, and words cannot be mixed"),
            (key == "mixup" and data.batch_size == 1, "a batch of one image has no other to mix it with"),
            (key == "cross_attention" and not m.decoder_blocks, "the model has no decoder (--decoder-blocks)"),
        ]  # fmt: skip
    checks.append(
        (
            key in ("rk", "share_stages", "field_norms") and not rules,
            "the model has no Runge-Kutta blocks (--rk-blocks)",
        )
    )
    return next((reason for applies, reason in checks if applies), None)
