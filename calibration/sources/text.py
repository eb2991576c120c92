"""Data source ``text``: windows of tokens, or of bytes, from files of text or records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.arrays import ArrayDataset, draw_indices, draw_problems
from calibration.sources.conversations.conversation import Conversation
from calibration.sources.files import (
    file_problems,
    match_files,
    missing_token_problems,
    open_tokenizer,
    tokenizer_file,
    tokenizer_problems,
)
from calibration.sources.records.encoding import read_text
from calibration.sources.records.reading import (
    RECORD_SUFFIXES,
    holds_records,
    layouts_digested,
    sampled_files,
    starts_with_record,
)
from calibration.sources.records.record import ProblemList
from calibration.sources.starter import shortened, tokenizer_path
from calibration.sources.text_contents import (
    ChatRenderer,
    FileTexts,
    holds_conversations,
    planned_chat_problems,
    read_contents,
)
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
from compressor.models.checkpoint.tokenizer_json import has_saved_limits, largest_token_id
from compressor.models.families.transformers.chat_templates import chat_template_files

Tokens = np.ndarray[Any, np.dtype[np.int64]]


class TextConfig(SourceConfig):
    """Config of the data source ``text``."""

    path: str
    """A file, or a glob pattern such as `books/*.txt`; relative to pipeline.yaml. Files that end in
    `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet` hold records; other files are text as
    a whole. All but parquet may be compressed by gzip. Text is UTF-8, or what its byte order mark
    declares."""
    field: str = "text"
    """Key of a record's text, or of its list of messages. By default `text`, or a conversation:
    `messages` or `conversations` in the forms of OpenAI, transformers or ShareGPT, or
    `instruction`, `input` and `output`. Conversations are rendered by the chat template in the
    tokenizer's folder."""
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

    Windows are cut from the whole file: its text, the texts of its records joined by line breaks,
    or its conversations one after the other. Start tokens that a chat template writes are left out,
    since each window has them.
    """

    name = "text"
    Config = TextConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return windows of the model's tokens, or of bytes; None if it takes neither."""
        fields: dict[str, Any] = {"path": "texts/*.txt", **shortened(TextConfig, model)}
        files = "texts, or JSONL files: a path or a pattern"
        if model.named("input_ids") is not None:
            fields["tokenizer"] = tokenizer_path(model)
            return StarterData(fields, frozenset({"input_ids"}), files)
        if model.named("tokens") is not None:
            return StarterData(fields, frozenset({"tokens"}), files)
        return None

    def problems(self, config: TextConfig, context: SourceContext) -> list[str]:
        """Return missing and empty files, a missing tokenizer, and fields without effect.

        The first and last records of each file are checked too.
        """
        problems = draw_problems(config) + file_problems(config.path, context)
        if config.tokenizer is not None:
            problems += tokenizer_problems(config.tokenizer, context)
            problems += missing_token_problems(config.tokenizer, context)
        files = match_files(config.path, context)
        if files and "field" in config.model_fields_set and not any(map(holds_records, files)):
            problems.append(
                f"`field` has no effect: no file ends in one of {RECORD_SUFFIXES}; leave it out"
            )
        empty = [file for file in files if not file.stat().st_size]
        problems += [f"{file} is empty" for file in empty]
        return problems + _sample_problems(
            config, context, [file for file in files if file not in empty]
        )

    def facts(self, config: TextConfig, context: SourceContext) -> DataFacts:
        """Return the inputs and the largest token that can occur."""
        shape = (config.sequence_length,)
        if config.tokenizer is None:
            tokens = InputFacts("tokens", "int64", shape, 256, "UTF-8 bytes plus 1")
            return DataFacts((tokens,), has_labels=False)
        file = tokenizer_file(config.tokenizer, context)
        ids = InputFacts("input_ids", "int64", shape, largest_token_id(file), str(file))
        return DataFacts((ids,), has_labels=True)

    def digest(self, config: TextConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the content of the files and the tokenizer."""
        files = match_files(config.path, context)
        facts = {
            "version": 2,
            "config": config.model_dump(mode="json", exclude={"path", "tokenizer"}),
            "files": [digest_file(file) for file in files],
            **layouts_digested(files),
        }
        if config.tokenizer is not None:
            tokenizer = tokenizer_file(config.tokenizer, context)
            facts["tokenizer"] = digest_file(tokenizer)
            if has_saved_limits(tokenizer):
                facts["limits"] = "ignored"  # earlier versions cut texts at them
            if any(holds_conversations(file, _explicit_field(config)) for file in files):
                facts["conversations"] = 1  # increase it when the same conversation is read anew
                facts["chat_template"] = {
                    file.name: digest_file(file) for file in chat_template_files(tokenizer.parent)
                }
        return digest_json(facts)

    def load(self, config: TextConfig, context: SourceContext) -> Dataset:
        """Read the files, cut them into windows, and draw from the windows.

        Raises:
            DataError: a file is not text, a record has none, no file fills a window, the tokenizer
                cannot be read, or its start tokens fill the window.
            MissingExtraError: a file's layout needs a library that is not installed.
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

        def encode_text(text: str, rendered: bool) -> Tokens:
            tokens = encode(text)
            has_start = rendered and np.array_equal(tokens[: len(start)], start)
            return tokens[len(start) :] if has_start else tokens

        # One token more than the window, for the label of the last.
        windows = _windows(config, context, encode_text, 1 - len(start))
        windows = np.concatenate([np.tile(start, (len(windows), 1)), windows], axis=1)
        arrays = {"input_ids": windows[:, :-1], "label": windows[:, 1:]}
        return ArrayDataset(arrays, ("input_ids",), "label")


def _explicit_field(config: TextConfig) -> str | None:
    """Return the field that the config names; None if it has its default."""
    return config.field if "field" in config.model_fields_set else None


def _sample_problems(config: TextConfig, context: SourceContext, files: list[Path]) -> list[str]:
    """Return the problems of the first and last records, and of a missing chat template."""
    problems, conversations = ProblemList(), list[Conversation]()
    for file in sampled_files(files):
        try:
            if not holds_records(file):
                if starts_with_record(file):
                    context.note(
                        f"{file} starts with a JSON record, and is read as text; name it "
                        f"{file.name}.jsonl to read its records"
                    )
                continue
            contents = read_contents(file, _explicit_field(config), problems, sample=True)
            conversations += [item for item in contents if isinstance(item, Conversation)]
        except CompressError as error:
            problems.add(str(error))
    if not conversations:
        return list(problems)
    tokenizer = None if config.tokenizer is None else tokenizer_file(config.tokenizer, context)
    return [*problems, *planned_chat_problems(tokenizer, conversations)]


def _windows(
    config: TextConfig,
    context: SourceContext,
    encode: Callable[[str, bool], Tokens],
    extra_length: int,
) -> Tokens:
    """Return the windows that are drawn, int64 [N, sequence_length + extra_length]."""
    files = match_files(config.path, context)
    length = config.sequence_length + extra_length
    windows = []
    for number, texts in enumerate(_texts(config, context, files), start=1):
        tokens = np.concatenate([encode(text, texts.rendered) for text in texts.texts])
        count = len(tokens) // length
        windows.append(tokens[: count * length].reshape(count, length))
        context.progress("files", number, len(files))
    pool = np.concatenate(windows) if windows else np.empty((0, length), dtype=np.int64)
    if not len(pool):
        unit = "bytes" if config.tokenizer is None else "tokens"
        raise DataError(f"no file of {config.path} holds a window of {length} {unit}")
    return pool[draw_indices(len(pool), config.num_samples, config.seed)]


def _texts(config: TextConfig, context: SourceContext, files: list[Path]) -> list[FileTexts]:
    """Return the texts of all files.

    Raises:
        DataError: records have no text, or a chat template is missing or refuses conversations;
            the first of them are listed.
    """
    problems, texts = ProblemList(), []
    renderer: ChatRenderer | None = None
    for file in files:
        if not holds_records(file):
            texts.append(FileTexts([read_text(file)]))
            continue
        contents = list(read_contents(file, _explicit_field(config), problems))
        plain = [content for content in contents if isinstance(content, str)]
        conversations = [content for content in contents if isinstance(content, Conversation)]
        if conversations:
            renderer = renderer or _open_renderer(config, context)
            texts.append(FileTexts(renderer.render_all(conversations, problems), rendered=True))
        else:
            texts.append(FileTexts(["\n".join(plain)]))
            _note_blank_texts(file, plain, context)
    problems.raise_if_any()
    return texts


def _open_renderer(config: TextConfig, context: SourceContext) -> ChatRenderer:
    tokenizer = None if config.tokenizer is None else tokenizer_file(config.tokenizer, context)
    return ChatRenderer(tokenizer)


def _note_blank_texts(file: Path, texts: list[str], context: SourceContext) -> None:
    blank = sum(not text.strip() for text in texts)
    if blank:
        context.note(f"{file}: {blank} of {len(texts)} texts are blank; they stay blank lines")


def _bytes(text: str, rendered: bool) -> Tokens:  # noqa: ARG001  texts of bytes are not rendered
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
