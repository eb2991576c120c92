"""Damaged and hostile variants of files: of their structure, their bytes, and their place."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**30,
    -(2**70),
    0.5,
    -1e-300,
    1e300,
    "",
    "x",
    "x" * 300,
    "x" * 5000,
    "a/../../etc/passwd",
    "\x1b[31mred\x1b[0m\x07",
    "[bold red]markup[/]",
    "\u202eevil\u2066",
    "nul\0byte",
    [],
    {},
    [[]],
    [None],
    ["x", 1, None],
    {"x": 1},
    {"": {}},
    {"model_type": "llama"},
)
"""Values that take the place of others: of every type, and at the ends of their ranges."""


def nested(depth: int, kind: type = list) -> Any:
    """Return lists or objects inside of each other."""
    value: Any = []
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """Return a copy of JSON values of which one to three are replaced, removed, added or nested."""
    root = [json.loads(json.dumps(tree))]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(root))
        owner, key = rng.choice(places)
        value = owner[key]
        match rng.randrange(8):
            case 0 if owner is not root:
                del owner[key]
            case 1:
                owner[key] = [value]
            case 2:
                owner[key] = {"a": value, "config": value}
            case 3 if isinstance(value, dict):
                value[rng.choice(("x", "", "type", "\x1b[2J", "é" * 200))] = rng.choice(VALUES)
            case 4 if isinstance(value, int | float) and not isinstance(value, bool):
                owner[key] = rng.choice((-value, value * 2, value + 1, value * 10**9, str(value)))
            case 5:
                owner[key] = nested(rng.choice((20, 70, 500)), rng.choice((list, dict)))
            case 6 if isinstance(value, str):
                owner[key] = rng.choice((value + "x", value.upper(), value * 100, value[:1]))
            case _:
                owner[key] = rng.choice(VALUES)
    return root[0]


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(items):
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def json_text(tree: Any, rng: random.Random) -> bytes:
    """Return a tree as JSON in one of the forms that a foreign program may write."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.7)
    match rng.randrange(12):
        case 0:
            return b"\xef\xbb\xbf" + text.encode(errors="replace")
        case 1:
            return text.encode("utf-16")
        case 2:
            return text.replace(": 1", ": 1e999", 1).encode(errors="replace")
        case 3:
            return text.replace(": 1", ": NaN", 1).encode(errors="replace")
        case 4:
            return text.replace(": 1", ": " + "9" * 5000, 1).encode(errors="replace")
        case 5:
            return text.replace('"', '"\\ud800', 1).encode(errors="replace")
    return text.encode(errors="replace")


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """Return JSON with other values, or other bytes."""
    if rng.random() < 0.2:
        return mutated_bytes(content, rng)
    return json_text(mutated_tree(json.loads(content), rng), rng)


def mutated_yaml(content: bytes, rng: random.Random) -> bytes:
    """Return YAML with other values, other bytes, or features that are seldom used."""
    match rng.randrange(10):
        case 0 | 1:
            return mutated_bytes(content, rng)
        case 2:
            return content + rng.choice(
                (
                    b"\nx: &a [*a]\n",
                    b"\n? [a, b]\n: c\n",
                    b"\n<<: {a: 1}\n",
                    b"\nx: !!python/object/apply:os.system [id]\n",
                    b"\n--- \na: 1\n",
                    b"\n\x00",
                    b"\n\xff\xfe",
                    b"\nx: " + b"[" * 3000,
                    b"\nx: " + b"{a: " * 2000,
                    b"\n" + b"- " * 2000,
                    b"\nx: 1" + b"0" * 5000,
                    b"\nx: 0x" + b"f" * 9000,
                    b"\nx: 1e999\ny: .inf\nz: .nan\n",
                    b"\nx: 2026-01-01\ny: 12:30:00\n",
                    b"\n%TAG ! x\n",
                    b"\n" + _laughs(),
                )
            )
    tree = mutated_tree(yaml.safe_load(content), rng)
    try:
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5)
    except RecursionError:
        text = json.dumps(tree)  # which is YAML too
    return text.encode(errors="replace")


