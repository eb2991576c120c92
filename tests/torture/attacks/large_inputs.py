"""Inputs that would take all memory, or all time: each ends with an error, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.mutations import nested, replace_file, safetensors_file
from tests.torture.attacks.foreign_data_files import data_files
from tests.torture.examples import warm_up
from tests.torture.foreign_files import problem_of, run_at, shown
from tests.torture.registry import Attack, Case

_TIMEOUT_S = 120
MIB = 1 << 20


def _sparse(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size)


def _pipe(path: Path) -> None:
    replace_file(path, "a named pipe")


def _zeros_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _picture(path: Path, mode: str, side: int) -> None:
    from PIL import Image

    path.unlink(missing_ok=True)
    Image.new(mode, (side, side)).save(path)


def _bomb_npz(path: Path) -> None:
    header = np.lib.format
    path.unlink(missing_ok=True)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        header.write_array_header_1_0(
            member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 29,)}
        )
        for _ in range(2048):
            member.write(bytes(MIB))


def _huge_header(path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}
    _write(path, safetensors_file(json.dumps({"a": tensor}).encode(), b"1234"))


def _many_tensors(path: Path) -> None:
    entry = '"%d":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}'
    text = "{" + ",".join(entry % number for number in range(1_500_000)) + "}"
    _write(path, safetensors_file(text.encode(), b""))


def _onnx_of_empty_nodes(path: Path) -> None:
    graph = b"\x0a\x00" * (30 * MIB)
    _write(path, b"\x08\x08\x3a" + _varint(len(graph)) + graph + b"\x42\x02\x10\x14")


def _varint(value: int) -> bytes:
    text = bytearray()
    while value > 127:
        text.append(value & 127 | 128)
        value >>= 7
    return bytes([*text, value])


def _long_line(text: str) -> bytes:
    return json.dumps({"text": "w7", "more": text}).encode() + b"\n"


_LINE = b'{"text": "w7", "more": [' + b"[]," * (7 * MIB) + b"[]]}\n"
_DEEP = json.dumps(nested(900)).encode()
ATTACKS: tuple[tuple[str, str, Callable[[Path], Any], str], ...] = (
    ("config.json is a named pipe", "m/config.json", _pipe, "model"),
    ("config.json is /dev/zero", "m/config.json", _zeros_link, "model"),
    ("config.json of 1 TB", "m/config.json", lambda p: _sparse(p, 1 << 40), "model"),
    ("config.json of 900 levels", "m/config.json", lambda p: _write(p, _DEEP), "model"),
    (
        "config.json of 15 MB of lists",
        "m/config.json",
        lambda p: _write(p, b"[" + b"[]," * (5 * MIB) + b"[]]"),
        "model",
    ),
    ("tokenizer.json is a named pipe", "m/tokenizer.json", _pipe, "model"),
    ("tokenizer.json is /dev/zero", "m/tokenizer.json", _zeros_link, "model"),
    (
        "tokenizer.json of 40 MB of lists",
        "m/tokenizer.json",
        lambda p: _write(p, b"[" + b"[]," * (13 * MIB) + b"[]]"),
        "model",
    ),
    (
        "tokenizer.json of 1 GB of levels",
        "m/tokenizer.json",
        lambda p: _write(p, b"[" * (1000 * MIB)),
        "model",
    ),
    ("tokenizer_config.json is a pipe", "m/tokenizer_config.json", _pipe, "model"),
    ("generation_config.json is a pipe", "m/generation_config.json", _pipe, "model"),
    ("a chat template is /dev/zero", "m/chat_template.jinja", _zeros_link, "model"),
    ("weights are /dev/zero", "m/model.safetensors", _zeros_link, "model"),
    ("weights of 1 TB of zeros", "m/model.safetensors", lambda p: _sparse(p, 1 << 40), "model"),
    ("a tensor of 2^60 values", "m/model.safetensors", _huge_header, "model"),
    ("a header of 1.5 million tensors", "m/model.safetensors", _many_tensors, "model"),
    ("an ONNX graph of 30 million nodes", "m/model.onnx", _onnx_of_empty_nodes, "graph"),
    ("an ONNX graph that is a pipe", "m/model.onnx", _pipe, "graph"),
    ("a line of 20 MB", "t.jsonl", lambda p: _write(p, _long_line("x" * 20 * MIB)), "jsonl"),
    ("a line of 21 MB of lists", "t.jsonl", lambda p: _write(p, _LINE), "jsonl"),
    ("a line of 1 TB", "t.jsonl", lambda p: _sparse(p, 1 << 40), "jsonl"),
    ("lines are /dev/zero", "t.jsonl", _zeros_link, "jsonl"),
    ("lines are a named pipe", "t.jsonl", _pipe, "jsonl"),
    (
        "a JSON list of 120 MB of lists",
        "t.json",
        lambda p: _write(p, b"[" + b"[]," * (40 * MIB) + b"[]]"),
        "json",
    ),
    (
        "a JSON list of one item of 120 MB",
        "t.json",
        lambda p: _write(p, b"[[" + b"[]," * (40 * MIB) + b"[]]]"),
        "json",
    ),
    (
        "a text of 120 MB of emoji",
        "t.txt",
        lambda p: _write(p, ("\U0001f600w7 " * (15 * MIB)).encode()),
        "txt",
    ),
    ("a text of 1 TB", "t.txt", lambda p: _sparse(p, 1 << 40), "txt"),
    ("a CSV of 1 TB", "t.csv", lambda p: _sparse(p, 1 << 40), "csv"),
    (
        "a picture of 144 megapixels",
        "pictures/a/0.png",
        lambda p: _picture(p, "RGB", 12_000),
        "images",
    ),
    (
        "a picture of 67 megapixels",
        "pictures/a/0.png",
        lambda p: _picture(p, "RGBA", 8_190),
        "images",
    ),
    (
        "a picture of 67 megapixels, 16 bit",
        "pictures/a/0.png",
        lambda p: _picture(p, "I;16", 8_190),
        "images",
    ),
    ("a picture is /dev/zero", "pictures/a/0.png", _zeros_link, "images"),
    ("a recording of 1 TB", "sound/0.wav", lambda p: _sparse(p, 1 << 40), "audio"),
    ("an array of 2 GB in a file of 2 MB", "x.npz", _bomb_npz, "arrays"),
    ("a YAML file that is /dev/zero", "jsonl.yaml", _zeros_link, "jsonl"),
    ("a YAML file that is a pipe", "jsonl.yaml", _pipe, "jsonl"),
    (
        "a GGUF of 2^24 texts",
        "m/x.gguf",
        lambda p: _write(p, b"GGUF" + struct.pack("<IQQ", 3, 1 << 24, 1 << 24) + bytes(64)),
        "gguf",
    ),
)
"""Name, file, the function that makes it, and what reads it."""


def _commands(reader: str) -> list[list[str]]:
    if reader == "model":
        return [
            ["show", "m"],
            ["init", "new", "--from", "m"],
            ["plan", "jsonl.yaml"],
            ["generate", "m", "--prompt", "w5", "--max-tokens", "2"],
        ]
    if reader == "graph":
        return [["show", "m"], ["lint", "m/model.onnx"]]
    if reader == "gguf":
        return [["show", "m/x.gguf"]]
    return [["validate", f"{reader}.yaml"], ["compare", "m", "n", "-p", f"{reader}.yaml"]]


def _cases(rng: random.Random) -> Iterator[Case]:
    warm_up()
    with tempfile.TemporaryDirectory(prefix="torture-large-") as made:
        original = data_files(Path(made))[0].folder
        shutil.copytree(original / "m", original / "n")
        for title, file, make, reader in ATTACKS:
            yield title, partial(_attack, original, file, make, reader)


def _attack(
    original: Path, file: str, make: Callable[[Path], Any], reader: str, folder: Path
) -> str | None:
    home = folder / "case"
    shutil.copytree(original, home)
    make(home / file)
    for command in _commands(reader):
        outcome = run_at(home, command, _TIMEOUT_S)
        if problem := problem_of(outcome, frozenset({0, 2})):
            return f"{command[0]}: {problem}\n    {shown(outcome)}"
    return None


ATTACK = Attack(
    "large-inputs",
    "Inputs that would take all memory or all time: exit 0 or 2, at most 1 GB",
    _cases,
)
