"""Ways in which a file comes to be wrong: bits, bytes, sizes, values, and what stands in the file's place."""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Random = random.Random
ODD_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "x", "nan", "1", "\x00", "\x1b[31m", "\ud800", "../../x", "a" * 5000, [], [None], [[[]]], {}, {"": {}},
    ["a", 1], list(range(300)),
]  # fmt: skip
ODD_NUMBERS = (0, 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


# bytes ---------------------------------------------------------------------------------------------------------------
def flip_a_bit(content: bytes, r: Random) -> bytes:
    found = bytearray(content)
    found[r.randrange(len(found))] ^= 1 << r.randrange(8)
    return bytes(found)


def flip_bytes(content: bytes, r: Random) -> bytes:
    found = bytearray(content)
    for _ in range(r.choice((1, 4, 32))):
        found[r.randrange(len(found))] = r.randrange(256)
    return bytes(found)


def flip_near_an_end(content: bytes, r: Random) -> bytes:
    """Heads and footers decide most."""
    found = bytearray(content)
    place = r.randrange(min(64, len(found)))
    found[place if r.random() < 0.5 else -1 - place] = r.randrange(256)
    return bytes(found)


def cut(content: bytes, r: Random) -> bytes:
    return content[: r.randrange(len(content))]


def cut_the_start(content: bytes, r: Random) -> bytes:
    return content[1 + r.randrange(min(len(content), 100)) :]


def insert(content: bytes, r: Random) -> bytes:
    place = r.randrange(len(content) + 1)
    added = r.choice((r.randbytes(r.choice((1, 7, 1000))), b"\x00" * 8, b"\xff\xfe\xfa", "é\u2028".encode("utf-16")))
    return content[:place] + added + content[place:]


def repeat_a_block(content: bytes, r: Random) -> bytes:
    place, size = r.randrange(len(content)), r.choice((1, 16, 512))
    return content[: place + size] + content[place : place + size] * r.choice((1, 9)) + content[place + size :]


def drop_a_block(content: bytes, r: Random) -> bytes:
    place = r.randrange(len(content))
    return content[:place] + content[place + r.choice((1, 4, 100)) :]


def zero_a_block(content: bytes, r: Random) -> bytes:
    place, size = r.randrange(len(content)), r.choice((1, 16, 512))
    return (content[:place] + bytes(size))[: len(content)] + content[place + size :]


def odd_number(content: bytes, r: Random) -> bytes:
    """A size of two, four or eight bytes, in either order, that promises nothing or the world."""
    size = r.choice((2, 4, 8))
    place = r.randrange(max(1, min(len(content), r.choice((64, len(content)))) - size + 1))
    value = (r.choice(ODD_NUMBERS) % 256**size).to_bytes(size, r.choice(("big", "little")))
    return content[:place] + value + content[place + size :]


def append(content: bytes, r: Random) -> bytes:
    return content + r.choice((content, b"\x00" * 100, b"\n", r.randbytes(50)))


def nothing(content: bytes, r: Random) -> bytes:
    return b""


def noise(content: bytes, r: Random) -> bytes:
    return r.randbytes(r.choice((1, 8, len(content))))


BYTES = [
    flip_a_bit, flip_a_bit, flip_bytes, flip_near_an_end, cut, cut_the_start, insert, repeat_a_block, drop_a_block,
    zero_a_block, odd_number, append, nothing, noise,
]  # fmt: skip


# values of JSON and YAML ---------------------------------------------------------------------------------------------
def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in _places(item, (*path, key)))]


def _changed(value: Any, r: Random) -> Any:
    """A value somewhere in it is another, is gone, or stands twice."""
    places = _places(value)[1:]
    if not places:
        return r.choice(ODD_VALUES)
    *path, last = r.choice(places)
    value = copy.deepcopy(value)
    target = value
    for key in path:
        target = target[key]
    match r.randrange(6):
        case 0:
            del target[last]
        case 1 if isinstance(target, list):
            target.insert(last, copy.deepcopy(target[last]))
        case 1:
            target[f"{last}2"] = target[last]
        case 2 if isinstance(target[last], (int, float)) and not isinstance(target[last], bool):
            target[last] = r.choice((-target[last], target[last] + 1, target[last] * 1000, str(target[last])))
        case _:
            target[last] = r.choice(ODD_VALUES)
    return value


def json_value(content: bytes, r: Random) -> bytes:
    changed = _changed(json.loads(content), r)
    return json.dumps(changed, ensure_ascii=r.random() < 0.5).encode("utf-8", "surrogatepass")


def json_text(content: bytes, r: Random) -> bytes:
    return r.choice((b"[" * 100_000, b'{"a":' * 10_000, b"null", b"[1]", b"NaN", b"1" * 5000, b"{}", b'"\\ud800"'))


def yaml_value(content: bytes, r: Random) -> bytes:
    changed = _changed(yaml.safe_load(content), r)
    try:
        return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (ValueError, yaml.YAMLError):
        return json.dumps(changed).encode("utf-8", "surrogatepass")


def yaml_text(content: bytes, r: Random) -> bytes:
    aliases = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (k + 1, k + 1, b",".join([b"*%c" % k] * 9)) for k in range(97, 110)
    )
    extra = (b"\nextra: !!python/object/apply:os.system ['true']\n", b"\n? [a]\n: b\n", b"\nextra: 1\n", b"\n\t- x\n")
    return r.choice((aliases, b"[" * 10_000, b"- 1\n- 2\n", b"null", b"1" * 5000, *(content + text for text in extra)))


# what stands in the place of the file --------------------------------------------------------------------------------
def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _unreadable(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


INSTEAD: list[Callable[[Path], None]] = [lambda path: None, _folder, os.mkfifo, _loop, _unreadable]
NAMES = ["missing", "a folder", "a pipe", "a link to itself", "unreadable"]


def mutate(path: Path, r: Random) -> str:
    """Spoil a file where it lies; says how."""
    content = path.read_bytes()
    if r.random() < 0.05 or not content:
        kind = r.randrange(len(INSTEAD))
        path.unlink()
        INSTEAD[kind](path)
        return NAMES[kind]
    ways = BYTES
    if path.suffix == ".json" and r.random() < 0.6:
        ways = [json_value] * 6 + [json_text]
    elif path.suffix in (".yaml", ".yml") and r.random() < 0.6:
        ways = [yaml_value] * 6 + [yaml_text]
    way = r.choice(ways)
    if path.suffix == ".gz" and r.random() < 0.5:  # within
        path.write_bytes(gzip.compress(way(gzip.decompress(content), r), 1))
        return f"{way.__name__} within"
    path.write_bytes(way(content, r))
    return way.__name__
