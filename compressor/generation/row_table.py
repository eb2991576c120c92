"""The rows of a decoder: the tokens that each holds, and the row for a new prompt.

A row keeps its keys and values when its answer ends. A prompt that begins with the same tokens as
any row, at work or not, reads only the rest: in place if that row is free, else from a copy.

Shapes: T tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.runtimes.rows import RowDecoder

Array = np.ndarray[Any, Any]
_KEPT_TOKENS = 64
"""A row that is overwritten gives back the memory of its other tokens if they are more."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest beginning of a prompt whose keys and values a row holds."""

    row: int
    length: int


@dataclass(slots=True)
class _Row:
    """One row: the prefix keys of its tokens, and whether a sequence has it."""

    prefix_keys: Array
    """int64 [capacity], of which ``length`` are valid."""
    length: int = 0
    taken: bool = False
    last_use: int = 0
    """Number of the last use, in the order of all uses."""

    @property
    def held_keys(self) -> Array:
        """Prefix keys of the tokens in the row."""
        return self.prefix_keys[: self.length]


class RowTable:
    """Prefix keys of the tokens in each row, and which rows are taken.

    Attributes:
        budget_tokens: tokens that all rows together may hold.
    """

    def __init__(self, decoder: RowDecoder, budget_tokens: int) -> None:
        """Start with empty rows.

        Args:
            decoder: the rows.
            budget_tokens: tokens that all rows together may hold; at least the capacity of one.
        """
        self.budget_tokens = budget_tokens
        self._decoder, self._clock = decoder, 0
        options = decoder.options
        self._rows = [_Row(np.empty(options.capacity, np.int64)) for _ in range(options.rows)]

    @property
    def held_tokens(self) -> int:
        """Tokens that all rows hold."""
        return sum(row.length for row in self._rows)

    @property
    def taken_tokens(self) -> int:
        """Tokens in the rows of sequences."""
        return sum(row.length for row in self._rows if row.taken)

    @property
    def free_rows(self) -> list[int]:
        """Rows that no sequence has."""
        return [number for number, row in enumerate(self._rows) if not row.taken]

    def length(self, number: int) -> int:
        """Return the number of tokens in a row."""
        return self._rows[number].length

    def longest_prefix(self, prefix_keys_T: Array) -> Prefix:
        """Return the row that holds most of a prompt's beginning, without its last token.

        The last token is always read again, for its logits.
        """
        best = Prefix(0, 0)
        for number, row in enumerate(self._rows):
            common = _common(row.held_keys, prefix_keys_T[:-1])
            if common > best.length and self._decoder.can_resume(number, common, row.length):
                best = Prefix(number, common)
        return best

    def take(self, prefix: Prefix) -> int:
        """Return a free row that begins with a prefix, and mark it as taken.

        There must be a free row. The row is empty if the budget has no space for a copy.
        """
        number, length = self._choose(prefix), prefix.length
        if number != prefix.row and length:
            length = self._copy(prefix, number)
        row = self._rows[number]
        dropped, row.length = row.length - length, length
        if dropped > _KEPT_TOKENS:
            self._decoder.release(number, length)
        row.taken = True
        self._touch(row)
        return number

    def _copy(self, prefix: Prefix, number: int) -> int:
        """Copy a prefix to a free row; return its length, or 0 without space for it."""
        source, target = self._rows[prefix.row], self._rows[number]
        self.forget(number)
        was_taken, source.taken = source.taken, True
        fits = self.make_space(prefix.length)
        source.taken = was_taken
        if not fits:
            return 0
        self._decoder.copy(prefix.row, number, prefix.length)
        target.prefix_keys[: prefix.length] = source.prefix_keys[: prefix.length]
        target.length = prefix.length
        self._touch(source)
        return prefix.length

    def _choose(self, prefix: Prefix) -> int:
        """Return the free row whose content is missed least."""
        free, source = self.free_rows, self._rows[prefix.row]
        if prefix.length and not source.taken:
            rest = source.length - prefix.length
            empty = any(not self._rows[number].length for number in free)
            if rest <= _KEPT_TOKENS or not empty:
                return prefix.row
        return min(free, key=self._last_use)

    def _last_use(self, number: int) -> tuple[int, int]:
        """Return the last use of a row's tokens, empty rows first."""
        row = self._rows[number]
        return (row.last_use if row.length else 0, number)

    def append(self, number: int, prefix_keys_T: Array) -> None:
        """Note tokens that a call has appended to a row."""
        row = self._rows[number]
        row.prefix_keys[row.length : row.length + len(prefix_keys_T)] = prefix_keys_T
        row.length += len(prefix_keys_T)

    def leave(self, number: int) -> None:
        """Mark a row as free; it keeps its tokens."""
        self._rows[number].taken = False
        self._touch(self._rows[number])

    def forget(self, number: int) -> None:
        """Drop the tokens of a row, and free their memory."""
        self._rows[number].length = 0
        self._decoder.release(number, 0)

    def swap(self, first: int, second: int) -> None:
        """Exchange two rows."""
        rows = self._rows
        self._decoder.swap(first, second, max(rows[first].length, rows[second].length))
        rows[first], rows[second] = rows[second], rows[first]

    def make_space(self, tokens: int) -> bool:
        """Forget free rows, the least recently used first, until tokens can be appended.

        Returns:
            False if the rows that are taken leave no space for them.
        """
        while self.held_tokens + tokens > self.budget_tokens:
            held = [number for number in self.free_rows if self._rows[number].length]
            if not held:
                return False
            self.forget(min(held, key=self._last_use))
        return True

    def _touch(self, row: _Row) -> None:
        self._clock += 1
        row.last_use = self._clock


def _common(held_keys_T: Array, prefix_keys_T: Array) -> int:
    """Return the number of equal prefix keys at the beginning of both."""
    length = min(len(held_keys_T), len(prefix_keys_T))
    differs = held_keys_T[:length] != prefix_keys_T[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length
