"""The circuits: ansatz templates in plain Qiskit, one short file each, and the registry of their names.

``build("qrkt", num_qubits=6, layers=1)`` returns a :class:`CircuitTemplate`; ``names()`` lists what is registered;
``register`` adds your own.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

if __name__ != "qrkt_hw.circuits":
    raise ImportError("import qrkt_hw.circuits, not circuits: a second copy would be a second registry of templates")

from qrkt_hw.ansatz import FILES, CircuitTemplate, read_template
from qrkt_hw.circuits import (
    activation_reuploading,
    brickwork,
    compound,
    efficient_su2,
    higher_order,
    orthogonal_brick,
    orthogonal_butterfly,
    orthogonal_pyramid,
    qrkt,
    real_amplitudes,
    reuploading,
    rx_ring,
    ry_rz_ring,
)
from qrkt_hw.compiler import derive
from qrkt_hw.errors import UserError, unknown

__all__ = ["CircuitTemplate", "build", "describe", "is_built_in", "names", "read", "register", "source"]

Factory = Callable[[int, int], CircuitTemplate]
ENTRY_POINTS = "qrkt_hw.ansatz"
_factories: dict[str, Factory] = {
    module.NAME: module.template
    for module in (
        qrkt,
        rx_ring,
        ry_rz_ring,
        brickwork,
        reuploading,
        real_amplitudes,
        efficient_su2,
        activation_reuploading,
        compound,
        higher_order,
        orthogonal_brick,
        orthogonal_butterfly,
        orthogonal_pyramid,
    )
}
_sources: dict[str, str] = {}


def register(name: str, factory: Factory) -> None:
    """Make ``factory(num_qubits, layers) -> CircuitTemplate`` known as ``name``; replaces an earlier one.

    Raises:
        ValueError: ``name`` would be taken for a file (it contains a colon or a slash) or is empty.
    """
    if not name or ":" in name or "/" in name:
        raise ValueError(f"an ansatz cannot be called {name!r}")
    _factories[name] = factory
    build.cache_clear()


def names() -> list[str]:
    """Names of all registered templates, those of installed packages included."""
    return [*_factories, *(n for n in _entry_points() if n not in _factories)]


@lru_cache(maxsize=256)
def build(name: str, num_qubits: int = 4, layers: int = 1) -> CircuitTemplate:
    """The template ``name``; the same object for the same arguments.

    Args:
        name: a registered name, ``path/to/file.py:function`` with ``function(num_qubits, layers)``, or a circuit file
            (OpenQASM 3 or QPY), which has one size.
        num_qubits: qubits of the circuit, at least 1.
        layers: repetitions of the ansatz, at least 1.

    Raises:
        UserError: no such ansatz, file or function, a size it does not accept, or a circuit that cannot be simulated.
    """
    if num_qubits < 1 or layers < 1:
        raise UserError(f"ansatz {name!r} needs at least 1 qubit and 1 layer, not {num_qubits} and {layers}")
    factory = _find(name)
    try:
        template = factory(num_qubits, layers)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"ansatz {name!r} cannot be built with {num_qubits} qubits, {layers} layers: {error}"
        ) from error
    if not isinstance(template, CircuitTemplate):
        raise UserError(f"ansatz {name!r} returned {type(template).__name__}, not CircuitTemplate")
    try:
        derive(template)
    except ValueError as error:
        raise UserError(f"ansatz {name!r} cannot be simulated: {error}") from error
    return template


def is_built_in(name: str) -> bool:
    """Whether ``name`` is one of this package's circuits: not a file, nor what a user or another package registered."""
    return getattr(_factories.get(name), "__module__", "").startswith("qrkt_hw.circuits.")


def describe() -> list[CircuitTemplate]:
    """One small example of every registered template, for a listing."""
    return [build(name, 4, 1) for name in names()]


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _find(name: str) -> Factory:
    if name in _factories:
        return _factories[name]
    if name in _entry_points():
        return _entry_points()[name].load()
    if Path(name).suffix in FILES:
        return _from_circuit_file(name)
    if ":" in name:
        return _from_file(name)
    if name.endswith(".py"):
        raise UserError(f"--ansatz: {name!r} names no function; take {name}:FUNCTION")
    kinds = "path/to/file.py:function, or a circuit file (.qasm, .qpy)"
    raise UserError(f"--ansatz: {unknown('ansatz', name, names(), kinds)}")


def _from_circuit_file(name: str) -> Factory:
    template = read_template(Path(name))

    def factory(num_qubits: int, layers: int) -> CircuitTemplate:
        if template.num_qubits != num_qubits or layers != 1:
            asked = f"{num_qubits} qubits and {layers} layers"
            raise UserError(f"--ansatz: {name} holds one circuit of {template.num_qubits} qubits, not of {asked}")
        return template

    return factory


def _from_file(name: str) -> Factory:
    path, _, function = name.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--ansatz: no file {path!r} (wanted {name!r})")
    spec = importlib.util.spec_from_file_location(f"qrkt_hw_user_{abs(hash(str(file.resolve())))}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--ansatz: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look a class's module up there
    try:
        text = read(file)
        code = compile(text, str(file), "exec", dont_inherit=True)
        exec(code, module.__dict__)  # not the loader, which reads the file itself: what is kept is what was run
    except Exception as error:
        raise UserError(f"--ansatz: {path!r} cannot be imported: {error}") from error
    factory = getattr(module, function, None)
    if not callable(factory):
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", "") == spec.name and callable(v)]
        raise UserError(f"--ansatz: {path!r} has no function {function!r}; it has {', '.join(own) or 'none'}")
    _sources[name] = text
    return factory


def source(name: str) -> str | None:
    """The text of the file that the ansatz was imported from; None for a registered one."""
    return _sources.get(name)


def read(file: Path) -> str:
    """The text of a Python file.

    Raises:
        OSError, SyntaxError, UnicodeDecodeError: it cannot be read, or is no text.
    """
    return importlib.util.decode_source(file.read_bytes())
