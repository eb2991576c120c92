"""The rules of a model's files for the next token, kept up to date along one sequence.

Shapes: V vocabulary entries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from compressor.errors import NumericalError, UsageError
from compressor.models.checkpoint.generation_rules import GenerationRules

Array = np.ndarray[Any, Any]


def most_probable(logits_V: Array) -> int:
    """Return the token with the largest logit; of equal logits the first.

    Raises:
        NumericalError: a logit is NaN or infinite.
        UsageError: all tokens are excluded.
    """
    token = int(logits_V.argmax())  # the position of a NaN, if there is one
    check_largest(float(logits_V[token]))
    return token


def check_largest(logit: float) -> None:
    """Check the largest logit.

    Raises:
        NumericalError: it is NaN or infinite.
        UsageError: it is -inf: all tokens are excluded.
    """
    if logit == -np.inf:
        raise UsageError(
            "no token may follow: all of them are excluded by the rules in generation_config.json, "
            "the grammar, or the options of the answer",
            remedy="relax the grammar, or change the rules",
        )
    if not np.isfinite(logit):
        raise NumericalError(
            "the model computed NaN or infinity instead of logits",
            remedy="evaluate the model: its weights are damaged, or were compressed too far",
        )


class TokenRules:
    """The rules of generation_config.json along one sequence; each token takes constant time."""

    def __init__(
        self,
        rules: GenerationRules,
        prompt_tokens: Sequence[int],
        *,
        max_tokens: int,
        vocabulary: int,
    ) -> None:
        """Start with a prompt.

        Args:
            rules: the rules.
            prompt_tokens: the tokens before the answer.
            max_tokens: the largest number of generated tokens.
            vocabulary: the number of logits.
        """
        self._rules, self._max_tokens, self._vocabulary = rules, max_tokens, vocabulary
        self._tokens: list[int] = []
        self._prompt_length = len(prompt_tokens)
        self._suppressed = self._within(rules.suppress_tokens)
        self._begin_suppressed = self._within(rules.begin_suppress_tokens)
        self._ends = self._within(rules.eos_token_id)
        self._sequences = _by_last_but_one(rules)
        if single := [words[0] for words in rules.bad_words_ids if len(words) == 1]:
            words = [token for token in single if token not in rules.eos_token_id]
            self._suppressed = np.union1d(self._suppressed, self._within(words))
        self._followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        self._seen = TokenCounts(vocabulary) if rules.repetition_penalty != 1.0 else None
        for token in prompt_tokens:
            self.commit(token)

    def choose_most_probable(self, logits_V: Array) -> int:
        """Return the most probable of the tokens that may follow, and append it to the sequence."""
        if self.change_next():
            logits_V = logits_V.copy()
            self.apply(logits_V)
        token = most_probable(logits_V)
        self.commit(token)
        return token

    def change_next(self) -> bool:
        """Return True if a rule changes the logits of the next token."""
        rules = self._rules
        return bool(
            self._seen is not None
            or self._suppressed.size
            or self._sequences
            or rules.no_repeat_ngram_size > 0
            or (self._is_first() and self._begin_suppressed.size)
            or (self._is_too_short() and self._ends.size)
            or self._is_forced()
        )

    def apply(self, logits_V: Array) -> None:
        """Set the logits of the tokens that may not follow to -inf, in place."""
        if self._is_forced():
            logits_V.fill(-np.inf)
            logits_V[self._within(self._rules.forced_eos_token_id)] = 0.0
            return
        if self._seen is not None:
            tokens, factor = self._seen.tokens, self._rules.repetition_penalty
            logits = logits_V[tokens]
            logits_V[tokens] = np.where(logits < 0, logits * factor, logits / factor)
        logits_V[self._suppressed] = -np.inf
        if self._is_first():
            logits_V[self._begin_suppressed] = -np.inf
        if self._is_too_short():
            logits_V[self._ends] = -np.inf
        if repeated := [*chain(self._bad_words(), self._repetitions())]:
            logits_V[self._within(repeated)] = -np.inf

    def commit(self, token: int) -> None:
        """Append a token to the sequence."""
        tokens, size = self._tokens, self._rules.no_repeat_ngram_size
        tokens.append(token)
        if self._seen is not None:
            self._seen.add(token)
        if 0 < size <= len(tokens):
            self._followers[tuple(tokens[len(tokens) - size : -1])].add(token)

    def _is_first(self) -> bool:
        return len(self._tokens) == self._prompt_length

    def _is_too_short(self) -> bool:
        length = len(self._tokens)
        generated = length - self._prompt_length
        return length < self._rules.min_length or generated < self._rules.min_new_tokens

    def _is_forced(self) -> bool:
        generated = len(self._tokens) - self._prompt_length
        return bool(self._rules.forced_eos_token_id) and generated == self._max_tokens - 1

    def _bad_words(self) -> Iterator[int]:
        """Yield the last tokens of the bad words that would be complete with them."""
        tokens = self._tokens
        for before, last in self._sequences.get(tokens[-1], ()) if tokens else ():
            if tuple(tokens[-len(before) :]) == before:
                yield last

    def _repetitions(self) -> Iterator[int]:
        """Yield the tokens that would complete a sequence which occurred before."""
        size = self._rules.no_repeat_ngram_size
        if 0 < size <= len(self._tokens) + 1:
            yield from self._followers.get(tuple(self._tokens[len(self._tokens) - size + 1 :]), ())

    def _within(self, tokens: Sequence[int]) -> Array:
        return np.array([t for t in tokens if 0 <= t < self._vocabulary], dtype=np.int64)


def _by_last_but_one(rules: GenerationRules) -> dict[int, list[tuple[tuple[int, ...], int]]]:
    """Return the longer bad words as their first tokens and the last one, by the one before it."""
    sequences: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for *before, last in rules.bad_words_ids:
        if before:
            sequences.setdefault(before[-1], []).append((tuple(before), last))
    return sequences


class TokenCounts:
    """The distinct tokens of a growing sequence and their counts, as arrays."""

    def __init__(self, vocabulary: int) -> None:
        """Start empty; tokens outside of the vocabulary are not counted."""
        self._vocabulary = vocabulary
        self._positions: dict[int, int] = {}
        self._tokens = np.empty(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    def add(self, token: int) -> None:
        """Count a token."""
        if not 0 <= token < self._vocabulary:
            return
        position = self._positions.setdefault(token, len(self._positions))
        if position == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._tokens[position] = token
        self._counts[position] += 1

    @property
    def tokens(self) -> Array:
        """The distinct tokens, in the order of their first occurrence."""
        return self._tokens[: len(self._positions)]

    @property
    def counts(self) -> Array:
        """The count of each of them, float32."""
        return self._counts[: len(self._positions)]
