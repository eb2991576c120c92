"""Data source ``text-samples``: one text, or pair of texts, per sample, with or without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

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
from calibration.sources.records.record import ProblemList
from calibration.sources.starter import shortened, tokenizer_path
from calibration.sources.text_sample_encoding import (
    DECODER_TOKENS,
    LABEL,
    MASK,
    TOKENS,
    TYPES,
    Encoding,
    encode_samples,
)
from calibration.sources.text_sample_records import Sample, SampleFields, read_sample
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

_CONFIGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files beside the tokenizer that name special tokens and classes."""


class TextSamplesConfig(SourceConfig):
    """Config of the data source ``text-samples``."""

    path: str
    """A file of records, or a glob pattern of such files; relative to pipeline.yaml. They end in
    `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`, and all but parquet may be
    compressed by gzip."""
    tokenizer: str
    """A `tokenizer.json`, or a folder that holds one, such as a checkpoint's; relative to
    pipeline.yaml. Class names and special tokens are read from the config files beside it."""
    field: str = "text"
    """Key of a record's text. For labels of single words it holds a list of words."""
    pair: str | None = None
    """Key of a second text that is encoded behind the first, such as the passage of a reranker."""
    label: str | None = None
    """Key of the label: the number or the name of a class; numbers with a decimal point for one
    score per sample; or a list of classes, one for each word, of which the first token of the word
    gets the label and the others -100."""
    target: str | None = None
    """Key of the text that an encoder-decoder generates: `decoder_input_ids` and its labels."""
    masked: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Part of the tokens, such as 0.15, that are replaced by the mask token and are the labels of a
    masked language model; all other labels are -100."""
    token_types: bool = False
    """Add `token_type_ids`: 0 for the first text, 1 for the second."""
    sequence_length: Annotated[int, Field(ge=3, le=1 << 16)] = 128
    """Largest number of tokens per sample: longer texts are truncated, and all are padded to the
    longest of the set."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of samples, drawn at random; all by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` samples, and of the masked tokens."""

    @model_validator(mode="after")
    def _check_labels(self) -> TextSamplesConfig:
        given = [name for name in ("label", "target", "masked") if getattr(self, name) is not None]
        if len(given) > 1:
            names = " and ".join(f"`{name}`" for name in given)
            raise ValueError(f"{names} give different labels: set one of them")
        return self


class TextSamples(DataSource[TextSamplesConfig]):
    """Texts for encoders and encoder-decoders, one record per sample.

    `input_ids` and `attention_mask`, int64 [N, T], with `token_types` also `token_type_ids`. The
    `label` is int64 [N] for classes, float32 [N] for scores, int64 [N, T] for words or masked
    tokens; with `target` int64 [N, D] beside `decoder_input_ids`. Labels that are not scored are
    -100.
    """

    name = "text-samples"
    Config = TextSamplesConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return samples for a model that takes tokens and their mask."""
        taken = {TOKENS, MASK} & {facts.name for facts in model.inputs}
        if TOKENS not in taken or MASK not in taken:
            return None
        fields: dict[str, Any] = {
            "path": "texts/*.jsonl",
            "tokenizer": tokenizer_path(model),
            **shortened(TextSamplesConfig, model),
        }
        if TYPES in model.required:
            fields["token_types"] = True
            taken.add(TYPES)
        if DECODER_TOKENS in model.required:
            fields["target"] = "target"
            taken.add(DECODER_TOKENS)
        files = 'files of records {"text": …}'
        return StarterData(fields, frozenset(taken), files)

    def problems(self, config: TextSamplesConfig, context: SourceContext) -> list[str]:
        """Return missing files, a missing tokenizer, fields without effect, and invalid records.

        Of large files, the first and last records are checked.
        """
        seeded = [] if config.masked is not None else draw_problems(config)
        problems = ProblemList()
        for file in sampled_files(match_files(config.path, context)):
            try:
                for record in sample_records(file, problems):
                    read_sample(record, _fields(config), problems)
            except CompressError as error:
                problems.add(str(error))
        return [
            *seeded,
            *tokenizer_problems(config.tokenizer, context),
            *missing_token_problems(config.tokenizer, context),
            *file_problems(config.path, context),
            *problems,
        ]

    def facts(self, config: TextSamplesConfig, context: SourceContext) -> DataFacts:
        """Return the inputs and the largest token that can occur."""
        file = tokenizer_file(config.tokenizer, context)
        largest = largest_token_id(file)
        inputs = [
            InputFacts(TOKENS, "int64", (None,), largest, str(file)),
            InputFacts(MASK, "int64", (None,), 1, "a mask"),
        ]
        if config.token_types:
            inputs.append(InputFacts(TYPES, "int64", (None,), 1, "token types"))
        if config.target is not None:
            inputs.append(InputFacts(DECODER_TOKENS, "int64", (None,), largest, str(file)))
        has_labels = any((config.label, config.target, config.masked))
        more = {} if config.token_types else {TYPES: "token_types: true"}
        return DataFacts(tuple(inputs), has_labels=has_labels, more_inputs=more)

    def digest(self, config: TextSamplesConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the content of the files and the tokenizer."""
        files = match_files(config.path, context)
        file = tokenizer_file(config.tokenizer, context)
        beside = [file.parent / name for name in _CONFIGS]
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(mode="json", exclude={"path", "tokenizer"}),
                "files": [digest_file(file) for file in files],
                **layouts_digested(files),
                "tokenizer": digest_file(file),
                "configs": {other.name: digest_file(other) for other in beside if other.is_file()},
            }
        )

    def load(self, config: TextSamplesConfig, context: SourceContext) -> Dataset:
        """Read the records, draw from them, and tokenize.

        Raises:
            DataError: a record does not have the form that the config states, there are no
                records, or the tokenizer cannot be read or lacks a token that is needed.
            MissingExtraError: a file's layout needs a library that is not installed.
        """
        samples = _read(match_files(config.path, context), _fields(config))
        if not samples:
            raise DataError(f"{config.path} holds no records")
        drawn = [
            samples[index] for index in draw_indices(len(samples), config.num_samples, config.seed)
        ]
        encoding = Encoding(
            tokenizer_file(config.tokenizer, context),
            config.sequence_length,
            config.token_types,
            config.masked,
            config.seed,
        )
        arrays, classes = encode_samples(drawn, encoding)
        if config.target is not None:
            return _Targets(arrays, encoding.tokenizer, [str(sample.target) for sample in drawn])
        inputs = tuple(name for name in arrays if name != LABEL)
        return ArrayDataset(arrays, inputs, LABEL if LABEL in arrays else None, classes)


class _Targets(ArrayDataset):
    """Texts, each with the text that an encoder-decoder generates."""

    def __init__(self, arrays: Mapping[str, Array], tokenizer: Path, texts: Sequence[str]) -> None:
        super().__init__(arrays, tuple(name for name in arrays if name != LABEL), LABEL)
        self.texts, self._tokenizer = texts, open_tokenizer(tokenizer)

    def spell(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


def _fields(config: TextSamplesConfig) -> SampleFields:
    return SampleFields(config.field, config.pair, config.label, config.target)


def _read(files: list[Path], fields: SampleFields) -> list[Sample]:
    """Return the samples of files.

    Raises:
        DataError: records do not have the form that the fields state; the first of them are listed.
    """
    problems = ProblemList()
    samples = [
        sample
        for file in files
        for record in read_records(file, problems)
        if (sample := read_sample(record, fields, problems)) is not None
    ]
    problems.raise_if_any()
    return samples
