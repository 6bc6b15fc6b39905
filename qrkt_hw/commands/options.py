"""Click options generated from the pydantic models, and the merge of preset, file and flags."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from qrkt_hw.errors import UserError, flag
from qrkt_hw.runs.config import KEYS, SIDES, BackendConfig, Config, flattened, problem
from qrkt_hw.runs.unused import unused

TRAINING = tuple(KEYS)
INFERRING = tuple(k for k, key in KEYS.items() if key.section == "backend" and k != "gradient")


def options_from(keys: Sequence[str]) -> Callable[[Any], Any]:
    """Decorate a command with an option per key; a flag that is not given arrives as None."""

    def decorate(command: Any) -> Any:
        for name in reversed(keys):
            command = _option(name, KEYS[name].field)(command)
        return command

    return decorate


def device_flags(command: Any) -> Any:
    """Decorate a command with what it does about jobs and bills of a device."""
    for option in reversed(_DEVICE):
        command = option(command)
    return command


def trust_flag(command: Any) -> Any:
    """Decorate a command that reads a run with the permission to import the Python file of its ansatz."""
    return click.option(
        "--trust-ansatz",
        is_flag=True,
        help="import the Python file that an old run without kept circuits names as its ansatz",
    )(command)


_DEVICE = (
    click.option(
        "--resubmit", is_flag=True, help="with --resume: send again jobs of which nobody knows whether they arrived"
    ),
    click.option("--replan", is_flag=True, help="with --resume: lay the circuits on the device anew"),
    click.option(
        "--max-qpu-seconds",
        type=click.FloatRange(min=0, min_open=True),
        help="on a device: limit of QPU time  [default: the backend's]",
    ),
    click.option(
        "--max-cost", type=click.FloatRange(min=0, min_open=True), help="on a device: the same in USD, pay-as-you-go"
    ),
)


def merge(preset: str | None, config: Path | None, flags: dict[str, Any]) -> Config:
    """Defaults, then the preset, then the file, then the flags.

    Raises:
        UserError: unknown preset, unreadable file, unknown key, wrong type or value: names where it stood.
    """
    from qrkt_hw.experiments import presets

    values: dict[str, Any] = {}
    if preset is not None:
        values.update(flattened(presets.load(preset)))
    if config is not None:
        values.update(read_config(config))
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        options = Config(**{**values, **given})
    except ValidationError as error:
        key, text = problem(error)
        where = flag(key) if key in given else str(config) if config is not None else f"preset {preset}"
        raise UserError(text if text.startswith(f"{where}:") else f"{where}: {text}") from error
    reason = unused(options, given)
    if reason is not None:
        raise UserError(reason)
    file, colon, function = options.circuit.ansatz.rpartition(":")
    if colon and Path(file).is_file():  # so that the run works from every folder
        return options.replace(ansatz=f"{Path(file).resolve()}:{function}")
    return options


def check_early(options: Config) -> None:
    """Refuse what can be refused before torch and Lightning take their seconds to load.

    Raises:
        UserError: no such data set, ansatz or backend, or sizes that do not fit each other.
    """
    options.data.check_name()
    name = options.data.dataset.partition(":")[0]
    if options.model.kind != "gan":
        options.check_sizes()
        side = SIDES[name] if name == "digits" or options.data.image_size is None else options.data.image_size
        if options.model.kind != "text" and side and side % options.model.patch:
            raise UserError(f"--patch: images of {side} pixels cannot be cut into patches of {options.model.patch}")
    if not options.has_circuits:
        return
    from qrkt_hw.backends.entries import layers

    known = layers(options.backend.backends_file)
    name = options.backend.name
    if name not in known and not name.startswith(("fake_", "ibm_")):
        raise UserError(
            f"--backend: no backend {name!r}; there are {', '.join(known)}, and every fake_NAME of the IBM runtime"
        )
    from qrkt_hw import circuits

    attention = options.model.kind == "gan" or options.model.quantum_attention
    circuits.build(
        options.circuit.ansatz, options.circuit.qubits if attention else options.mlp_qubits, options.circuit.layers
    )


def check_used(folder: Any, flags: dict[str, Any]) -> None:
    """Refuse flags that would change nothing for the model or the data of a run.

    Raises:
        UserError: such a flag is given.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    reason = unused(folder.options().replace(**given), given)
    if reason is not None:
        raise UserError(f"{reason} (run {folder.path})")


def backend_options(flags: dict[str, Any]) -> BackendConfig:
    """The backend flags of a command that takes no preset.

    Raises:
        UserError: a wrong value.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        return Config(**given).backend
    except ValidationError as error:
        key, text = problem(error)
        raise UserError(f"{flag(key)}: {text}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        UserError: no such file, not YAML, or not a mapping of names.
    """
    from qrkt_hw.runs.folder import LARGEST

    try:
        if path.exists() and not path.is_file():
            raise UserError(f"--config: {path} is no file that can be read: it is a folder, a pipe or a device")
        if path.stat().st_size > LARGEST:
            raise UserError(f"--config: {path} holds more than {LARGEST:,} bytes")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config: {path} is not text") from error
    except RecursionError as error:
        raise UserError(f"--config: {path} is nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"--config: {path} is not YAML{f' (line {mark.line + 1})' if mark else ''}") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"--config: {path} is not YAML: {str(error).partition(';')[0]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"--config: {path} must hold keys and values, such as 'hidden: 16'")
    try:
        return flattened(values)
    except ValueError as error:
        raise UserError(f"--config: {path}: {error}") from error


def _option(name: str, field: FieldInfo) -> Callable[[Any], Any]:
    kind, choices = _kind(field.annotation)
    shown = "" if field.default is None else f"  [default: {_show(field.default)}]"
    help_text = f"{field.description or ''}{shown}"
    if kind is bool:
        return click.option(f"{flag(name)}/--no-{flag(name)[2:]}", name, default=None, help=help_text)
    return click.option(flag(name), name, type=choices or kind, default=None, help=help_text)


def _kind(annotation: Any) -> tuple[Any, click.Choice | None]:
    origin = get_origin(annotation)
    if origin is Literal and all(isinstance(a, int) for a in get_args(annotation)):
        return int, None
    if origin is Literal:
        return str, click.Choice(list(get_args(annotation)))
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in get_args(annotation) if a is not type(None))
        return _kind(inner)
    if annotation is Path:
        return click.Path(path_type=Path), None
    return annotation, None


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
