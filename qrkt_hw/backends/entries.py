"""The entries of ``backends.yaml``, one model per provider, and the files they come from.

Shipped, config folder, working folder (which the commands alone read, and say so), ``--backends-file``: later ones
win. No file turns a name that bills nothing into one that does.
"""

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from yaml.events import AliasEvent

from qrkt_hw.errors import UserError, sentence

Gradient = Literal["adjoint", "parameter_shift", "spsa"]
Mitigation = Literal["none", "mthree", "trex", "postselection", "zne"]
RENAMED = {"guard": "spacing", "quality": "min_fidelity"}  # keys of versions before
SERVICE_KEYS = ("dynamical_decoupling", "twirl_gates")  # applied to circuits by the service, or a fake backend
SHOTS = 1024  # of a circuit on a device that bills, where nobody says how many
SAMPLER_KEYS = ("dynamical_decoupling", "twirl_gates", "twirl_measure", "rep_delay")  # of devices that bill
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
FakeName = Annotated[str, StringConstraints(pattern=r"^fake_[a-z0-9_]+$")]
Level = Annotated[int, Field(ge=0, le=3, strict=True)]
Seconds = Annotated[int, Field(ge=1, le=31_536_000, strict=True)]  # at most a year
Shots = Annotated[int, Field(ge=1, le=10_000_000, strict=True)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    gradient: Gradient = "adjoint"
    perturbation: Annotated[float, Field(gt=0, le=1)] = 0.1


class ExactEntry(_Entry):
    provider: Literal["exact"]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fallback: str | None = None


class _Sampling(_Entry):
    shots: Shots | None = None
    seed: Annotated[int, Field(ge=0, strict=True)] | None = None
    fallback: str | None = None


class AerEntry(_Sampling):
    provider: Literal["aer"]
    device: Literal["cpu", "gpu"] = "cpu"
    method: Literal["statevector", "density_matrix", "matrix_product_state", "automatic"] = "statevector"
    optimization_level: Level = 1
    noise: FakeName | Literal["none"] = "none"


class _Device(_Entry):
    pack: bool = True
    spacing: Annotated[int, Field(ge=0, le=3, strict=True)] = 0
    min_fidelity: Annotated[float, Field(ge=0, le=1)] = 0.5
    mitigation: Mitigation = "none"
    max_seconds: Seconds | None = None
    optimization_level: Level = 3


class FakeEntry(_Device, _Sampling):
    provider: Literal["fake"]
    name: FakeName
    method: Literal["auto", "superoperator", "density_matrix"] = "auto"
    noise: FakeName | Literal["none"] | None = None
    dynamical_decoupling: bool = False
    twirl_gates: bool = False
    # errors of devices that calibrations do not contain
    coherent: Annotated[float, Field(ge=-1, le=1)] = 0.0  # over-rotation of two-qubit gates, as a share of the angle
    idle: Annotated[float, Field(ge=-100, le=100)] = 0.0  # Z rotation of idle qubits, radians per microsecond


class BilledEntry(_Device):
    """A device that bills; never simulated in its stead, so it has no fallback."""

    shots: Shots = SHOTS
    seed: Annotated[int, Field(ge=0, strict=True)] | None = None
    dynamical_decoupling: Literal["XX", "XpXm", "XY4"] | bool = False
    twirl_gates: bool = False
    twirl_measure: bool = False
    rep_delay: Annotated[float, Field(ge=0, le=1)] | None = None
    patience: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 120.0
    max_wait: Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)] = 86_400.0
    # what one job may hold: executions, bytes of input, QPU seconds (the service's limits: 10 million, 50 MB, 3 h)
    largest_job: Annotated[int, Field(ge=1, le=10_000_000, strict=True)] = 10_000_000
    largest_input: Annotated[int, Field(ge=1, le=50_000_000, strict=True)] = 45_000_000
    longest_job: Annotated[float, Field(gt=0, le=10_800)] = 9_720.0


