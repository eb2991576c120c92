"""Guesses of the next tokens from earlier occurrences of the last ones.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): where
an answer repeats its prompt, the tokens after an earlier occurrence of the last few are likely to
follow again. The model checks several guessed tokens in one step.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 4
"""Length of the sequence that is looked up first; the lengths are chosen by measurement."""
SHORTEST = 2
"""Length of the sequence that is looked up last. Single tokens would save 7 % of the steps, but
double the number of tokens that are checked (docs/benchmarks.md)."""


class PromptLookup:
    """Index of the sequences in prompt and answer; each token takes constant time."""

    def __init__(
        self, tokens: Iterable[int], *, longest: int = LONGEST, shortest: int = SHORTEST
    ) -> None:
        """Index a prompt.

        Args:
            tokens: the tokens of the prompt.
            longest: length of the sequence that is looked up first.
            shortest: length of the one that is looked up last.
        """
        self._sizes = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._positions: dict[tuple[int, ...], int] = {}
        """Position behind the last occurrence of a sequence, the end of the tokens excluded."""
        for token in tokens:
            self.update(token)

    def update(self, token: int) -> None:
        """Append a token."""
        end = len(self._tokens)
        for size in self._sizes:
            if size <= end:
                self._positions[tuple(self._tokens[end - size :])] = end
        self._tokens.append(token)

    def propose(self, limit: int) -> list[int]:
        """Return up to ``limit`` tokens that followed the last occurrence of the latest tokens.

        The longest sequence of latest tokens that occurred before decides. Where the guess reaches
        the end of the tokens, it goes on with its own first tokens, as a repetition does.
        """
        end = len(self._tokens)
        for size in self._sizes:
            start = self._positions.get(tuple(self._tokens[max(end - size, 0) :]))
            if size <= end and start is not None:
                period = end - start
                return [self._tokens[start + offset % period] for offset in range(limit)]
        return []
