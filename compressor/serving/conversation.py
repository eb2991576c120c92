"""Messages of a request as chat templates take them."""

from __future__ import annotations

import json
from typing import Any

from compressor.serving.api_errors import bad_request, unsupported
from compressor.serving.chat_request import Call, ChatRequest, ImageUrl, Message, Part
from compressor.serving.image_urls import open_image_url
from compressor.serving.limits import ServerLimits

_TEXT_TYPES = ("text", "input_text", "output_text")
_ROLES = {"developer": "system"}


def conversation(
    request: ChatRequest, limits: ServerLimits, *, takes_images: bool
) -> list[dict[str, Any]]:
    """Return the messages with decoded images, as ``PromptEncoder.encode_chat`` takes them.

    Args:
        request: the request.
        limits: bounds of images.
        takes_images: True if the model does.

    Raises:
        ApiError: 400, which names the message at fault.
        DataError: an image cannot be decoded.
    """
    images = sum(
        part.type == "image_url"
        for message in request.messages
        if isinstance(message.content, list)
        for part in message.content
    )
    if images > limits.max_images:
        raise bad_request(
            f"messages: {images} images, and the server takes at most {limits.max_images}",
            "messages",
        )
    return [
        _message(message, f"messages[{number}]", limits.max_pixels, takes_images)
        for number, message in enumerate(request.messages)
    ]


def _message(message: Message, place: str, max_pixels: int, takes_images: bool) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role)
    result: dict[str, Any] = {
        "role": role,
        "content": _content(message, place, max_pixels, takes_images),
    }
    if message.tool_calls:
        result["tool_calls"] = [
            _call(call, f"{place}.tool_calls[{number}]")
            for number, call in enumerate(message.tool_calls)
        ]
    elif message.content is None and message.refusal is None:
        raise bad_request(f"{place}.content: a message needs a content", f"{place}.content")
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        result["name"] = message.name
    thinking = message.reasoning_content or message.reasoning
    if thinking is not None:
        result["reasoning_content"] = thinking
    return result


def _content(
    message: Message, place: str, max_pixels: int, takes_images: bool
) -> str | list[dict[str, Any]]:
    if not isinstance(message.content, list):
        return message.content or message.refusal or ""
    return [
        _part(part, f"{place}.content[{number}]", max_pixels, takes_images)
        for number, part in enumerate(message.content)
    ]


def _part(part: Part, place: str, max_pixels: int, takes_images: bool) -> dict[str, Any]:
    if part.type in _TEXT_TYPES or part.type == "refusal":
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise bad_request(f"{place}.text: missing", f"{place}.text")
        return {"type": "text", "text": text}
    if part.type != "image_url":
        raise unsupported(
            f"{place}.type",
            f"{place}.type: parts of the type {part.type[:40]!r} are not supported: send text or "
            "image_url",
        )
    if part.image_url is None:
        raise bad_request(f"{place}.image_url: missing", f"{place}.image_url")
    if not takes_images:
        raise unsupported(place, f"{place}: the model that is served takes no images")
    address = part.image_url
    url = address.url if isinstance(address, ImageUrl) else address
    return {"type": "image", "image": open_image_url(url, f"{place}.image_url", max_pixels)}


def _call(call: Call, place: str) -> dict[str, Any]:
    """Return an earlier call with its arguments as an object, as templates iterate over them."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise bad_request(
                f"{place}.function.arguments: no valid JSON: {error}",
                f"{place}.function.arguments",
            ) from error
        if not isinstance(arguments, dict):
            raise bad_request(
                f"{place}.function.arguments: expected a JSON object",
                f"{place}.function.arguments",
            )
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or "", "type": "function", "function": function}
