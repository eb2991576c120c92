"""Selection of the tokens of one answer from the logits of the model.

Shapes: V vocabulary entries, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from compressor.generation.nucleus import largest_tokens, sample
from compressor.generation.requests import SamplingOptions, TokenLogprob
from compressor.models.checkpoint.generation_rules import GenerationRules
from compressor.runtimes.token_rules import TokenCounts, TokenRules, most_probable

Array = np.ndarray[Any, Any]
_GREEDY_BELOW = 1e-5
"""Temperatures below it select the most probable token: float32 holds no other probabilities."""


class Grammar(Protocol):
    """The state of a grammar along one answer."""

    @property
    def is_finished(self) -> bool:
        """True if no token may follow, other than one that ends the answer."""

    def mask(self, logits_V: Array) -> None:
        """Set the logits of the tokens that may not follow to -inf, in place."""

    def commit(self, token: int) -> None:
        """Append a token."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of a model, and what its files state about it."""

    size: int
    """Number of logits."""
    end_tokens: frozenset[int]
    """Tokens that end an answer."""
    rules: GenerationRules


class TokenSelector:
    """Selects the tokens of one answer; the result depends on no other answer.

    The model's rules and the repetition penalty come first, as in transformers; then the frequency
    and presence penalties, the bias, and the grammar; then temperature, top_k, top_p and min_p.
    """

    def __init__(
        self,
        sampling: SamplingOptions,
        vocabulary: Vocabulary,
        prompt_tokens: Sequence[int],
        grammar: Grammar | None = None,
    ) -> None:
        """Start an answer.

        Args:
            sampling: how tokens are selected.
            vocabulary: the vocabulary of the model.
            prompt_tokens: the tokens of the prompt.
            grammar: the grammar that the answer follows, at its start.
        """
        self._sampling, self._vocabulary, self._grammar = sampling, vocabulary, grammar
        rules = vocabulary.rules
        if sampling.repetition_penalty is not None:
            rules = rules.model_copy(update={"repetition_penalty": sampling.repetition_penalty})
        self._rules = TokenRules(
            rules,
            prompt_tokens,
            max_tokens=sampling.max_tokens,
            vocabulary=vocabulary.size,
        )
        self._rng = np.random.default_rng(sampling.seed)
        self._generated = 0
        penalized = sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
        self._counts = TokenCounts(vocabulary.size) if penalized else None
        bias = {t: b for t, b in sampling.logit_bias.items() if 0 <= t < vocabulary.size}
        self._biased = np.array([*bias], np.int64)
        self._bias = np.array([*bias.values()], np.float32)
        ends = vocabulary.end_tokens | sampling.stop_tokens
        self._ends = np.array([t for t in ends if 0 <= t < vocabulary.size], np.int64)
        self._buffer_V: Array | None = None

    @property
    def is_finished(self) -> bool:
        """True if the grammar is complete, and nothing may follow."""
        return self._grammar is not None and self._grammar.is_finished

    def ends(self, token: int) -> bool:
        """Return True if a token ends the answer, and is not part of it."""
        sampling = self._sampling
        if token in sampling.stop_tokens:
            return True
        return token in self._vocabulary.end_tokens and not sampling.ignore_end

    def choose(self, logits_V: Array) -> int:
        """Return the next token, and append it to the answer.

        Args:
            logits_V: the model's logits, float32; not changed.

        Raises:
            NumericalError: a logit is NaN or infinite.
            UsageError: the rules exclude all tokens.
        """
        if self._is_changed():
            logits_V = self._changed(logits_V)
        if self._sampling.temperature < _GREEDY_BELOW:
            token = most_probable(logits_V)
        else:
            token = sample(logits_V, self._sampling, self._rng.random(), self._buffer(logits_V))
        self._commit(token)
        return token

    def logprobs(self, logits_V: Array, token: int, text_offset: int) -> TokenLogprob:
        """Return the log probability of a token from the model's logits, with those of others.

        Args:
            logits_V: the model's logits, float32.
            token: the token.
            text_offset: characters of the answer before the token.
        """
        largest = logits_V.max()
        total = float(np.exp(logits_V - largest).sum())
        normalizer = float(largest) + float(np.log(total))
        count = min(self._sampling.top_logprobs or 0, len(logits_V))
        best: list[int] = []
        if count:
            tokens = largest_tokens(logits_V, count)
            best = tokens[np.argsort(-logits_V[tokens], kind="stable")].tolist()
        return TokenLogprob(
            token,
            float(logits_V[token]) - normalizer,
            tuple((other, float(logits_V[other]) - normalizer) for other in best),
            text_offset,
        )

    def _commit(self, token: int) -> None:
        self._generated += 1
        self._rules.commit(token)
        if self._counts is not None:
            self._counts.add(token)
        if self._grammar is not None:
            self._grammar.commit(token)

    def _is_changed(self) -> bool:
        return bool(
            self._rules.change_next()
            or self._counts is not None
            or self._biased.size
            or self._grammar is not None
            or self._is_too_short()
        )

    def _is_too_short(self) -> bool:
        return self._generated < self._sampling.min_tokens

    def _buffer(self, logits_V: Array) -> Array:
        if self._buffer_V is None:
            self._buffer_V = np.empty(len(logits_V), np.float32)
        return self._buffer_V

    def _changed(self, logits_V: Array) -> Array:
        """Return a copy of the logits after the rules, the penalties, the bias and the grammar."""
        changed_V = self._buffer(logits_V)
        np.copyto(changed_V, logits_V)
        self._rules.apply(changed_V)
        if self._counts is not None and len(self._counts.tokens):
            counts = self._counts.counts
            penalties = self._sampling.frequency_penalty * counts + self._sampling.presence_penalty
            changed_V[self._counts.tokens] -= penalties
        if self._biased.size:
            changed_V[self._biased] += self._bias
        if self._is_too_short():
            changed_V[self._ends] = -np.inf
        if self._grammar is not None:
            self._grammar.mask(changed_V)
        return changed_V
