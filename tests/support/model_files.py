"""Model files of other libraries, written by hand where that is small."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LORA = {
    "base_model.model.layer.lora_A.weight": np.ones((2, 4), np.float32),
    "base_model.model.layer.lora_B.weight": np.ones((4, 2), np.float32),
}


def write_json(file: Path, tree: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree))


def write_weights(file: Path, tensors: Mapping[str, Any] | None = None) -> Path:
    """Write a safetensors file; by default of one matrix in float32 and one in float16."""
    default = {"a": np.ones((3, 2), np.float32), "b": np.ones((2, 1), np.float16)}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors or default), str(file))
    return file


_Q4_K_BYTES = 4 * 144


def gguf_header() -> bytes:
    """Return a GGUF file with a name, a context length and two tensors of zeros."""
    metadata = [
        _text("general.architecture") + _typed(8, _text("llama")),
        _text("general.name") + _typed(8, _text("Tiny Llama")),
        _text("llama.context_length") + _typed(4, struct.pack("<I", 2048)),
        _text("tokenizer.ggml.tokens")
        + _typed(9, struct.pack("<IQ", 8, 2) + _text("a") + _text("b")),
        _text("tokenizer.ggml.scores") + _typed(9, struct.pack("<IQ2f", 6, 2, 0.5, 1.5)),
    ]
    tensors = [
        _text("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 256, 4, 12, 0),
        _text("output_norm.weight") + struct.pack("<IQIQ", 1, 256, 0, _Q4_K_BYTES),
    ]
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header = start + b"".join(metadata) + b"".join(tensors)
    return header + bytes(-len(header) % 32 + _Q4_K_BYTES + 256 * 4)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _typed(kind: int, value: bytes) -> bytes:
    return struct.pack("<I", kind) + value


class Bomb:
    """An object whose unpickling would create a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)
