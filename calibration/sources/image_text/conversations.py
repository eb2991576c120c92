"""Conversations of files, their images, and the messages that a processor takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from calibration.sources.conversations.conversation import (
    Conversation,
    ImagePart,
    TextPart,
)
from calibration.sources.conversations.forms import parse_conversation
from calibration.sources.records.reading import (
    is_sampled_whole,
    read_records,
    sample_records,
    sampled_files,
)
from calibration.sources.records.record import ProblemList, RecordError, UnknownKeysError
from compressor.data.pictures import check_header, open_picture, without_pillow_warnings
from compressor.errors import CompressError, DataError, MissingExtraError
from compressor.models.families.transformers.planned_template import PlannedTemplate
from compressor.models.families.transformers.processor import Processor

_MAX_THREADS = 8


def read_conversations(files: Iterable[Path], ignored: Collection[str]) -> list[Conversation]:
    """Return the conversations of files.

    Args:
        files: files of records; paths of images are relative to their folders.
        ignored: keys of records that are not read.

    Raises:
        DataError: records are no conversations, or their images are missing; the first of them are
            listed.
        MissingExtraError: a file's layout needs a library that is not installed.
    """
    problems = ProblemList()
    conversations = [
        conversation
        for file in files
        for conversation in _conversations(file, ignored, problems, sample=False)
    ]
    problems.raise_if_any()
    return conversations


def sample_problems(
    files: Sequence[Path], ignored: Collection[str], template: PlannedTemplate | None
) -> list[str]:
    """Return the problems of the first and last conversations of files, and of their images.

    Args:
        files: files of records.
        ignored: keys of records that are not read.
        template: the processor's chat template; None if it has a problem itself.
    """
    problems, conversations = ProblemList(), list[Conversation]()
    for file in sampled_files(files):
        try:
            conversations += _conversations(file, ignored, problems, sample=True)
        except CompressError as error:
            problems.add(str(error))
    if template is not None:
        for conversation in conversations:
            if reason := template.refusal(_text_only_messages(conversation)):
                problems.add(f"{conversation.where}: {reason}")
    return [*problems, *image_problems(conversations)]


def render_problems(processor: Processor, conversations: Iterable[Conversation]) -> ProblemList:
    """Return the conversations that the chat template refuses, or whose images it loses."""
    problems = ProblemList()
    for conversation in conversations:
        try:
            count = processor.count_images(_text_only_messages(conversation))
        except Exception as error:  # noqa: BLE001  templates raise any class, on purpose or not
            problems.add(f"{conversation.where}: the chat template fails: {error}")
            continue
        if count != len(conversation.images):
            problems.add(
                f"{conversation.where}: the chat template writes {count} image tokens for "
                f"{len(conversation.images)} images"
            )
    return problems


def _text_only_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the messages as a chat template takes them, without the content of images."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image"}
                for part in message.parts
            ],
        }
        for message in conversation.messages
    ]


def image_problems(conversations: Iterable[Conversation], *, decode: bool = False) -> ProblemList:
    """Return the images that cannot be read, each with its first conversation.

    Args:
        conversations: the conversations.
        decode: decode the images; by default only their headers are read.
    """
    owners: dict[Path | bytes, Conversation] = {}
    for conversation in conversations:
        for image in conversation.images:
            owners.setdefault(image, conversation)
    problems, threads = ProblemList(), min(_MAX_THREADS, os.cpu_count() or 1)
    with without_pillow_warnings(), ThreadPoolExecutor(threads) as pool:
        found = pool.map(partial(image_problem, decode=decode), owners)
        for problem, conversation in zip(found, owners.values(), strict=True):
            if problem is not None:
                problems.add(f"{conversation.where}: {problem}")
    return problems


def image_problem(image: Path | bytes, *, decode: bool) -> str | None:
    """Return the reason that an image cannot be read; None if it can."""
    with image_file(image) as file:
        try:
            if decode:
                open_picture(file)
            else:
                check_header(file)
        except (DataError, MissingExtraError) as error:
            reason = str(error)
            is_stored = isinstance(image, bytes)
            return reason.replace(str(file), "an image in the record") if is_stored else reason
    return None


@contextmanager
def image_file(image: Path | bytes) -> Iterator[Path]:
    """Yield the file of an image; that of bytes exists within the block."""
    if isinstance(image, Path):
        yield image
        return
    with tempfile.NamedTemporaryFile(prefix="image-of-the-record-") as file:
        file.write(image)
        file.flush()
        yield Path(file.name)


@contextmanager
def template_messages(conversation: Conversation) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages of a conversation as ``Processor.encode`` takes them.

    Images that the record itself holds are files within the block.
    """
    with tempfile.TemporaryDirectory(prefix="autoglm-compress-") as folder:
        names = (Path(folder) / f"image-{number}-of-the-record" for number in count(1))
        yield [
            {
                "role": message.role,
                "content": [_template_part(part, names) for part in message.parts],
            }
            for message in conversation.messages
        ]


def _template_part(part: TextPart | ImagePart, names: Iterator[Path]) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    file = part.source
    if isinstance(file, bytes):
        content, file = file, next(names)
        file.write_bytes(content)
    return {"type": "image", "path": str(file)}


def _conversations(
    file: Path, ignored: Collection[str], problems: ProblemList, *, sample: bool
) -> Iterator[Conversation]:
    """Yield the conversations of a file, and add the problems of its records."""
    has_records = False
    for record in sample_records(file, problems) if sample else read_records(file, problems):
        has_records = True
        try:
            yield parse_conversation(record, ignored=ignored)
        except UnknownKeysError as error:
            names = ", ".join([*ignored, *error.names])
            problems.add(f"{record.where}: {error}: set `ignore: [{names}]` if they are not needed")
        except RecordError as error:
            problems.add(f"{record.where}: {error}")
    is_whole = not sample or is_sampled_whole(file)
    if not has_records and is_whole and not list(problems):
        problems.add(f"{file} holds no conversation")
