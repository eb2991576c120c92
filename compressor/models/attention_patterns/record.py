"""``attention_pattern.json``: the heads of a decoder that attend to sinks and a window alone.

The file lies beside config.json, and has an entry for each layer, null where all heads are full::

    {"version": 1, "layers": [null, {"heads": [0, 2], "sinks": 4, "window": 256}, …]}

The query at position q of a local head sees the key at position k ≤ q if k < sinks or
q - k < window. Positions count the tokens of the sequence from 0, padding left out; with images,
they are indices of the sequence and not those of M-RoPE. The other heads see all keys
(StreamingLLM, Xiao et al. 2023; a mix by head, DuoAttention, Xiao et al. 2024). Plain values, no
torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.config.record import Record
from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_record
from compressor.models.capabilities.attention_heads import AttentionHeads

ATTENTION_PATTERN = "attention_pattern.json"
_AGAIN = "copy the file again, or run the `sparse-attention` step again"


class LocalHeads(Record):
    """Key-value heads of a layer that attend to the first tokens and to a window."""

    heads: Annotated[tuple[int, ...], Field(min_length=1)]
    """Indices of the key-value heads, ascending; the query heads that share one follow it."""
    sinks: Annotated[int, Field(ge=0)]
    """First tokens of the sequence that every query sees."""
    window: Annotated[int, Field(ge=1)]
    """Tokens before a query that it sees, itself included."""

    @field_validator("heads")
    @classmethod
    def _check_heads(cls, heads: tuple[int, ...]) -> tuple[int, ...]:
        if list(heads) != sorted({*heads}) or heads[:1] < (0,):
            raise ValueError("expected ascending indices from 0, none of them twice")
        return heads

    @property
    def kept(self) -> int:
        """Keys that a head needs at most, however long the sequence is."""
        return self.sinks + self.window


class AttentionPattern(Record):
    """Content of ``attention_pattern.json``."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    """Version of the file."""
    layers: tuple[LocalHeads | None, ...]
    """Local heads of each layer; None for a layer whose heads are all full."""

    @property
    def local_heads(self) -> int:
        """Number of local key-value heads of all layers."""
        return sum(len(layer.heads) for layer in self.layers if layer is not None)

    def cached_rows(self, heads: AttentionHeads, tokens: int) -> int:
        """Return the number of keys that all heads of all layers hold after some tokens."""
        saved = (
            len(layer.heads) * max(0, tokens - layer.kept)
            for layer in self.layers
            if layer is not None
        )
        return heads.cached_rows(tokens) - sum(saved)


def read_attention_pattern(folder: Path) -> AttentionPattern | None:
    """Return the pattern of a model folder; None for a model without one.

    Raises:
        ModelError: the file is damaged.
    """
    file = folder / ATTENTION_PATTERN
    if not file.is_file():
        return None
    return read_json_record(file, AttentionPattern, ModelError, remedy=_AGAIN)


def write_attention_pattern(pattern: AttentionPattern, folder: Path) -> None:
    """Write the pattern into a model folder.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with writing(folder):
        content = f"{pattern.model_dump_json(indent=1)}\n"
        write_atomic(folder / ATTENTION_PATTERN, content.encode())


def pattern_problems(pattern: AttentionPattern, heads: AttentionHeads | None) -> list[str]:
    """Return what does not fit between a pattern and its model.

    Args:
        pattern: the pattern.
        heads: the attention heads of the model; None if a pattern cannot apply to it.
    """
    if heads is None:
        return [f"{ATTENTION_PATTERN}: the model has no {AttentionHeads.label}"]
    problems = []
    if len(pattern.layers) != heads.layers:
        problems.append(
            f"{ATTENTION_PATTERN}: layers: {len(pattern.layers)} entries, and the model has "
            f"{heads.layers} layers"
        )
    for number, layer in enumerate(pattern.layers[: heads.layers]):
        if layer is None:
            continue
        if layer.heads[-1] >= heads.key_heads:
            problems.append(
                f"{ATTENTION_PATTERN}: layers.{number}.heads: head {layer.heads[-1]} is out of "
                f"range: the model has {heads.key_heads} key-value heads"
            )
        if number in heads.windowed:
            problems.append(
                f"{ATTENTION_PATTERN}: layers.{number}: the layer attends to a sliding window of "
                f"{heads.windowed[number]} already"
            )
    return problems
