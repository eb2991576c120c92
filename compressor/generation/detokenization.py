"""Text of a growing list of tokens, as soon as no later token can change it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

from compressor.errors import DataError
from compressor.foreign_files.libraries import library_errors

_UNFINISHED = "\ufffd"
"""The replacement character, which tokenizers return for an incomplete UTF-8 sequence."""
_FAILED = "the model's tokenizer cannot decode the answer"
_OPEN_CLEANUP = re.compile(r" +(?:(?:' *[vr]?|n *'?) *)?$")
"""A space, and the first letters of a text that it is removed in front of, at the end of a text.

These are the texts of ``PreTrainedTokenizerBase.clean_up_tokenization``.
"""


class Detokenizer(ABC):
    """Turns the tokens of one answer into text, one by one.

    The joined text is that of the tokenizer's ``decode``, with two exceptions: an incomplete
    character at the end is left out; and where a tokenizer with byte tokens would replace the
    characters in front of an invalid byte as well, they are kept.
    """

    @property
    @abstractmethod
    def held_characters(self) -> int:
        """Complete characters that are held back, because a later token may change them."""

    @abstractmethod
    def add(self, token: int) -> str:
        """Return the text that is certain after one more token."""

    @abstractmethod
    def finish(self) -> str:
        """Return the text that was held back."""


def open_detokenizer(tokenizer: Any, *, keep_special_tokens: bool) -> Detokenizer:
    """Return a detokenizer for one answer.

    Args:
        tokenizer: a tokenizer of transformers.
        keep_special_tokens: True to have special tokens in the text.
    """
    skip = not keep_special_tokens
    if not _decodes_as_its_library(tokenizer):
        return _WholeDecoding(tokenizer, skip)
    detokenizer = _StreamDecoding(tokenizer.backend_tokenizer, skip)
    return _Cleanup(tokenizer, detokenizer) if _cleans_up(tokenizer) else detokenizer


def _decodes_as_its_library(tokenizer: Any) -> bool:
    """Return True if ``decode`` of a tokenizer is that of the library tokenizers and a cleanup."""
    from transformers import PreTrainedTokenizerFast

    base: Any = PreTrainedTokenizerFast
    own = type(tokenizer)
    return (
        isinstance(tokenizer, base)
        and own.decode is base.decode
        and own._decode is base._decode
        and own.clean_up_tokenization is base.clean_up_tokenization
    )


def _cleans_up(tokenizer: Any) -> bool:
    """Return True if a tokenizer removes spaces in front of punctuation, as transformers decides.

    It does not with byte-pair encodings, whatever the files state, except where a second field
    forces it.
    """
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    if type(tokenizer.backend_tokenizer.model).__name__ != "BPE":
        return True
    return bool(tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output)


class _StreamDecoding(Detokenizer):
    """Incremental decoding by the library tokenizers."""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._start([])
        self._pending = 0
        """Number of the last tokens whose text is not certain yet."""

    def add(self, token: int) -> str:
        self._tokens.append(token)
        self._pending += 1
        try:
            text = self._step(token)
        except DataError:
            # An invalid byte follows valid characters in one sequence of byte tokens, and would
            # change their text. Decode without them.
            self._start(self._tokens[-self._pending :])
            text = "".join(map(self._step, self._tokens))
        if text:
            self._pending = 0
            self._length += len(text)
        return text

    @property
    def held_characters(self) -> int:
        return len(self._held_text())

    def finish(self) -> str:
        return self._held_text()

    def _held_text(self) -> str:
        """Return the complete characters of the tokens whose text is not certain yet."""
        if not self._pending:
            return ""
        with library_errors(_FAILED, DataError):
            text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=self._skip)
        return text[self._length :].rstrip(_UNFINISHED)

    def _start(self, tokens: list[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream = DecodeStream(skip_special_tokens=self._skip)
        self._tokens = tokens
        self._length = 0
        """Number of characters of these tokens that were returned."""

    def _step(self, token: int) -> str:
        with library_errors(_FAILED, DataError):
            return self._stream.step(self._tokenizer, token) or ""


class _Cleanup(Detokenizer):
    """Removal of spaces in front of punctuation, in the text of another detokenizer."""

    def __init__(self, tokenizer: Any, inner: Detokenizer) -> None:
        self._clean_up, self._inner = tokenizer.clean_up_tokenization, inner
        self._held = ""

    @property
    def held_characters(self) -> int:
        return len(self._held) + self._inner.held_characters

    def add(self, token: int) -> str:
        text = self._held + self._inner.add(token)
        end = len(text)
        while match := _OPEN_CLEANUP.search(text, 0, end):
            end = match.start()
        self._held = text[end:]
        cleaned: str = self._clean_up(text[:end])
        return cleaned

    def finish(self) -> str:
        text, self._held = self._held + self._inner.finish(), ""
        cleaned: str = self._clean_up(text)
        return cleaned


class _WholeDecoding(Detokenizer):
    """Decoding of all tokens at each step, for tokenizers with a ``decode`` of their own."""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._tokens: list[int] = []
        self._text = ""
        self._length = 0

    @property
    def held_characters(self) -> int:
        return len(self._text.rstrip(_UNFINISHED)) - self._length

    def add(self, token: int) -> str:
        self._tokens.append(token)
        before, self._text = self._text, self._decode()
        if self._text.endswith(_UNFINISHED) or not self._text.startswith(before):
            return ""
        # The text of the last token may change with the next one, as by a cleanup of spaces.
        return self._advance(len(before))

    def finish(self) -> str:
        self._text = self._text.rstrip(_UNFINISHED)
        return self._advance(len(self._text))

    def _advance(self, end: int) -> str:
        text, self._length = self._text[self._length : end], max(self._length, end)
        return text

    def _decode(self) -> str:
        with library_errors(_FAILED, DataError):
            text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=self._skip)
        return text
