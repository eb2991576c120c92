"""``tokenizer.mtok``: a byte-level BPE tokenizer as MNN's engine for language models reads it.

Two lines of text (kind, numbers of tokens that are special, that end an answer, and that begin a
prompt), then little-endian records in the order of tokenizer.json: normalizer, pre-tokenizer,
model, decoder, added tokens, and the chat template.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import ModelError, RequirementError
from compressor.foreign_files.json_files import read_json_object

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_MAGIC, _PIPELINE = 430, 4
_PART, _TOKEN = 0, 1
Tree = Mapping[str, Any]


def tokenizer_bytes(folder: Path, ends: Sequence[int]) -> bytes:
    """Return the file's content.

    Args:
        folder: a checkpoint with tokenizer.json.
        ends: tokens that end an answer.

    Raises:
        RequirementError: there is no tokenizer.json, or it has parts that MNN lacks.
    """
    if not (folder / TOKENIZER).is_file():
        raise RequirementError(
            f"{folder} has no {TOKENIZER}, and MNN's folder holds its model's tokenizer",
            remedy="copy tokenizer.json and tokenizer_config.json from the original checkpoint",
        )
    tree = read_json_object(folder / TOKENIZER, ModelError, remedy="copy it again")
    added = tree.get("added_tokens") or []
    special = [token["id"] for token in added if token.get("special")]
    steps = _template_steps(tree.get("post_processor") or {})
    before = [value for kind, value in steps[: _position(steps)] if kind == _TOKEN]
    ids = " ".join(map(str, [*special, *ends, *before]))
    header = f"{_MAGIC} {_PIPELINE}\n{len(special)} {len(ends)} {len(before)}\n{ids}\n"
    parts = [
        header.encode(),
        _normalizer(tree.get("normalizer")),
        _pre_tokenizer(tree.get("pre_tokenizer")),
        _model(tree),
        _decoder(tree.get("decoder")),
        struct.pack("<I", len(added)),
        *(_added(token) for token in added),
        _template(folder),
        struct.pack("<H", len(steps)),
        *(
            struct.pack("<B", kind) + (struct.pack("<I", value) if kind == _TOKEN else b"")
            for kind, value in steps
        ),
    ]
    return b"".join(parts)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<H", len(encoded)) + encoded


def _unknown(part: str, kind: object) -> RequirementError:
    return RequirementError(
        f"{TOKENIZER} has a {part} of type {kind}, which is not written for MNN",
        remedy="`export-gguf` and `export-onnx` make files of language models that phones run",
    )


def _pattern(tree: Tree) -> str:
    pattern = tree["pattern"]
    return str(pattern.get("String") or pattern.get("Regex"))


def _normalizer(tree: Tree | None) -> bytes:
    if tree is None:
        return struct.pack("<B", 0)
    match tree["type"]:
        case "Prepend":
            return struct.pack("<B", 2) + _text(tree["prepend"])
        case "Replace":
            return struct.pack("<B", 3) + _text(_pattern(tree)) + _text(tree["content"])
        case "Sequence":
            parts = tree["normalizers"]
            return struct.pack("<BI", 4, len(parts)) + b"".join(map(_normalizer, parts))
        case "NFC":
            return struct.pack("<B", 6) + _composed_characters()
        case kind:
            raise _unknown("normalizer", kind)


def _composed_characters() -> bytes:
    import sys
    import unicodedata

    entries = []
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        if (normal := unicodedata.normalize("NFC", character)) != character:
            entries.append(struct.pack("<I", point) + _text(normal))
    return struct.pack("<I", len(entries)) + b"".join(entries)


def _pre_tokenizer(tree: Tree | None) -> bytes:
    if tree is None:
        return struct.pack("<B", 0)
    match tree["type"]:
        case "ByteLevel" if not tree.get("add_prefix_space"):
            return struct.pack("<BB", 1, tree.get("use_regex", True))
        case "Digits":
            return struct.pack("<BB", 2, tree.get("individual_digits", False))
        case "Split" if tree["behavior"] == "Isolated":
            return struct.pack("<B", 4) + _text(_pattern(tree)) + bytes([tree["invert"], 0])
        case "Sequence":
            parts = tree["pretokenizers"]
            return struct.pack("<BI", 6, len(parts)) + b"".join(map(_pre_tokenizer, parts))
        case kind:
            raise _unknown("pre-tokenizer", kind)


def _model(tree: Tree) -> bytes:
    model = tree["model"]
    if model.get("type") != "BPE":
        raise _unknown("model", model.get("type"))
    vocabulary: dict[str, int] = model["vocab"]
    pairs = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"]]
    merges = sorted(
        (vocabulary[left], vocabulary[right], rank) for rank, (left, right) in enumerate(pairs)
    )
    head = struct.pack(
        "<BIBBI", 0, len(vocabulary), bool(model.get("byte_fallback")), False, len(merges)
    )
    tokens = (_text(token) + struct.pack("<I", n) for token, n in sorted(vocabulary.items()))
    return head + b"".join(tokens) + b"".join(struct.pack("<III", *merge) for merge in merges)


def _decoder(tree: Tree | None) -> bytes:
    if tree is None:
        return struct.pack("<B", 0)
    match tree["type"]:
        case "ByteLevel":
            return struct.pack("<B", 0)
        case "ByteFallback":
            return struct.pack("<B", 1)
        case "Fuse":
            return struct.pack("<B", 4)
        case "Replace":
            return struct.pack("<B", 5) + _text(_pattern(tree)) + _text(tree["content"])
        case "Strip":
            ends = struct.pack("<II", tree["start"], tree["stop"])
            return struct.pack("<B", 6) + _text(tree["content"]) + ends
        case "Sequence":
            parts = tree["decoders"]
            return struct.pack("<BI", 7, len(parts)) + b"".join(map(_decoder, parts))
        case kind:
            raise _unknown("decoder", kind)


def _added(token: Tree) -> bytes:
    flags = (token.get(name, False) for name in ("special", "lstrip", "rstrip"))
    return struct.pack("<IBBB", token["id"], *flags) + _text(token["content"])


def _template(folder: Path) -> bytes:
    """Return chat template, end and begin of a text, and a flag between them."""
    file = folder / _CONFIG
    tree = read_json_object(file, ModelError, remedy="copy it again") if file.is_file() else {}
    stated = tree.get("chat_template")
    separate = folder / _TEMPLATE
    text = separate.read_text() if separate.is_file() else stated
    template = text.encode() if isinstance(text, str) else b""
    cleans_up = tree.get("clean_up_tokenization_spaces") is True
    eos, bos = (_text(_content(tree.get(name))) for name in ("eos_token", "bos_token"))
    return struct.pack("<I", len(template)) + template + eos + bytes([cleans_up]) + bos


def _content(token: object) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token or "")


def _template_steps(processor: Tree) -> list[tuple[int, int]]:
    """Return the tokens around a text, and the place of the text; empty without such tokens."""
    if processor.get("type") == "Sequence":
        found = (_template_steps(part) for part in processor["processors"])
        return next((steps for steps in found if steps), [])
    if processor.get("type") != "TemplateProcessing":
        return []
    steps = []
    for entry in processor["single"]:
        if "Sequence" in entry:
            steps.append((_PART, 0))
        else:
            ids = processor["special_tokens"][entry["SpecialToken"]["id"]]["ids"]
            steps += [(_TOKEN, token) for token in ids]
    return steps


def _position(steps: Sequence[tuple[int, int]]) -> int:
    return next((n for n, (kind, _) in enumerate(steps) if kind == _PART), 0)
