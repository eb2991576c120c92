"""Arrange the rows of a ladder as a tree: which step was made from which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compressor.reports.rows.ladder import Ladder, LadderRow


@dataclass(frozen=True, slots=True)
class Branch:
    """A step, and the steps that read its artifact."""

    row: LadderRow
    children: tuple[Branch, ...]


def branches(ladder: Ladder, parent: str | None = None) -> tuple[Branch, ...]:
    """Return the steps below ``parent``; a step whose parent is not in the ladder is a root."""
    steps = {row.step for row in ladder.rows}
    return tuple(
        Branch(row, branches(ladder, row.step))
        for row in ladder.rows
        if (row.parent if row.parent in steps else None) == parent
    )


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A row with its place in the tree."""

    row: LadderRow
    depth: int
    """Number of branching points above it: a chain of only children stays at one depth."""
    lines: str
    """The lines of the tree in front of the name, such as ``│  └─ ``; empty at depth 0."""


def tree_rows(ladder: Ladder) -> list[TreeRow]:
    """Return all rows, each branch with everything that was made from it together."""
    return [row for branch in branches(ladder) for row in _flatten(branch, 0, "", "")]


def _flatten(branch: Branch, depth: int, lines: str, below: str) -> Iterator[TreeRow]:
    """Yield a branch and its children; ``below`` is drawn in front of the children.

    An only child stands in the column of its parent, so that a chain does not drift to the right.
    """
    yield TreeRow(branch.row, depth, lines)
    if len(branch.children) == 1:
        yield from _flatten(branch.children[0], depth, below, below)
        return
    for index, child in enumerate(branch.children):
        is_last = index == len(branch.children) - 1
        mark, bar = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        yield from _flatten(child, depth + 1, below + mark, below + bar)
