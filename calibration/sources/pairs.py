"""Data source ``text-pairs``: queries and the passages that answer them, for sentence encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.arrays import Array, ArrayDataset, draw_indices, draw_problems
from calibration.sources.files import (
    file_problems,
    match_files,
    missing_token_problems,
    open_tokenizer,
    tokenizer_file,
    tokenizer_problems,
)
from calibration.sources.records.reading import (
    layouts_digested,
    read_records,
    sample_records,
    sampled_files,
)
from calibration.sources.records.record import (
    DataRecord,
    ProblemList,
    RecordError,
    checked_text,
)
from calibration.sources.starter import shortened, tokenizer_path
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import (
    DataFacts,
    Dataset,
    DataSource,
    InputFacts,
    SourceConfig,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.errors import CompressError, DataError
from compressor.models.checkpoint.tokenizer_json import largest_token_id

_NO_ANSWER = -100
"""Label of a passage, which is ignored."""
_PADDING, _TYPES = "[PAD]", "token_type_ids"


class TextPairsConfig(SourceConfig):
    """Config of the data source ``text-pairs``."""

    path: str
    """A file of records `{"query": …, "passage": …}`, or a glob pattern of such files; relative to
    pipeline.yaml. They end in `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`, and all
    but parquet may be compressed by gzip."""
    tokenizer: str
    """A `tokenizer.json`, or a folder that holds one, such as a checkpoint's; relative to
    pipeline.yaml."""
    sequence_length: Annotated[int, Field(ge=3, le=1 << 16)] = 128
    """Tokens per text: longer texts are truncated, shorter ones padded."""
    token_types: bool = False
    """Add `token_type_ids`, all 0, for models such as BERT that take them."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of pairs, drawn at random; all pairs by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` pairs."""


class TextPairs(DataSource[TextPairsConfig]):
    """Two texts per pair, the passage followed by its query.

    `input_ids` and `attention_mask`, int64 [2P, T], and `label`, int64 [2P]: that of a query is the
    index of its passage, that of a passage is -100. So the first samples of a set, of any number,
    contain the answers to their own queries. With `token_types` also `token_type_ids`.
    """

    name = "text-pairs"
    Config = TextPairsConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return padded texts for a model that takes tokens and their mask."""
        names = frozenset({"input_ids", "attention_mask"})
        if not names <= model.required:
            return None
        fields: dict[str, Any] = {
            "path": "pairs/*.jsonl",
            "tokenizer": tokenizer_path(model),
            **shortened(TextPairsConfig, model),
        }
        if _TYPES in model.required:
            fields["token_types"] = True
            names |= {_TYPES}
        files = 'JSONL files of {"query": …, "passage": …}: a path or a pattern'
        return StarterData(fields, names, files)

    def problems(self, config: TextPairsConfig, context: SourceContext) -> list[str]:
        """Return missing files, a missing tokenizer, fields without effect, and invalid records.

        Of large files, the first and last records are checked.
        """
        files = match_files(config.path, context)
        return [
            *draw_problems(config),
            *tokenizer_problems(config.tokenizer, context),
            *missing_token_problems(config.tokenizer, context),
            *file_problems(config.path, context),
            *_sample_problems(files),
        ]

    def facts(self, config: TextPairsConfig, context: SourceContext) -> DataFacts:
        """Return the inputs, the largest token that can occur, and the labels."""
        file, shape = tokenizer_file(config.tokenizer, context), (config.sequence_length,)
        ids = InputFacts("input_ids", "int64", shape, largest_token_id(file), str(file))
        mask = InputFacts("attention_mask", "int64", shape, 1, "a mask")
        types = InputFacts(_TYPES, "int64", shape, 0, "token types")
        count = len(_read_pairs(match_files(config.path, context)))
        labels = _labels(len(draw_indices(count, config.num_samples, config.seed)))
        return DataFacts(
            (ids, mask, types) if config.token_types else (ids, mask),
            has_labels=True,
            num_samples=len(labels),
            more_inputs={} if config.token_types else {_TYPES: "token_types: true"},
            retrieval_labels=tuple(labels.tolist()),
        )

    def digest(self, config: TextPairsConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the content of the files and the tokenizer."""
        files = match_files(config.path, context)
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(mode="json", exclude={"path", "tokenizer"}),
                "files": [digest_file(file) for file in files],
                **layouts_digested(files),
                "tokenizer": digest_file(tokenizer_file(config.tokenizer, context)),
            }
        )

    def load(self, config: TextPairsConfig, context: SourceContext) -> Dataset:
        """Read the pairs, draw from them, and tokenize.

        Raises:
            DataError: a record is not a pair, there are no pairs, or the tokenizer cannot be read.
            MissingExtraError: a file's layout needs a library that is not installed.
        """
        pairs = _read_pairs(match_files(config.path, context))
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
        arrays: dict[str, Array] = {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array(
                [encoding.attention_mask for encoding in encodings], dtype=np.int64
            ),
        }
        if config.token_types:
            arrays[_TYPES] = np.zeros_like(arrays["input_ids"])
        return ArrayDataset({**arrays, "label": _labels(len(indices))}, tuple(arrays), "label")


def _labels(pairs: int) -> Array:
    """Return the labels of the samples of some pairs, int64 [2P]: passage, query, passage, …."""
    labels = np.full(2 * pairs, _NO_ANSWER, dtype=np.int64)
    labels[1::2] = np.arange(0, 2 * pairs, 2)
    return labels


def _sample_problems(files: list[Path]) -> list[str]:
    problems = ProblemList()
    for file in sampled_files(files):
        try:
            for record in sample_records(file, problems):
                _pair(record, problems)
        except CompressError as error:
            problems.add(str(error))
    return list(problems)


def _read_pairs(files: list[Path]) -> list[tuple[str, str]]:
    """Return the queries and passages of files.

    Raises:
        DataError: records are not pairs; the first of them are listed.
    """
    problems = ProblemList()
    pairs = [
        pair
        for file in files
        for record in read_records(file, problems)
        if (pair := _pair(record, problems)) is not None
    ]
    problems.raise_if_any()
    return pairs


def _pair(record: DataRecord, problems: ProblemList) -> tuple[str, str] | None:
    """Return the query and the passage of a record; None after adding a problem."""
    try:
        query, passage = (_nonblank_text(record, name) for name in ("query", "passage"))
    except RecordError as error:
        problems.add(f"{record.where}: {error}")
        return None
    return query, passage


def _nonblank_text(record: DataRecord, name: str) -> str:
    if name not in record.fields:
        keys = ", ".join(map(repr, record.fields)) or "none"
        raise RecordError(f"no field {name!r}; expected 'query' and 'passage', found {keys}")
    text = checked_text(record.fields[name], repr(name))
    if not text.strip():
        raise RecordError(f"{name!r} is blank")
    return text
