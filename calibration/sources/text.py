"""The data source ``text``: files or JSONL, cut into windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.arrays import ArrayDataset, sampled
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tokens = np.ndarray[Any, np.dtype[np.int64]]


class TextConfig(SourceConfig):
    """Where the text is, and how it becomes tokens."""

    path: str
    """A file, or a pattern as `books/*.txt`; relative to pipeline.yaml. Files that end in .jsonl hold one record a line."""
    field: str = "text"
    """The key of a JSONL record that holds the text."""
    tokenizer: str | None = None
    """A folder with a `tokenizer.json`, such as a checkpoint's, or the file; relative to pipeline.yaml. Bytes without one."""
    sequence_length: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    """Tokens of a window, with those that the tokenizer puts before a text; what is left over at a file's end is not used."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many windows, drawn by `seed`; all of them by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the draw."""


class Text(DataSource[TextConfig]):
    """Windows of text, for language models.

    With a tokenizer, `input_ids` int64 [N, L] and `label` [N, L], the token after each; every window begins as the tokenizer
    has a text begin, such as with `<bos>`, without which some models are hardly themselves. Without a tokenizer, `tokens` int64
    [N, L], each UTF-8 byte + 1, so that 0 is free for padding.
    """

    name = "text"
    Config = TextConfig

    def problems(self, config: TextConfig, context: SourceContext) -> list[str]:
        """No file, empty files, no tokenizer."""
        found = []
        if (
            config.tokenizer is not None
            and not (file := tokenizer_file(config.tokenizer, context)).is_file()
        ):
            found.append(
                f"there is no tokenizer at {file}; `tokenizer` is relative to pipeline.yaml"
            )
        files = matching(config.path, context)
        if not files:
            return [*found, f"{config.path} matches no file (looked below {context.base})"]
        return [*found, *(f"{file} is empty" for file in files if not file.stat().st_size)]

    def digest(self, config: TextConfig, context: SourceContext) -> str:
        """Over the config and the content of the files, in their order, and of the tokenizer."""
        files = [digest_file(file) for file in matching(config.path, context)]
        facts = {
            "version": 2,
            "config": config.model_dump(mode="json", exclude={"path", "tokenizer"}),
            "files": files,
        }
        if config.tokenizer is not None:
            facts["tokenizer"] = digest_file(tokenizer_file(config.tokenizer, context))
        return digest_json(facts)

    def load(self, config: TextConfig, context: SourceContext) -> Dataset:
        """Read, cut, draw.

        Raises:
            DataError: a file is not UTF-8, a JSONL line has no such field, there is less text than one window, the tokenizer
                cannot be read, or a window holds nothing but what it puts before a text.
        """
        files = matching(config.path, context)
        start: Tokens = np.empty(0, dtype=np.int64)
        if config.tokenizer is None:
            length, streams = (
                config.sequence_length,
                (_bytes(_content(file, config.field)) for file in files),
            )
        else:
            start, encode = _encoder(tokenizer_file(config.tokenizer, context))
            length, streams = (
                config.sequence_length + 1 - len(start),
                (encode(_content(file, config.field)) for file in files),
            )
            if length < 2:
                raise DataError(
                    f"sequence_length {config.sequence_length}: the tokenizer puts {len(start)} tokens before each window",
                    remedy="ask for longer windows",
                )
        windows = []
        for number, tokens in enumerate(streams):
            count = len(tokens) // length
            windows.append(tokens[: count * length].reshape(count, length))
            context.progress("files", number + 1, len(files))
        every = np.concatenate(windows) if windows else np.empty((0, length), dtype=np.int64)
        if not len(every):
            unit = "bytes" if config.tokenizer is None else "tokens"
            raise DataError(f"no file of {config.path} holds a window of {length} {unit}")
        chosen = every[sampled(len(every), config.num_samples, config.seed)]
        chosen = np.concatenate([np.tile(start, (len(chosen), 1)), chosen], axis=1)
        if config.tokenizer is None:
            return ArrayDataset({"tokens": chosen}, ("tokens",))
        return ArrayDataset(
            {"input_ids": chosen[:, :-1], "label": chosen[:, 1:]}, ("input_ids",), "label"
        )


def _bytes(content: bytes) -> Tokens:
    return np.frombuffer(content, dtype=np.uint8).astype(np.int64) + 1


def open_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        DataError: the file is none.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise DataError(
            f"{file} is no tokenizer: {error}", remedy="copy the checkpoint's files again"
        ) from error


def _encoder(file: Path) -> tuple[Tokens, Callable[[bytes], Tokens]]:
    """The tokens before any text, and a function from a text to its own."""
    tokenizer = open_tokenizer(file)

    def encode(content: bytes) -> Tokens:
        return np.array(
            tokenizer.encode(content.decode(), add_special_tokens=False).ids, dtype=np.int64
        )

    own, whole = encode(b"a").tolist(), tokenizer.encode("a").ids
    before = next(
        (place for place in range(len(whole)) if whole[place : place + len(own)] == own), 0
    )
    return np.array(whole[:before], dtype=np.int64), encode


def tokenizer_file(name: str, context: SourceContext) -> Path:
    """The file itself, or ``tokenizer.json`` of a folder."""
    path = context.base / name
    return path if path.suffix == ".json" else path / "tokenizer.json"


def matching(pattern: str, context: SourceContext) -> list[Path]:
    """The files of a pattern that may be relative to pipeline.yaml, by name."""
    path = Path(pattern)
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
