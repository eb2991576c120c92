"""The data source ``text``: files or JSONL, cut into windows of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from calibration.sources.arrays import ArrayDataset, sampled
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError


class TextConfig(SourceConfig):
    """Where the text is, and how it becomes tokens."""

    path: str
    """A file, or a pattern as `books/*.txt`; relative to pipeline.yaml. Files that end in .jsonl hold one record a line."""
    field: str = "text"
    """The key of a JSONL record that holds the text."""
    sequence_length: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    """Tokens of a window; what is left over at a file's end is not used."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many windows, drawn by `seed`; all of them by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the draw."""


class Text(DataSource[TextConfig]):
    """Windows of UTF-8 bytes: `tokens` int64 [N, L], each byte + 1, so that 0 is free for padding."""

    name = "text"
    Config = TextConfig

    def problems(self, config: TextConfig, context: SourceContext) -> list[str]:
        """No file, or empty files."""
        files = _files(config, context)
        if not files:
            return [f"{config.path} matches no file (looked below {context.base})"]
        return [f"{file} is empty" for file in files if not file.stat().st_size]

    def digest(self, config: TextConfig, context: SourceContext) -> str:
        """Over the config and the content of the files, in their order."""
        files = [digest_file(file) for file in _files(config, context)]
        return digest_json({"version": 1, "config": config.model_dump(mode="json", exclude={"path"}), "files": files})

    def load(self, config: TextConfig, context: SourceContext) -> Dataset:
        """Read, cut, draw.

        Raises:
            DataError: a file is not UTF-8, a JSONL line has no such field, or there is less text than one window.
        """
        windows = []
        for file in _files(config, context):
            content = np.frombuffer(_content(file, config.field), dtype=np.uint8).astype(np.int64) + 1
            count = len(content) // config.sequence_length
            windows.append(content[: count * config.sequence_length].reshape(count, config.sequence_length))
        every = np.concatenate(windows) if windows else np.empty((0, config.sequence_length), dtype=np.int64)
        if not len(every):
            raise DataError(f"{config.path} holds less text than one window of {config.sequence_length} bytes")
        return ArrayDataset({"tokens": every[sampled(len(every), config.num_samples, config.seed)]}, ("tokens",))


def _files(config: TextConfig, context: SourceContext) -> list[Path]:
    path = Path(config.path)
    base = Path(path.anchor) if path.is_absolute() else context.base
    return sorted(file for file in base.glob(str(path.relative_to(path.anchor))) if file.is_file())


def _content(file: Path, field: str) -> bytes:
    content = file.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: byte {error.start}") from error
    if file.suffix != ".jsonl":
        return content
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(str(json.loads(line)[field]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}:{number}: no JSON record with the field {field!r}") from error
    return "\n".join(records).encode()
