"""Messages of a conversation: roles, parts of content, and placeholders of images in text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from calibration.sources.conversations.conversation import (
    ASSISTANT,
    ImagePart,
    Message,
    TextPart,
)
from calibration.sources.conversations.image_references import (
    RecordImages,
    base64_image,
    image_part,
)
from calibration.sources.records.record import (
    RecordError,
    UnknownKeysError,
    checked_text,
    json_type,
)

_ROLES = {
    "system": "system",
    "developer": "system",  # the name that newer models of OpenAI have for it
    "user": "user",
    "human": "user",
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
}
_TOOL_ROLES = frozenset({"tool", "function", "function_call", "observation", "ipython"})
_REFUSED = {
    "tools": "tool definitions",
    "functions": "tool definitions",
    "tool_calls": "tool calls",
    "function_call": "tool calls",
    "video": "videos",
    "videos": "videos",
    "audio": "audio",
    "audios": "audio",
}
_METADATA = frozenset({"id", "source", "dataset", "category", "language", "metadata"})
_MEDIA = ("image", "img", "picture", "video", "audio")
_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
_IMAGE_TYPES = frozenset({"image", "image_url", "input_image"})
_IMAGE_KEYS = ("image", "image_url", "path", "url", "base64", "source")
_PLACEHOLDER = re.compile(r"(<image>|<img>[^<>\n]+</img>)")


def check_keys(
    fields: Mapping[str, Any], known: Collection[str], ignored: Collection[str] = ()
) -> None:
    """Check that everything in an object is read or is metadata.

    Metadata are the keys `id`, `source`, `dataset`, `category`, `language`, `metadata`, keys that
    start with `_` or end in `_id` (if they name no medium), and keys with a number, true, false,
    null or nothing as value.

    Raises:
        RecordError: tools, videos or audio are there.
        UnknownKeysError: other keys are there; the message names them.
    """
    unknown = [
        key
        for key, value in fields.items()
        if key not in known and key not in ignored and not _is_metadata(key, value)
    ]
    for key in unknown:
        if key in _REFUSED:
            raise RecordError(f"{key!r} holds {_REFUSED[key]}, which are not read")
    if unknown:
        raise UnknownKeysError(unknown)


def parse_message(value: Any, folder: Path, images: RecordImages) -> Message:
    """Return a message of ``{"role", "content"}`` or ``{"from", "value"}``.

    Raises:
        RecordError: the message has another form.
    """
    if not isinstance(value, Mapping):
        raise RecordError(f"expected a message, found {json_type(value)}")
    role_key, content_key = _one_of(value, "role", "from"), _one_of(value, "content", "value")
    check_keys(value, {role_key, content_key})
    role = _role(value[role_key])
    content = value[content_key]
    if isinstance(content, str):
        return Message(role, _parts_of_text(content, folder, images))
    if not isinstance(content, list):
        raise RecordError(f"{content_key!r} is {json_type(content)}, not text or a list of parts")
    parts = [part for item in content for part in _parts_of_item(item, folder, images)]
    return Message(role, tuple(parts))


def _one_of(fields: Mapping[str, Any], *names: str) -> str:
    found = [name for name in names if name in fields]
    if len(found) != 1:
        both, either = (word.join(map(repr, names)) for word in (" and ", " or "))
        raise RecordError(f"has both {both}" if found else f"has no {either}")
    return found[0]


def _is_metadata(key: str, value: Any) -> bool:
    if value is None or isinstance(value, bool | int | float) or value in ("", [], {}):
        return True
    names_id = key.endswith("_id") and not any(medium in key.lower() for medium in _MEDIA)
    return key in _METADATA or key.startswith("_") or names_id


def _role(value: Any) -> str:
    if isinstance(value, str) and value.lower() in _ROLES:
        return _ROLES[value.lower()]
    if isinstance(value, str) and value.lower() in _TOOL_ROLES:
        raise RecordError(f"the role {value!r} belongs to tool calls, which are not read")
    known = ", ".join(_ROLES)
    found = repr(value) if isinstance(value, str) else json_type(value)
    raise RecordError(f"unknown role {found}; expected one of {known}")


def _parts_of_text(
    text: str, folder: Path, images: RecordImages
) -> tuple[TextPart | ImagePart, ...]:
    """Return the texts and images of a text with placeholders.

    A line break behind a placeholder belongs to it; at the end of a text, one before it does.
    """
    pieces = _PLACEHOLDER.split(checked_text(text, "the content"))
    if len(pieces) == 1:
        return (TextPart(text),)
    parts: list[TextPart | ImagePart] = []
    for index in range(0, len(pieces), 2):
        piece = pieces[index].removeprefix("\n") if index else pieces[index]
        if index + 3 == len(pieces) and not pieces[-1]:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append(TextPart(piece))
        if index + 1 < len(pieces):
            parts += _placeholder_image(pieces[index + 1], folder, images)
    return tuple(parts)


def _placeholder_image(text: str, folder: Path, images: RecordImages) -> Iterator[ImagePart]:
    if text != "<image>":
        yield image_part(text.removeprefix("<img>").removesuffix("</img>"), folder)
    elif (image := images.take()) is not None:
        yield image


def _parts_of_item(
    item: Any, folder: Path, images: RecordImages
) -> tuple[TextPart | ImagePart, ...]:
    """Return the parts of an item of a message's content."""
    if not isinstance(item, Mapping):
        raise RecordError(f"a part of the content is {json_type(item)}, not an object")
    kind = item.get("type")
    if kind in _TEXT_TYPES or (kind is None and "text" in item):
        check_keys(item, {"type", "text"})
        return _parts_of_text(checked_text(item.get("text"), "'text'"), folder, images)
    if kind in _IMAGE_TYPES or (kind is None and "image" in item):
        image = _image_of_item(item, folder) or images.take()
        return () if image is None else (image,)
    if not isinstance(kind, str):
        raise RecordError(f"a part of the content has no 'type'; its keys are {', '.join(item)}")
    raise RecordError(f"a part of the type {kind!r} is not read; expected text or image")


def _image_of_item(item: Mapping[str, Any], folder: Path) -> ImagePart | None:
    """Return the image that a part refers to; None if the part is a placeholder."""
    options = ("min_pixels", "max_pixels", "resized_height", "resized_width")  # of Qwen-VL
    if wrong := [name for name in options if item.get(name) is not None]:
        raise RecordError(f"unknown key {wrong[0]!r}: the image processor's config sets sizes")
    keys = [name for name in _IMAGE_KEYS if item.get(name) is not None]
    check_keys(item, {"type", "detail", *keys})
    if not keys:
        return None
    if len(keys) > 1:
        raise RecordError(f"a part names its image by {' and '.join(map(repr, keys))}")
    value = item[keys[0]]
    if keys[0] == "base64":
        return base64_image(value)
    if keys[0] == "image_url" and isinstance(value, Mapping):
        check_keys(value, {"url", "detail"})
        return image_part(_url(value), folder)
    if keys[0] == "source" and isinstance(value, Mapping):
        check_keys(value, {"type", "media_type", "data", "url"})
        return base64_image(value["data"]) if "data" in value else image_part(_url(value), folder)
    return image_part(value, folder)


def _url(image: Mapping[str, Any]) -> Any:
    if "url" not in image:
        raise RecordError(f"an image has no 'url'; its keys are {', '.join(map(str, image))}")
    return image["url"]
