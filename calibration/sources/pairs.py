"""The data source ``text-pairs``: questions and the texts that answer them, for sentence encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.arrays import ArrayDataset, sampled
from calibration.sources.text import matching, open_tokenizer, tokenizer_file
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError

_UNANSWERED = -100
"""The label of a text that asks nothing."""
_PADDING = "[PAD]"


class TextPairsConfig(SourceConfig):
    """Where the pairs are, and how they become tokens."""

    path: str
    """A JSONL file with `{"query": …, "passage": …}` in each line, or a pattern of such; relative to pipeline.yaml."""
    tokenizer: str
    """A folder with a `tokenizer.json`, such as a checkpoint's, or the file; relative to pipeline.yaml."""
    sequence_length: Annotated[int, Field(ge=3, le=1 << 16)] = 128
    """Tokens of every text: longer ones are cut, shorter ones padded."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many pairs, drawn by `seed`; all of them by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the draw."""


class TextPairs(DataSource[TextPairsConfig]):
    """Two texts for each pair, the passage and then its query: `input_ids`, `attention_mask` int64 [2P, T] and `label` [2P].

    The label of a query is the place of its passage in the set; that of a passage is -100. So any first part of a set holds the
    answers to its own questions.
    """

    name = "text-pairs"
    Config = TextPairsConfig

    def problems(self, config: TextPairsConfig, context: SourceContext) -> list[str]:
        """No file, no tokenizer."""
        found = []
        if not (file := tokenizer_file(config.tokenizer, context)).is_file():
            found.append(
                f"there is no tokenizer at {file}; `tokenizer` is relative to pipeline.yaml"
            )
        if not matching(config.path, context):
            found.append(f"{config.path} matches no file (looked below {context.base})")
        return found

    def digest(self, config: TextPairsConfig, context: SourceContext) -> str:
        """Over the config and the content of the files, in their order, and of the tokenizer."""
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(mode="json", exclude={"path", "tokenizer"}),
                "files": [digest_file(file) for file in matching(config.path, context)],
                "tokenizer": digest_file(tokenizer_file(config.tokenizer, context)),
            }
        )

    def load(self, config: TextPairsConfig, context: SourceContext) -> Dataset:
        """Read, draw, tokenize.

        Raises:
            DataError: a line is no such record, there is none, or the tokenizer cannot be read.
        """
        pairs = [pair for file in matching(config.path, context) for pair in _pairs(file)]
        if not pairs:
            raise DataError(f"{config.path} holds no pairs")
        chosen = [pairs[place] for place in sampled(len(pairs), config.num_samples, config.seed)]
        tokenizer = open_tokenizer(tokenizer_file(config.tokenizer, context))
        tokenizer.enable_truncation(config.sequence_length)
        tokenizer.enable_padding(
            length=config.sequence_length, pad_id=tokenizer.token_to_id(_PADDING) or 0
        )
        encoded = tokenizer.encode_batch(
            [text for query, passage in chosen for text in (passage, query)]
        )
        labels = np.full(len(encoded), _UNANSWERED, dtype=np.int64)
        labels[1::2] = np.arange(0, len(encoded), 2)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
            "label": labels,
        }
        return ArrayDataset(arrays, ("input_ids", "attention_mask"), "label")


def _pairs(file: Path) -> list[tuple[str, str]]:
    """The queries and passages of a file.

    Raises:
        DataError: it is not UTF-8, or a line is no record of a pair.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: byte {error.start}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            query, passage = record["query"], record["passage"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}:{number}: no JSON record with the fields 'query' and 'passage'"
            ) from error
        if not (
            isinstance(query, str)
            and isinstance(passage, str)
            and query.strip()
            and passage.strip()
        ):
            raise DataError(
                f"{file}:{number}: `query` and `passage` must be texts that are not empty"
            )
        found.append((query, passage))
    return found
