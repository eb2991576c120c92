"""Largest files of each kind that are read whole; each bound is several times the largest known.

They keep the memory of any input below 1 GB. What is streamed or mapped, such as weights, has none.
"""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 1 << 20
MOST_VALUES = 2_000_000
"""Values of one JSON text: objects, lists, keys and scalars; each takes up to 200 bytes."""
_MOST_TOKENIZER_VALUES = 3_500_000
"""Gemma 3 has 1.85 million: a token and its number, or a pair of tokens to merge, is one or
three."""
MOST_DEPTH = 64
"""Levels of nested lists and objects."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file, and the most that is read of one."""

    name: str
    """Name in the plural, for messages."""
    most_bytes: int
    remedy: str | None = None
    """The way around the limit; None where a larger file is certainly another one."""
    most_values: int = MOST_VALUES
    """The most values of one JSON text."""


CONFIG = FileKind("configs", 16 * MEBIBYTE)
INDEX = FileKind("indexes of shards", 48 * MEBIBYTE)
TOKENIZER = FileKind("tokenizers", 48 * MEBIBYTE, most_values=_MOST_TOKENIZER_VALUES)
RECORD = FileKind("records", 48 * MEBIBYTE)
SOURCE_TEXT = FileKind("templates, keys, transcripts and programs", 4 * MEBIBYTE)
PIPELINE = FileKind("YAML files", MEBIBYTE)
DOCUMENT = FileKind(
    "files that are one text, one JSON document or one table",
    128 * MEBIBYTE,
    "split it, or write JSON Lines (.jsonl), which are read line by line",
)
LINE = FileKind("lines of JSON", 16 * MEBIBYTE, "split the record")
PICTURE = FileKind("pictures", 256 * MEBIBYTE, "scale it down")
AUDIO = FileKind("recordings", 64 * MEBIBYTE, "cut it, or reduce its sampling rate")
FLATBUFFER = FileKind("flatbuffers (.ort, .mnn)", 4096 * MEBIBYTE)
"""Their offsets have 32 bits."""
GRAPH = FileKind(
    "ONNX graphs", 2048 * MEBIBYTE, "save the weights as external data beside the graph"
)
