"""Click options generated from the configuration, and the merge of preset, file and flags."""

import math
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import ValidationError

from qrkt_hw.commands.interface import PATH, PROGRAM, GroupedOption, Number, Word, import_fabric
from qrkt_hw.errors import UserError, flag, rank_and_count, take_divisor, unknown
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import KEYS, BackendConfig, Config, flattened, problem, unused
from qrkt_hw.runs.folder import read_yaml
from qrkt_hw.runs.sections import ANSATZ_KEYS, GAN_DEFAULTS, SIDES

TRAINING = tuple(KEYS)
INFERRING = tuple(name for name, key in KEYS.items() if key.section == "backend" and name != "gradient")
PROCESSES = ("devices", "num_nodes")  # of commands that divide their work among processes
_TITLES = {
    "data": "Data", "model": "Model", "circuit": "Circuits", "training": "Training", "backend": "Backend",
    "device": "Devices", "ibm": "IBM Quantum", "text": "Texts", "gan": "GANs (--model gan)",
}  # fmt: skip
_DEVICE = ("pack", "spacing", "min_fidelity", "mitigation", "dynamical_decoupling", "twirl_gates")
_TEXT = ("text_length", "vocabulary", "unique_words", "word_pairs")


def options_from(keys: Sequence[str]) -> Callable[[Any], Any]:
    """Decorate a command with an option per key, in the groups of the help; one that is not given arrives as None."""

    def decorate(command: Any) -> Any:
        for title in reversed(_TITLES.values()):
            for name in reversed([key for key in keys if _title(key) == title]):
                command = _option(name, title)(command)
        return command

    return decorate


def _title(name: str) -> str:
    section, _, field, kinds = KEYS[name]
    if kinds in (("gan",), ("text",)) or name in _TEXT:
        return _TITLES[kinds[0] if len(kinds) == 1 else "text"]
    if section == "backend" and (name in _DEVICE or str(field.description).startswith("IBM: ")):
        return _TITLES["device" if name in _DEVICE else "ibm"]
    return _TITLES[section]


def _option(name: str, title: str) -> Callable[[Any], Any]:
    field = KEYS[name].field
    kind, gan = _kind(field.annotation, field.metadata), GAN_DEFAULTS.get(name)
    shown = "" if field.default is None else f"  [default: {_show(field.default)}]"
    shown += "" if gan is None else f" [gan: {_show(gan)}]"
    how: dict[str, Any] = {"cls": GroupedOption, "group": title, "default": None}
    how["help"] = str(field.description).removeprefix("IBM: ") + shown
    if kind is bool:
        return click.option(f"{flag(name)}/--no-{flag(name)[2:]}", name, **how)
    return click.option(flag(name), name, type=kind, **how)


def _kind(annotation: Any, bounds: Sequence[Any]) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        whole = isinstance(arguments[0], int)
        return click.IntRange(min(arguments), max(arguments)) if whole else Word(list(arguments))
    if origin in (Union, types.UnionType):
        return _kind(next(a for a in arguments if a is not type(None)), bounds)
    if annotation in (int, float):
        low, above, high, below = (
            next((getattr(b, name) for b in bounds if hasattr(b, name)), None) for name in ("ge", "gt", "le", "lt")
        )
        number = click.IntRange if annotation is int else Number
        return number(
            above if low is None else low,
            below if high is None else high,
            min_open=above is not None,
            max_open=below is not None,
        )
    return PATH if annotation is Path else annotation


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in flags.items() if value is not None}


def ranks_in(flags: dict[str, Any]) -> dict[str, Any]:
    """Those of :data:`PROCESSES` that were given, taken out of ``flags``; several ranks that torchrun or srun started
    are given, too. Raises UserError: a wrong value."""
    found = given({key: flags.pop(key) for key in PROCESSES})
    backend_options(found)
    return {"devices": None, **found} if rank_and_count()[1] > 1 else found


def is_program() -> bool:
    """Whether this process was started for the command that runs."""
    return click.get_current_context().find_root().obj == PROGRAM


def on_ranks(options: Config, ranks: dict[str, Any], samples: tuple[str, int], alone: str | None = None) -> None:
    """Be one of the processes of ``ranks`` until the command ends; ``samples`` are divided, in words and their number.

    Raises UserError: fewer samples than processes, or ``alone``, which says what runs in one process only."""
    if not ranks:
        return
    if alone is not None:
        raise UserError(f"--devices: {alone} in one process; leave it out")
    if is_program():
        import_fabric()
    from qrkt_hw.data.ranks import launched

    chosen = options.replace(**{"devices": None, "num_nodes": 1, **ranks})
    click.get_current_context().with_resource(launched(chosen, samples))