class IBMEntry(BilledEntry):
    """A device of IBM Quantum.

    A ``fake_NAME`` runs in the client's own local testing mode: its code path without a service.
    """

    provider: Literal["ibm"]
    name: Annotated[str, StringConstraints(pattern=r"^(least_busy|ibm_[a-z0-9_]+|fake_[a-z0-9_]+)$")]
    mode: Literal["job", "batch", "session", "auto"] = "batch"
    instance: str | None = None
    max_time: Seconds | None = None
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 60.0
    grace: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 60.0
    submissions_per_minute: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 5


class QRMIEntry(BilledEntry):
    """A QPU that the scheduler of a cluster hands a job; without a name the only one of the job."""

    provider: Literal["qrmi"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None


Entry = ExactEntry | AerEntry | FakeEntry | IBMEntry | QRMIEntry
PROVIDERS: dict[str, type[_Entry]] = {
    "exact": ExactEntry, "aer": AerEntry, "fake": FakeEntry, "ibm": IBMEntry, "qrmi": QRMIEntry,
}  # fmt: skip


def parse_entry(name: str, value: Any, where: str) -> Entry:
    """The entry ``name`` of the file ``where``.

    Raises UserError: names file, entry, key, the value found and what is allowed.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is not a name for a backend (letters, digits, _, - and .)")
    if not isinstance(value, dict):
        raise UserError(f"{where}: {name} must hold keys such as 'provider: aer', not {_short(value)}")
    provider = value.get("provider")
    if not isinstance(provider, str) or provider not in PROVIDERS:
        found = "is missing" if "provider" not in value else f"is {_short(provider)}"
        raise UserError(f"{where}: {name}.provider {found}; it must be one of {', '.join(PROVIDERS)}")
    if issubclass(PROVIDERS[provider], BilledEntry) and "fallback" in value:
        kind = "an IBM device" if provider == "ibm" else "a QPU"
        raise UserError(f"{where}: {name}.fallback is not allowed: {kind} is never replaced by a simulator")
    known = {RENAMED.get(key, key): given for key, given in value.items()}
    if len(known) < len(value):
        twice = next(new for old, new in RENAMED.items() if old in value and new in value)
        raise UserError(f"{where}: {name}.{twice} stands twice, also under its old name")
    try:
        return PROVIDERS[provider].model_validate(known)  # type: ignore[return-value]
    except ValidationError as error:
        problem, allowed, said = error.errors()[0], ", ".join(PROVIDERS[provider].model_fields), sentence(error)
        if problem["type"] == "extra_forbidden":
            said = f"{problem['loc'][0]} is an unknown key; provider {provider} takes {allowed}"
        raise UserError(f"{where}: {name}.{said}") from error


def _short(value: Any) -> str:
    shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:57] + "..."


LARGEST = 256 * 1024  # bytes
CWD = Path("backends.yaml")  # in the working folder
SHIPPED = "backends.yaml (shipped)"
_reads_working_folder = False


@contextmanager
def working_folder() -> Iterator[None]:
    """Read ``./backends.yaml`` too, as the command line does and no program that imports this package."""
    global _reads_working_folder
    before, _reads_working_folder = _reads_working_folder, True
    try:
        yield
    finally:
        _reads_working_folder = before


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which no key of a mapping stands twice; PyYAML alone would take the last one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key.value, str)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=32)
def _loaded(text: str, loader: Any) -> Any:
    return yaml.load(text, loader)  # a SafeLoader


def load_yaml(text: str, loader: Any = UniqueKeyLoader) -> Any:
    """The value of a YAML text, a new one at each call; parsing takes 10 ms, and a command reads the same file often.

    Raises yaml.YAMLError, ValueError, RecursionError."""
    return copy.deepcopy(_loaded(text, loader))


class _Loader(UniqueKeyLoader):
    """Without aliases too: a few lines of them expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)


