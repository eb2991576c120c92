"""Data source ``text-pairs``: queries and the passages that answer them, for sentence encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from calibration.sources.arrays import Array, ArrayDataset, draw_indices, draw_problems
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

_NO_ANSWER = -100
"""Label of a passage, which is ignored."""
_PADDING = "[PAD]"


class TextPairsConfig(SourceConfig):
    """Config of the data source ``text-pairs``."""

    path: str
    """A JSONL file, or a glob pattern of such files, with `{"query": …, "passage": …}` in each
    line; relative to pipeline.yaml."""
    tokenizer: str
    """A `tokenizer.json`, or a folder that holds one, such as a checkpoint's; relative to
    pipeline.yaml."""
    sequence_length: Annotated[int, Field(ge=3, le=1 << 16)] = 128
    """Tokens per text: longer texts are truncated, shorter ones padded."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of pairs, drawn at random; all pairs by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` pairs."""


class TextPairs(DataSource[TextPairsConfig]):
    """Two texts per pair, the passage followed by its query.

    `input_ids` and `attention_mask`, int64 [2P, T], and `label`, int64 [2P]: that of a query is the
    index of its passage, that of a passage is -100. So the first samples of a set, of any number,
    contain the answers to their own queries.
    """

    name = "text-pairs"
    Config = TextPairsConfig

    def problems(self, config: TextPairsConfig, context: SourceContext) -> list[str]:
        """Return missing files, a missing tokenizer, and fields without effect."""
        problems = draw_problems(config) + tokenizer_problems(config.tokenizer, context)
        if not match_files(config.path, context):
            problems.append(no_match(config.path, context))
        return problems

    def digest(self, config: TextPairsConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the content of the files and the tokenizer."""
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(mode="json", exclude={"path", "tokenizer"}),
                "files": [digest_file(file) for file in match_files(config.path, context)],
                "tokenizer": digest_file(tokenizer_file(config.tokenizer, context)),
            }
        )

    def load(self, config: TextPairsConfig, context: SourceContext) -> Dataset:
        """Read the pairs, draw from them, and tokenize.

        Raises:
            DataError: a line is not a pair, there are no pairs, or the tokenizer cannot be read.
        """
        pairs = [pair for file in match_files(config.path, context) for pair in _read_pairs(file)]
        if not pairs:
            raise DataError(f"{config.path} holds no pairs")
        indices = draw_indices(len(pairs), config.num_samples, config.seed)
        tokenizer = open_tokenizer(tokenizer_file(config.tokenizer, context))
        tokenizer.enable_truncation(config.sequence_length)
        tokenizer.enable_padding(
            length=config.sequence_length, pad_id=tokenizer.token_to_id(_PADDING) or 0
        )
        texts = [
            text
            for query, passage in (pairs[index] for index in indices)
            for text in (passage, query)
        ]
        encodings = tokenizer.encode_batch(texts)
        labels = np.full(len(encodings), _NO_ANSWER, dtype=np.int64)
        labels[1::2] = np.arange(0, len(encodings), 2)
        arrays: dict[str, Array] = {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array(
                [encoding.attention_mask for encoding in encodings], dtype=np.int64
            ),
            "label": labels,
        }
        return ArrayDataset(arrays, ("input_ids", "attention_mask"), "label")


def _read_pairs(file: Path) -> list[tuple[str, str]]:
    """Return the queries and passages of a file.

    Raises:
        DataError: the file is not UTF-8, or a line is not a pair.
    """
    pairs = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        try:
            record = json.loads(line)
            query, passage = record["query"], record["passage"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}:{number}: no JSON record with the fields 'query' and 'passage'"
            ) from error
        if not all(isinstance(text, str) and text.strip() for text in (query, passage)):
            raise DataError(
                f"{file}:{number}: `query` and `passage` must be texts that are not empty"
            )
        pairs.append((query, passage))
    return pairs
