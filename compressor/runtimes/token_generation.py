"""Generation token by token.

Shapes: V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from compressor.models.checkpoint.decoder_start import DecoderStart
from compressor.runtimes.decoding import Decoder

Array = np.ndarray[Any, Any]
Choose = Callable[[Array], int]
"""Returns the next token from the logits [V], and keeps it for the choice of the ones after it."""


def read_prompt(
    decoder: Decoder, start: DecoderStart, images: Mapping[str, Array] | None = None
) -> tuple[list[int], Array]:
    """Run a model on a prompt; return the prompt's tokens and the logits [V] after the last one.

    Args:
        decoder: an open model, whose encoder has been run if it has one.
        start: the tokens of the prompt.
        images: the processor's arrays of the images in the prompt.
    """
    tokens = list(start.tokens)
    if not start.languages:
        return tokens, decoder.forward(np.array(tokens, np.int64), images)
    logits_V = decoder.forward(np.array(tokens[:1], np.int64))
    languages = np.array(start.languages)
    tokens.insert(1, int(languages[logits_V[languages].argmax()]))
    return tokens, decoder.forward(np.array(tokens[1:], np.int64))


def generate_tokens(
    decoder: Decoder, logits_V: Array, choose: Choose, max_tokens: int
) -> Iterator[int]:
    """Yield up to ``max_tokens`` tokens, each after its forward pass; the caller ends earlier.

    Args:
        decoder: an open model that has read the prompt.
        logits_V: its logits after the prompt.
        choose: the choice of each token.
        max_tokens: the largest number of tokens.
    """
    for generated in range(max_tokens):
        token = choose(logits_V)
        yield token
        if generated + 1 < max_tokens:
            logits_V = decoder.forward(np.array([token], np.int64))
