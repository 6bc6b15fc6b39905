"""Reads a CIFAR pickle without Python's unpickler: nothing in the file can run."""

from __future__ import annotations

import pickletools
from typing import Any

import numpy as np

# a batch of CIFAR has up to 400,000; each can take some 100 bytes of memory
MOST_OPCODES = 2_000_000
# the names a file may use, and what each stands for here
GLOBALS = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
DTYPES = ("u1", "i1", "i2", "i4", "i8")
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"}
STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}


class _Global:
    """A name of the file; a mark only, nothing that can be called."""

    def __init__(self, name: str) -> None:
        if name not in GLOBALS:
            raise ValueError(f"{name.replace(' ', '.', 1)[:60]!r} does not belong in a CIFAR file")
        self.meaning = GLOBALS[name]


class _DType:
    """A dtype of whole numbers; byte order as the file's state says."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def build(self, state: Any) -> None:
        self.order = _text(state[1])
        if self.order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {self.order!r}")


class _Array:
    """An array; its values come with the file's state."""

    def __init__(self) -> None:
        self.values: np.ndarray = np.empty(0, np.uint8)

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not (isinstance(dtype, _DType) and isinstance(shape, tuple) and isinstance(content, bytes)):
            raise ValueError("an array of neither numbers nor bytes")
        if not (1 <= len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)):
            raise ValueError("an array of no valid shape")
        flat = np.frombuffer(content, np.dtype(dtype.order + dtype.code))
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def read_pickle(content: bytes) -> dict[str, Any]:
    """The dictionary of a pickle, keys as text; arrays of whole numbers as NumPy arrays, old strings as bytes.

    Nothing of the file is called or imported, so that it can run no code.

    Raises:
        ValueError, IndexError, KeyError, TypeError: a damaged file, or one with anything else in it.
    """
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count == MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "MARK":
                marked.append(stack)
                stack = []
            case "EMPTY_DICT" | "EMPTY_LIST":
                stack.append({} if opcode.name == "EMPTY_DICT" else [])
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in NUMBERS or name in STRINGS:
                stack.append(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING":  # of Python 2, and bytes
                stack.append(argument.encode("latin1"))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "APPEND":
                _typed(stack[-2], list).append(stack.pop())
            case "APPENDS":
                items, stack = stack, marked.pop()
                _typed(stack[-1], list).extend(items)
            case "SETITEM":
                _set(stack[-3], stack[-2:])
                del stack[-2:]
            case "SETITEMS":
                items, stack = stack, marked.pop()
                _set(stack[-1], items)
            case "DICT":
                items, stack = stack, marked.pop()
                stack.append({})
                _set(stack[-1], items)
            case "LIST" | "TUPLE":
                items, stack = stack, marked.pop()
                stack.append(items if opcode.name == "LIST" else tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "GLOBAL":
                stack.append(_Global(argument))
            case "STACK_GLOBAL":
                stack[-2:] = [_Global(f"{_text(stack[-2])} {_text(stack[-1])}")]
            case "REDUCE":
                stack[-2:] = [_made(stack[-2], stack[-1])]
            case "BUILD":
                state = stack.pop()
                _typed(stack[-1], (_Array, _DType)).build(state)
            case _:
                raise ValueError(f"opcode {opcode.name} does not belong in a CIFAR file")
    value = _typed(stack[-1], dict)
    return {_text(key): item.values if isinstance(item, _Array) else item for key, item in value.items()}


def _typed(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__.strip('_')} where none belongs")
    return value


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else _typed(value, str)


def _set(target: Any, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        _typed(target, dict)[_typed(key, (str, bytes))] = value


def _made(function: Any, arguments: Any) -> Any:
    """What a call of the file stands for."""
    meaning, first = _typed(function, _Global).meaning, _typed(arguments, tuple)[0]
    if meaning == "array" and isinstance(first, _Global) and first.meaning == "ndarray":
        return _Array()
    if meaning == "dtype" and _text(first) in DTYPES:
        return _DType(_text(first))
    if meaning == "encode" and [_text(given) for given in arguments[1:]] == ["latin1"]:
        return _typed(first, str).encode("latin1")
    raise ValueError(f"a call of {meaning!r} that does not belong in a CIFAR file")