def merge(preset: str | None, file: Path | None, flags: dict[str, Any], source: RunFolder | None = None) -> Config:
    """Defaults, then the preset or the options of a run, then the file, then the flags.

    Raises UserError: unknown preset, unreadable file, unknown key, wrong type or value: names where it stood."""
    from qrkt_hw.experiments import presets

    theirs = None if source is None else source.options()
    shipped = {} if preset is None else flattened(presets.load(preset))
    if theirs is not None:
        shipped = theirs.flat()
    own, said = {}, given(flags)
    if file is not None:
        try:
            own = flattened(read_yaml(file, f"--config: {file}")[0])
        except ValueError as error:
            raise UserError(f"--config: {file}: {error}") from error
        if list(own) == ["inference"]:
            raise UserError(f"--config: {file} holds options of inference alone; qrkt-hw infer RUN --config takes it")
        own.pop("inference", None)
    try:
        config = Config(**{**shipped, **own, **said})
    except ValidationError as error:
        key, text = problem(error)
        base = f"preset {preset}" if source is None else f"run {source.path}"
        where = flag(key) if key in said else base if key not in own and key in shipped else str(file)
        raise UserError(text if text.startswith(f"{where}:") else f"{where}: {text}") from error
    reason = unused(config, said)
    if reason is not None:
        raise UserError(reason)
    if source is not None and theirs is not None:
        config.check_source(theirs, source.path)
        return config.with_circuits(lambda: theirs.circuits)
    named = {key: getattr(config.circuit, key) for key in ANSATZ_KEYS}
    whole = {key: _resolved(name) for key, name in named.items() if name is not None}
    return config if whole.items() <= named.items() else config.replace(**whole)


def _resolved(ansatz: str) -> str:
    """An ansatz in a file with its whole path, so that the run works from every folder."""
    path, colon, function = ansatz.rpartition(":")
    if colon and Path(path).is_file():
        return f"{Path(path).resolve()}:{function}"
    if Path(ansatz).suffix in (".qasm", ".qasm3", ".qpy") and Path(ansatz).is_file():
        return str(Path(ansatz).resolve())
    return ansatz


def check_early(config: Config) -> None:
    """Refuse what can be refused before torch takes its seconds to load."""
    data, model, circuit, backend = config.data, config.model, config.circuit, config.backend
    data.check_name()
    if model.kind != "gan":
        config.check_sizes()
    if model.kind == "vit":
        name = data.dataset.partition(":")[0]
        side = SIDES[name] if name == "digits" or data.image_size is None else data.image_size
        if side % model.patch:
            said = f"--patch: images of {side} pixels cannot be cut into patches of {model.patch}"
            raise UserError(f"{said}; {take_divisor(side)}")
    if not config.has_circuits:
        return
    from qrkt_hw.backends.entries import layers

    known = layers(backend.backends_file)
    if backend.name not in known and not backend.name.startswith(("fake_", "ibm_")):
        rest = "and every fake_NAME of the IBM runtime"
        raise UserError(f"--backend: {unknown('backend', backend.name, known, rest)}")
    if model.kind == "gan":
        for network in (name for name, quantum in model.quantum_networks.items() if quantum):
            own = getattr(circuit, f"{network}_ansatz")
            try:
                config.of_network(network).template("attention")
            except UserError as error:
                name = "ansatz" if own is None else f"{network}_ansatz"
                raise UserError(str(error).replace("--ansatz:", f"{flag(name)}:")) from error
        return
    if model.projection == "classical":
        return  # circuits over tokens, as many as the data have
    attention = model.quantum_attention
    if attention:
        config.template("attention")
    own = model.quantum_mlp and (circuit.mlp_ansatz or circuit.mlp_layers)
    if own or not attention:
        config.template("mlp")


def check_used(folder: RunFolder, flags: dict[str, Any]) -> BackendConfig:
    """The backend of the flags of a command on a run.

    Raises UserError: a wrong value, or a flag that would change nothing for the model or the data of the run."""
    backend = backend_options(flags)
    reason = unused(folder.options().replace(**given(flags)), given(flags))
    if reason is not None:
        raise UserError(f"{reason} (run {folder.path})")
    return backend


def backend_options(flags: dict[str, Any]) -> BackendConfig:
    """The backend of the flags of a command that takes no preset. Raises UserError: a wrong value."""
    try:
        return Config(**given(flags)).backend
    except ValidationError as error:
        key, text = problem(error)
        raise UserError(f"{flag(key)}: {text}") from error


def defined(value: float | None) -> str:
    """A figure with four digits, or that it is undefined: None in JSON, NaN in Python."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.4f}"
