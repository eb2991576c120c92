"""Generation token by token.

Shapes: V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from compressor.models.checkpoint.decoder_start import DecoderStart
from compressor.runtimes.decoding import EncoderDecoder

Array = np.ndarray[Any, Any]
Forward = Callable[[Array], Array]
"""Appends tokens, int64 [T], and returns the logits [V] after the last one."""
Choose = Callable[[Array], int]
"""Returns the next token from the logits [V], and keeps it for the choice of the ones after it."""


def read_first_tokens(decoder: EncoderDecoder, start: DecoderStart) -> tuple[list[int], Array]:
    """Run the first tokens of an encoder-decoder; return them and the logits [V] after the last.

    Args:
        decoder: an open model, whose encoder has been run.
        start: the first tokens; the language is chosen by the model where the start leaves it open.
    """
    tokens = list(start.tokens)
    if not start.languages:
        return tokens, decoder.forward(np.array(tokens, np.int64))
    logits_V = decoder.forward(np.array(tokens[:1], np.int64))
    languages = np.array(start.languages)
    tokens.insert(1, int(languages[logits_V[languages].argmax()]))
    return tokens, decoder.forward(np.array(tokens[1:], np.int64))


def generate_tokens(
    forward: Forward, logits_V: Array, choose: Choose, max_tokens: int
) -> Iterator[int]:
    """Yield up to ``max_tokens`` tokens, each after its forward pass; the caller ends earlier.

    Args:
        forward: the forward pass of a model that has read the prompt.
        logits_V: its logits after the prompt.
        choose: the choice of each token.
        max_tokens: the largest number of tokens.
    """
    for generated in range(max_tokens):
        token = choose(logits_V)
        yield token
        if generated + 1 < max_tokens:
            logits_V = forward(np.array([token], np.int64))
