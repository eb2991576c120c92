"""Generation token by token, with the rules that a model's files state.

Shapes: V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compressor.models.checkpoint.decoder_start import DecoderStart
from compressor.models.checkpoint.generation_rules import GenerationRules
from compressor.runtimes.decoding import Decoder

Array = np.ndarray[Any, Any]
Choose = Callable[[Array], int]
"""Returns the next token from the logits [V]."""


def most_probable(logits_V: Array) -> int:
    """Return the token with the largest logit; of equal logits the first."""
    return int(logits_V.argmax())


def generate_tokens(
    decoder: Decoder,
    start: DecoderStart,
    rules: GenerationRules,
    max_tokens: int,
    choose: Choose = most_probable,
    images: Mapping[str, Array] | None = None,
) -> Iterator[int]:
    """Yield up to ``max_tokens`` tokens, each after its forward pass; the caller ends earlier.

    Args:
        decoder: an open model, whose encoder has been run if it has one.
        start: the tokens of the prompt.
        rules: tokens that may not follow.
        max_tokens: the largest number of tokens.
        choose: the choice of a token among those that may follow.
        images: the processor's arrays of the images in the prompt.
    """
    tokens = list(start.tokens)
    if start.languages:
        logits_V = decoder.forward(np.array(tokens[:1], np.int64))
        languages = np.array(start.languages)
        tokens.insert(1, int(languages[logits_V[languages].argmax()]))
        logits_V = decoder.forward(np.array(tokens[1:], np.int64))
    else:
        logits_V = decoder.forward(np.array(tokens, np.int64), images)
    for generated in range(max_tokens):
        if generated:
            logits_V = decoder.forward(np.array(tokens[-1:], np.int64))
        allowed_V = apply_rules(logits_V, rules, tokens, generated, max_tokens)
        tokens.append(choose(allowed_V))
        yield tokens[-1]


def apply_rules(
    logits_V: Array, rules: GenerationRules, tokens: Sequence[int], generated: int, max_tokens: int
) -> Array:
    """Return the logits with -inf for the tokens that may not follow.

    Args:
        logits_V: the model's logits; not changed.
        rules: the rules.
        tokens: the tokens so far.
        generated: the number of them that were generated.
        max_tokens: the largest number of generated tokens.
    """
    if rules.forced_eos_token_id and generated == max_tokens - 1:
        forced_V = np.full_like(logits_V, -np.inf)
        forced_V[list(rules.forced_eos_token_id)] = 0.0
        return forced_V
    scores_V: Array = logits_V.copy()
    if rules.repetition_penalty != 1.0:
        seen = np.unique(np.array(tokens, dtype=np.int64))
        scores, factor = scores_V[seen], rules.repetition_penalty
        scores_V[seen] = np.where(scores < 0, scores * factor, scores / factor)
    too_short = len(tokens) < rules.min_length or generated < rules.min_new_tokens
    excluded = [
        *rules.suppress_tokens,
        *(rules.begin_suppress_tokens if generated == 0 else ()),
        *(rules.eos_token_id if too_short else ()),
        *_ends_of(rules.bad_words_ids, tokens, rules.eos_token_id),
        *_ends_of(_repeated(tokens, rules.no_repeat_ngram_size), tokens),
    ]
    scores_V[[token for token in excluded if 0 <= token < len(scores_V)]] = -np.inf
    return scores_V


def _ends_of(
    sequences: Sequence[Sequence[int]], tokens: Sequence[int], end_tokens: Sequence[int] = ()
) -> Iterator[int]:
    """Yield the last token of each sequence whose other tokens are the last ones so far."""
    for sequence in sequences:
        *before, last = sequence
        matches = not before or list(tokens[-len(before) :]) == before
        if matches and not (len(sequence) == 1 and last in end_tokens):
            yield last


def _repeated(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return all sequences of a length among the tokens; none for length 0."""
    if size <= 0:
        return []
    return [tokens[start : start + size] for start in range(len(tokens) - size + 1)]
