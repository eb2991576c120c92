"""Conversations of files, their images, and the messages that a processor takes."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from compressor.data.pictures import check_header, without_pillow_warnings
from compressor.errors import CompressError, DataError, MissingExtraError


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


def sample_problems(files: Sequence[Path], ignored: Collection[str]) -> list[str]:
    """Return the problems of the first and last conversations of files, and of their images."""
    problems, conversations = ProblemList(), list[Conversation]()
    for file in sampled_files(files):
        try:
            conversations += _conversations(file, ignored, problems, sample=True)
        except CompressError as error:
            problems.add(str(error))
    return [*problems, *image_problems(conversations)]


def image_problems(conversations: Iterable[Conversation]) -> ProblemList:
    """Return the images whose headers cannot be read, each with its conversation."""
    problems, seen = ProblemList(), set[Path | bytes]()
    for conversation in conversations:
        for image in conversation.images:
            if image in seen:
                continue
            seen.add(image)
            try:
                with without_pillow_warnings(), _image_file(image) as file:
                    check_header(file)
            except (DataError, MissingExtraError) as error:
                problems.add(f"{conversation.where}: {error}")
    return problems


@contextmanager
def _image_file(image: Path | bytes) -> Iterator[Path]:
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