def _laughs() -> bytes:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [" + ", ".join([f"*l{n - 1}"] * 10) + "]" for n in range(1, 10)]
    return "\n".join(lines).encode()


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return content with flipped, removed, repeated or inserted bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not data:
            return b""
        # Headers are at the start: half of the mutations are there.
        reach = min(len(data), 512) if rng.random() < 0.5 else len(data)
        place = rng.randrange(reach)
        match rng.randrange(7):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + rng.randrange(1, 64)]
            case 3:
                data[place:place] = rng.randbytes(rng.randrange(1, 64))
            case 4:
                data[place : place + 8] = struct.pack("<q", rng.choice((0, -1, 2**40, 2**60, 255)))
            case 5:
                data[place:place] = data[place : place + 256] * rng.randrange(1, 4)
            case _:
                data[place] = rng.choice((0, 0x7F, 0x80, 0xFF, 0x1B))
    return bytes(data)


def mutated_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file whose header lies, or whose bytes are damaged."""
    if rng.random() < 0.25:
        return mutated_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    first, other = rng.choice(names), rng.choice(names)
    match rng.randrange(12):
        case 0:  # two names for the same bytes
            header[first]["data_offsets"] = header[other]["data_offsets"]
        case 1:
            shift = rng.choice((-4, -1, 1, 4, 64, -(2**40), 2**63))
            entry["data_offsets"] = [offset + shift for offset in entry["data_offsets"]]
        case 2:
            entry["shape"] = [*entry["shape"], rng.choice((0, 2, -1, 2**62, 1.0, "1", True))]
        case 3:
            entry["dtype"] = rng.choice(("F64", "F4", "I8", "f32", "X", None, 3, ["F32"]))
        case 4:
            entry["shape"] = entry["shape"][::-1]
        case 5:
            header["__metadata__"] = rng.choice(([], "x", {"a": 1}, {"a": None}, {"a": {}}))
        case 6:
            entry["data_offsets"] = rng.choice(([], [0], [0, 1, 2], "ab", None, [1, 0], [0.0, 4.0]))
        case 7:
            del header[first]
        case 8:
            header["\x1b[31m" + first] = header.pop(first)
        case 9:
            data = data[: rng.randrange(len(data) + 1)]
        case 10:
            data += bytes(rng.randrange(1, 100))
        case _:
            return mutated_tree_header(header, data, rng)
    return safetensors_file(json.dumps(header).encode(), data)


def mutated_tree_header(header: Any, data: bytes, rng: random.Random) -> bytes:
    """Return a file whose header has another structure."""
    return safetensors_file(json_text(mutated_tree(header, rng), rng), data)


def safetensors_file(header: bytes, data: bytes) -> bytes:
    """Return a safetensors file of a header and the bytes of its tensors."""
    return struct.pack("<Q", len(header)) + header + data


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket has at most 107 bytes
    server.bind(path.name)
    os.chdir(here)
    server.close()


REPLACEMENTS: dict[str, Callable[[Path], Any]] = {
    "a named pipe": _fifo,
    "a socket": _socket,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a dangling link": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an empty file": Path.touch,
    "a sparse file": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "no permission": lambda path: (path.write_bytes(b"{}"), path.chmod(0)),
}
"""What may lie in a file's place, and how to make it."""


def replace_file(path: Path, kind: str) -> None:
    """Put something else in a file's place."""
    path.unlink(missing_ok=True)
    REPLACEMENTS[kind](path)


def mutated_lines(content: bytes, rng: random.Random) -> bytes:
    """Return JSON Lines of which one line has other values, or other bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(content, rng)
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = json_text(mutated_tree(json.loads(lines[place]), rng), rng)
    return b"\n".join(lines) + b"\n"
