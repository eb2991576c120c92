"""Data source ``text``: windows of tokens, or of bytes, from text or JSONL files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.arrays import ArrayDataset, draw_indices, draw_problems
from calibration.sources.files import (
    match_files,
    no_match,
    open_tokenizer,
    read_text,
    tokenizer_file,
    tokenizer_problems,
)
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError

Tokens = np.ndarray[Any, np.dtype[np.int64]]


class TextConfig(SourceConfig):
    """Config of the data source ``text``."""

    path: str
    """A file, or a glob pattern such as `books/*.txt`; relative to pipeline.yaml. Files that end in
    `.jsonl` hold one JSON record per line."""
    field: str = "text"
    """Key of the text in a record of a `.jsonl` file; other files are text as a whole."""
    tokenizer: str | None = None
    """A `tokenizer.json`, or a folder that holds one, such as a checkpoint's; relative to
    pipeline.yaml. By default the tokens are UTF-8 bytes."""
    sequence_length: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    """Tokens per window, including those that the tokenizer puts at the start of a text. The
    remainder at the end of a file is not used."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of windows, drawn at random; all windows by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` windows."""


class Text(DataSource[TextConfig]):
    """Windows of text for language models.

    With a tokenizer: `input_ids`, int64 [N, L], and `label` [N, L], the next token of each. Every
    window starts with the tokens that the tokenizer puts at the start of a text, such as `<bos>`,
    without which the outputs of some models degrade. Without a tokenizer: `tokens`, int64 [N, L],
    each a UTF-8 byte plus 1; 0 is free for padding.
    """

    name = "text"
    Config = TextConfig

    def problems(self, config: TextConfig, context: SourceContext) -> list[str]:
        """Return missing and empty files, a missing tokenizer, and fields without effect."""
        problems = draw_problems(config)
        if config.tokenizer is not None:
            problems += tokenizer_problems(config.tokenizer, context)
        files = match_files(config.path, context)
        if not files:
            problems.append(no_match(config.path, context))
        elif "field" in config.model_fields_set and not any(map(_is_jsonl, files)):
            problems.append("`field` has no effect: no file ends in .jsonl; leave it out")
        return problems + [f"{file} is empty" for file in files if not file.stat().st_size]

    def digest(self, config: TextConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the content of the files and the tokenizer."""
        files = [digest_file(file) for file in match_files(config.path, context)]
        facts = {
            "version": 2,
            "config": config.model_dump(mode="json", exclude={"path", "tokenizer"}),
            "files": files,
        }
        if config.tokenizer is not None:
            facts["tokenizer"] = digest_file(tokenizer_file(config.tokenizer, context))
        return digest_json(facts)

    def load(self, config: TextConfig, context: SourceContext) -> Dataset:
        """Read the files, cut them into windows, and draw from the windows.

        Raises:
            DataError: a file is not UTF-8, a record lacks the field, no file fills a window, the
                tokenizer cannot be read, or its start tokens fill the window.
        """
        if config.tokenizer is None:
            return ArrayDataset({"tokens": _windows(config, context, _bytes, 0)}, ("tokens",))
        start, encode = _encoder(tokenizer_file(config.tokenizer, context))
        if config.sequence_length + 1 - len(start) < 2:
            raise DataError(
                f"sequence_length {config.sequence_length}: the tokenizer puts {len(start)} tokens "
                "before each window",
                remedy="use longer windows",
            )
        # One token more than the window, for the label of the last.
        windows = _windows(config, context, encode, 1 - len(start))
        windows = np.concatenate([np.tile(start, (len(windows), 1)), windows], axis=1)
        arrays = {"input_ids": windows[:, :-1], "label": windows[:, 1:]}
        return ArrayDataset(arrays, ("input_ids",), "label")


def _windows(
    config: TextConfig,
    context: SourceContext,
    encode: Callable[[str], Tokens],
    extra_length: int,
) -> Tokens:
    """Return the windows that are drawn, int64 [N, sequence_length + extra_length]."""
    files = match_files(config.path, context)
    length = config.sequence_length + extra_length
    windows = []
    for number, file in enumerate(files, start=1):
        tokens = encode(_content(file, config.field))
        count = len(tokens) // length
        windows.append(tokens[: count * length].reshape(count, length))
        context.progress("files", number, len(files))
    pool = np.concatenate(windows) if windows else np.empty((0, length), dtype=np.int64)
    if not len(pool):
        unit = "bytes" if config.tokenizer is None else "tokens"
        raise DataError(f"no file of {config.path} holds a window of {length} {unit}")
    return pool[draw_indices(len(pool), config.num_samples, config.seed)]


def _bytes(text: str) -> Tokens:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) + 1


def _encoder(file: Path) -> tuple[Tokens, Callable[[str], Tokens]]:
    """Return the tokens at the start of every text, and a function that encodes without them."""
    tokenizer = open_tokenizer(file)

    def encode(text: str) -> Tokens:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    plain, whole = encode("a").tolist(), tokenizer.encode("a").ids
    start = next(
        (index for index in range(len(whole)) if whole[index : index + len(plain)] == plain), 0
    )
    return np.array(whole[:start], dtype=np.int64), encode


def _is_jsonl(file: Path) -> bool:
    return file.suffix == ".jsonl"


def _content(file: Path, field: str) -> str:
    """Return the text of a file; that of a ``.jsonl`` file is the fields of its records, joined.

    Raises:
        DataError: the file is not UTF-8, or a record lacks the field.
    """
    text = read_text(file)
    if not _is_jsonl(file):
        return text
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(str(json.loads(line)[field]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}:{number}: no JSON record with the field {field!r}") from error
    return "\n".join(records)
