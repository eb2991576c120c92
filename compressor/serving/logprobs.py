"""Log probabilities of tokens in OpenAI's two forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from compressor.generation.requests import TokenLogprob

_REPLACEMENT = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_LOWEST = -9999.0
"""Reported for tokens that a grammar excludes: JSON has no infinity."""


class TokenTexts:
    """Texts and bytes of single tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        """Return the text of a token, as far as it is one alone."""
        return str(self._tokenizer.decode([token]))

    def bytes(self, token: int) -> list[int]:
        """Return the bytes of a token, which may be a part of a character."""
        text = self.text(token)
        if _REPLACEMENT not in text:
            return list(text.encode("utf-8", "replace"))
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if match := _BYTE.fullmatch(piece):
            return [int(match[1], 16)]
        table = _bytes_of_characters()
        known = all(character in table for character in piece)
        return [table[character] for character in piece] if known else list(text.encode())


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}


def chat_logprobs(tokens: Sequence[TokenLogprob], texts: TokenTexts) -> dict[str, Any]:
    """Return the log probabilities of tokens as chat completions report them."""
    return {"content": [_chat_entry(token, texts) for token in tokens], "refusal": None}


def _chat_entry(token: TokenLogprob, texts: TokenTexts) -> dict[str, Any]:
    return {
        **_token(token.token, token.logprob, texts),
        "top_logprobs": [_token(other, value, texts) for other, value in token.alternatives],
    }


def _token(token: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    return {
        "token": texts.text(token),
        "logprob": max(logprob, _LOWEST),
        "bytes": texts.bytes(token),
    }


def completion_logprobs(tokens: Sequence[TokenLogprob], texts: TokenTexts) -> dict[str, Any]:
    """Return the log probabilities of tokens as completions report them."""
    return {
        "tokens": [texts.text(token.token) for token in tokens],
        "token_logprobs": [max(token.logprob, _LOWEST) for token in tokens],
        "top_logprobs": [
            {texts.text(other): max(value, _LOWEST) for other, value in token.alternatives}
            for token in tokens
        ],
        "text_offset": [token.text_offset for token in tokens],
    }
