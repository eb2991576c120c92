"""Texts and conversations of the files that the data source ``text`` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from calibration.sources.conversations.conversation import Conversation
from calibration.sources.conversations.forms import FORM_KEYS, parse_conversation
from calibration.sources.records.reading import (
    holds_records,
    is_sampled_whole,
    read_records,
    sample_records,
)
from calibration.sources.records.record import (
    DataRecord,
    ProblemList,
    RecordError,
    UnknownKeysError,
    checked_text,
    json_type,
)
from compressor.errors import DataError
from compressor.models.families.transformers.chat_templates import (
    chat_template_problems,
    load_tokenizer,
    render_chat,
    with_fixed_date,
)
from compressor.models.families.transformers.planned_template import PlannedTemplate

_TEXT = "text"
"""Key of the text in a record by default."""
_READ_WITH_A_CONVERSATION = frozenset({"system", "image", "images"})


@dataclass(frozen=True, slots=True)
class FileTexts:
    """Texts of one file."""

    texts: list[str]
    rendered: bool = False
    """True if a chat template wrote them, with the special tokens of the text."""


def read_contents(
    file: Path, field: str | None, problems: ProblemList, *, sample: bool = False
) -> Iterator[str | Conversation]:
    """Yield the text or conversation of each record of a file.

    The first record decides which of them the file holds.

    Args:
        file: a file of records.
        field: key of the text or of the list of messages; None for the keys that are known.
        problems: the problems of records are added here.
        sample: read only the first and last records.

    Raises:
        DataError: the file as a whole cannot be read.
        MissingExtraError: its layout needs a library that is not installed.
    """
    records = sample_records(file, problems) if sample else read_records(file, problems)
    kind: type | None = None
    for record in records:
        try:
            content = _content(record, field)
            kind = type(content) if kind is None else kind
            if kind is not type(content):
                names = ("a conversation", "a text")
                held, first = names if kind is str else reversed(names)
                raise RecordError(f"{held}, but the file's first record is {first}")
        except RecordError as error:
            problems.add(f"{record.where}: {error}")
        else:
            yield content
    if kind is None and not list(problems) and (not sample or is_sampled_whole(file)):
        problems.add(f"{file} holds no records")


def holds_conversations(file: Path, field: str | None) -> bool:
    """Return True if a file's first record is a conversation."""
    if not holds_records(file):
        return False
    sample = read_contents(file, field, ProblemList(), sample=True)
    everything = read_contents(file, field, ProblemList())  # read only if the sample is empty
    return isinstance(next(chain(sample, everything), None), Conversation)


def _content(record: DataRecord, field: str | None) -> str | Conversation:
    """Return the text or the conversation of a record.

    Raises:
        RecordError: the record has neither, or both, or an image.
    """
    fields = record.fields
    key = field if field is not None else _known_key(record)
    if key not in fields:
        keys = ", ".join(map(repr, fields)) or "none"
        raise RecordError(f"no field {key!r}; the record has the fields {keys}: set `field`")
    value = fields[key]
    if field is None:
        is_conversation, ignored = key != _TEXT, frozenset[str]()
    else:
        is_conversation = isinstance(value, list)
        ignored = frozenset(fields) - _READ_WITH_A_CONVERSATION
    if not is_conversation:
        return checked_text(value, repr(key))
    if isinstance(value, list) and value and not any(isinstance(item, dict) for item in value):
        raise RecordError(f"{key!r} is {json_type(value)}, not text or a list of messages")
    try:
        conversation = parse_conversation(record, key, ignored)
    except UnknownKeysError as error:
        raise RecordError(f"{error}: set `field: {key}` to read that key alone") from error
    if conversation.images:
        raise RecordError("holds an image, which `text` does not read: use `source: image-text`")
    return conversation


def _known_key(record: DataRecord) -> str:
    """Return the only known key of a text or conversation that a record has."""
    found = [key for key in (_TEXT, *FORM_KEYS) if record.fields.get(key) is not None]
    if len(found) > 1:
        keys = " and ".join(map(repr, found))
        raise RecordError(f"has {keys}: set `field` to the one to read")
    return found[0] if found else _TEXT


class ChatRenderer:
    """Renders conversations with the chat template of a tokenizer's folder."""

    def __init__(self, tokenizer: Path | None) -> None:
        """Open the tokenizer.

        Args:
            tokenizer: the tokenizer's file; None for bytes.

        Raises:
            DataError: there is no tokenizer or no chat template, or it cannot be opened.
        """
        if tokenizer is None or chat_problems(tokenizer):
            raise DataError("; ".join(chat_problems(tokenizer)))
        self._tokenizer = load_tokenizer(tokenizer.parent)
        self._template: str = with_fixed_date(self._tokenizer.get_chat_template())

    def render_all(self, conversations: Sequence[Conversation], problems: ProblemList) -> list[str]:
        """Return conversations as texts, and add those that the template refuses."""
        texts = []
        for conversation in conversations:
            try:
                texts.append(self._render(conversation))
            except RecordError as error:
                problems.add(f"{conversation.where}: {error}")
        return texts

    def _render(self, conversation: Conversation) -> str:
        messages = _text_messages(conversation)
        try:
            text = render_chat(self._tokenizer, messages, template=self._template)
        except Exception as error:  # templates raise any class, on purpose or not
            raise RecordError(f"the chat template fails: {error}") from error
        if not text.strip():
            raise RecordError("the chat template renders nothing")
        return text


def _text_messages(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in conversation.messages]


def planned_chat_problems(
    tokenizer: Path | None, conversations: Sequence[Conversation]
) -> list[str]:
    """Return the problems of a set of conversations that show without transformers.

    Args:
        tokenizer: the tokenizer's file; None for bytes.
        conversations: the first and last conversations.
    """
    problems = ProblemList()
    try:
        found = chat_problems(tokenizer)
        if tokenizer is None or found:
            return found
        template = PlannedTemplate(tokenizer.parent)
    except DataError as error:
        return [str(error)]
    for conversation in conversations:
        if reason := template.refusal(_text_messages(conversation)):
            problems.add(f"{conversation.where}: {reason}")
    return list(problems)


def chat_problems(tokenizer: Path | None) -> list[str]:
    """Return a message if the tokenizer of a set of conversations cannot render them.

    Args:
        tokenizer: the tokenizer's file; None for bytes.
    """
    if tokenizer is None:
        return ["conversations need a chat template: set `tokenizer` to a folder that has one"]
    if tokenizer.name != "tokenizer.json":
        return [f"conversations need a tokenizer's folder, and `tokenizer` names {tokenizer}"]
    return chat_template_problems(tokenizer.parent)
