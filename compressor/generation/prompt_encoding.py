"""Texts and conversations as the tokens and image arrays of one model.

Shapes: T prompt tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from compressor.errors import DataError, UsageError
from compressor.foreign_files.libraries import library_errors
from compressor.models.families.transformers.chat_templates import load_tokenizer, render_chat
from compressor.models.families.transformers.processor import Processor

Array = np.ndarray[Any, Any]
Message = Mapping[str, Any]
_PROBE = "autoglm"
_NAMED_TOKENS = 5
"""Tokens beyond the vocabulary that an error names."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """The tokens of a prompt, and the processor's arrays if it has images."""

    token_ids_T: Array
    """int64."""
    image_arrays: Mapping[str, Array] | None = None
    """None for a prompt without images."""
    pictures: tuple[bytes, ...] = ()
    """Digest of each picture, in order."""


class PromptEncoder:
    """Turns texts and conversations into tokens; may be used by several threads.

    Attributes:
        tokenizer: the tokenizer of transformers.
        vocabulary: number of tokens of the model; None while it is not known.
        processor: the processor for images; None if it was not opened.
        has_chat_template: True if conversations can be encoded.
    """

    def __init__(
        self, folder: Path, vocabulary: int | None, *, takes_images: bool, feature_bytes: int = 0
    ) -> None:
        """Open the tokenizer, and the processor if prompts may have images.

        Args:
            folder: the model's folder.
            vocabulary: number of tokens of the model; None if it is not known.
            takes_images: open the processor.
            feature_bytes: bytes of the arrays of pictures that are kept for pictures sent again.

        Raises:
            DataError: files are missing, or cannot be opened.
        """
        self._folder, self.vocabulary = folder, vocabulary
        self.tokenizer: Any = load_tokenizer(folder)
        self.processor = Processor(folder, cache_bytes=feature_bytes) if takes_images else None
        self.has_chat_template = bool(self.tokenizer.chat_template or self.processor)
        self._lock = threading.Lock()

    def encode_text(self, text: str) -> TokenizedPrompt:
        """Return a text to continue, as the tokenizer encodes it.

        Raises:
            UsageError: the text has no tokens.
            DataError: the tokenizer fails, or gives tokens that the model lacks.
        """
        with (
            self._lock,
            library_errors(
                f"the tokenizer of {self._folder} cannot encode the prompt",
                DataError,
                "copy the checkpoint's tokenizer again",
            ),
        ):
            ids = self.tokenizer(text)["input_ids"]
        return self.encode_tokens(ids)

    def encode_tokens(self, token_ids: Sequence[int]) -> TokenizedPrompt:
        """Return token ids as a prompt.

        Raises:
            UsageError: there are none.
            DataError: the model lacks some.
        """
        if not len(token_ids):
            raise UsageError("the prompt is empty", remedy="give some text")
        check_tokens(token_ids, self.vocabulary, self.tokenizer, self._folder)
        return TokenizedPrompt(np.array(token_ids, np.int64))

    def encode_chat(
        self,
        messages: Sequence[Message],
        template_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> TokenizedPrompt:
        r"""Return a conversation with the start of the next answer.

        The text parts of a message without images are joined by ``"\n"`` where the template takes
        texts, as vLLM and llama.cpp do; a template that goes through a list of parts gets the list.

        Args:
            messages: each content is a text or a list of parts, ``{"type": "text", "text": …}``,
                ``{"type": "image", "image": …}`` with an RGB picture of Pillow, or
                ``{"type": "image", "path": …}``.
            template_options: variables of the chat template, such as ``tools``.

        Raises:
            UsageError: there is no chat template, it or the processor refuses the conversation, or
                the model takes no images.
            DataError: the tokenizer gives tokens that the model lacks.
        """
        if not self.has_chat_template:
            raise UsageError(
                "the model has no chat template",
                remedy="send a text to /v1/completions, or copy the checkpoint's "
                "chat_template.jinja beside its tokenizer",
            )
        messages = [self._normalized(message) for message in messages]
        if any(map(_has_images, messages)):
            return self._encode_images(messages, template_options)
        with (
            self._lock,
            library_errors("the chat template refuses the conversation", UsageError),
        ):
            text = render_chat(
                self._template_owner,
                messages,
                add_generation_prompt=True,
                template_options=template_options,
            )
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.encode_tokens(ids)

    def _encode_images(
        self, messages: Sequence[Message], template_options: Mapping[str, Any]
    ) -> TokenizedPrompt:
        if self.processor is None:
            raise UsageError("the model takes no images")
        with (
            self._lock,
            library_errors("the processor cannot encode the conversation", UsageError),
        ):
            encoding = self.processor.encode(
                messages, add_generation_prompt=True, template_options=template_options
            )
        prompt = self.encode_tokens(encoding.input_ids.tolist())
        return TokenizedPrompt(prompt.token_ids_T, encoding.arrays, encoding.pictures)

    def _normalized(self, message: Message) -> Message:
        """Return a message whose content has the form that the template takes."""
        content = message.get("content")
        if self._takes_texts and isinstance(content, list) and not _has_images(message):
            return {**message, "content": "\n".join(part["text"] for part in content)}
        if not self._takes_texts and isinstance(content, str):
            return {**message, "content": [{"type": "text", "text": content}]}
        return message

    @cached_property
    def _takes_texts(self) -> bool:
        """True if the template writes a content that is a text; some go through lists alone."""
        try:
            text = render_chat(self._template_owner, [{"role": "user", "content": _PROBE}])
        except Exception:  # noqa: BLE001  it refuses this conversation: the real one decides
            return True
        return _PROBE in text

    @property
    def _template_owner(self) -> Any:
        """The tokenizer, or the processor if only it has a chat template."""
        if self.tokenizer.chat_template or self.processor is None:
            return self.tokenizer
        return self.processor.processor


def check_tokens(
    token_ids: Sequence[int], vocabulary: int | None, tokenizer: Any, folder: Path
) -> None:
    """Check that a model has a row in its embedding for every token of a prompt.

    Args:
        token_ids: the tokens.
        vocabulary: number of tokens of the model; None if it is not known.
        tokenizer: its tokenizer.
        folder: its folder.

    Raises:
        DataError: tokens are missing; the message names the first ones.
    """
    if vocabulary is None:
        return
    ids_T = np.asarray(token_ids, np.int64)
    beyond: list[int] = np.unique(ids_T[(ids_T < 0) | (ids_T >= vocabulary)]).tolist()
    if not beyond:
        return
    names = {token: text for text, token in tokenizer.get_vocab().items() if token in beyond}
    described = ", ".join(
        f"{names[token]!r} ({token})" if token in names else str(token)
        for token in beyond[:_NAMED_TOKENS]
    )
    raise DataError(
        f"the prompt has tokens that the model has no row for: {described}; its embedding has "
        f"{vocabulary} rows",
        remedy=f"if a text gives them, put the tokenizer of this model into {folder}, or resize "
        "the embedding in transformers: `model.resize_token_embeddings(len(tokenizer))`",
    )


def _has_images(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(part["type"] == "image" for part in content)