def read_entries(text: str, where: str) -> dict[str, Entry]:
    """All entries of a file. Raises UserError: not YAML, aliases, too large, or an entry that is wrong."""
    if len(text) > LARGEST:
        raise UserError(f"{where}: {len(text):,} characters are too many for a list of backends (at most {LARGEST:,})")
    try:
        value = load_yaml(text, _Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it cannot be read"
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not a list of backends in YAML: {problem}") from error
    except (RecursionError, ValueError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{where}: not a list of backends in YAML: {problem}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold backends by name, such as 'mine: {{provider: aer}}'")
    return {name: parse_entry(name, entry, where) for name, entry in value.items()}


def config_file() -> Path:
    """``$XDG_CONFIG_HOME/qrkt-hw/backends.yaml``, by default under ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "qrkt-hw" / "backends.yaml"


def layers(named: Path | str | None = None) -> dict[str, tuple[Entry, str]]:
    """All entries with the file each comes from; one that says what the layer below says counts as that layer's.

    The file ``named`` is over all others. Raises UserError: a file that cannot be read or is wrong; an entry that would
    make a name bill that does not; a fallback that loops, names nothing or bills.
    """
    shipped = resources.files("qrkt_hw").joinpath("backends.yaml").read_text(encoding="utf-8")
    merged = {name: (entry, SHIPPED) for name, entry in read_entries(shipped, "backends.yaml").items()}
    named = None if named is None else Path(named)
    if named is not None and not named.is_file():
        raise UserError(f"--backends-file: no file {named}")
    for path in (config_file(), CWD if _reads_working_folder else None, named):
        if path is not None and path.is_file():
            for name, entry in read_entries(_text(path), str(path)).items():
                _check_name(name, entry, str(path), merged)
                if name not in merged or _content(merged[name][0]) != _content(entry):
                    merged[name] = (entry, str(path))
    for name in merged:
        _check_fallback(name, merged)
    return merged


def _content(entry: Entry) -> tuple[Entry, bool]:
    """What an entry says: its values, and whether it sets ``mitigation``, whose default an inference may replace."""
    return entry, "mitigation" in entry.model_fields_set


def _check_name(name: str, entry: Entry, where: str, below: dict[str, tuple[Entry, str]]) -> None:
    """``exact`` is what everything is compared with, and the names of simulators are typed without fear of a bill."""
    simulators = {key.lower() for key, (other, _) in below.items() if not isinstance(other, BilledEntry)}
    why = None
    if name.lower() == "exact" and not isinstance(entry, ExactEntry):
        why = f"exact.provider is {entry.provider!r}; the name exact is reserved for provider exact, so"
    elif isinstance(entry, BilledEntry) and (name.lower().startswith("fake_") or name.lower() in simulators):
        provider = getattr(entry, "provider", "")
        why = f"{name}.provider is {provider!r}, but {name} is the name of a simulator, which bills nothing;"
    if why is not None:
        raise UserError(f"{where}: {why} give the entry another name")


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for a list of backends")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a list of backends in YAML: it is not text") from error


def _check_fallback(name: str, entries: dict[str, tuple[Entry, str]]) -> None:
    chain = [name]
    while True:
        entry, where = entries[chain[-1]]
        following = getattr(entry, "fallback", None)
        # a fake backend needs no entry; a wrong name is refused when it is made
        if following is None or (following not in entries and following.startswith("fake_")):
            return
        wrong = None
        if following in chain:
            wrong = f": it loops ({' -> '.join([*chain, following])})"
        elif following not in entries:
            wrong = f", which names no backend; there are {', '.join(entries)}"
        elif isinstance(entries[following][0], BilledEntry):
            wrong = ", a device that bills; a fallback must be a simulator"
        if wrong is not None:
            raise UserError(f"{where}: {chain[-1]}.fallback is {following!r}{wrong}")
        chain.append(following)
