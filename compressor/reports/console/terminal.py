"""Print to the terminal: results to stdout, progress and errors to stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO

from rich.cells import cell_len
from rich.console import (
    Console,
    ConsoleOptions,
    ConsoleRenderable,
    JustifyMethod,
    RenderableType,
    RenderHook,
)
from rich.control import Control
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from compressor.errors import CompressError
from compressor.foreign_files.printable import printable

_WIDTH = 132
"""Columns of the output where it is not a terminal."""
_UNBROKEN = frozenset({"step", "artifact"})
"""Columns that are not wrapped, so that their values can be copied."""


class _Printable:
    """A renderable whose text is printable; styles and the controls of rich itself stay."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self._renderable, options):
            yield Segment(text if control else printable(text), style, control)


class _PrintableOutput(RenderHook):
    """Escapes whatever a console prints: names and messages may come from foreign files."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap everything but the cursor movements of live displays."""
        return [item if isinstance(item, Control) else _Printable(item) for item in renderables]


out = Console(width=None if Console().is_terminal else _WIDTH, highlight=False)
err = Console(stderr=True, highlight=False)
for _console in (out, err):
    _console.push_render_hook(_PrintableOutput())


def new_recorder(width: int) -> Console:
    """Return a console that records what it would print, escaped as ``out`` does."""
    recorder = Console(record=True, width=width, file=StringIO(), force_terminal=True)
    recorder.push_render_hook(_PrintableOutput())
    return recorder


def print_line(text: str = "") -> None:
    """Print text without wrapping it and without markup."""
    out.print(Text(text), soft_wrap=True)


def print_wrapped(text: Text, *, indent: int = 0) -> None:
    """Print styled text, wrapped at the width of the terminal and indented."""
    out.print(Padding(text, (0, 0, 0, indent)))


def print_chunk(text: str) -> None:
    """Print a piece of a line at once, such as a generated token."""
    out.print(text, end="", markup=False, soft_wrap=True)


def print_notes(notes: Iterable[str]) -> None:
    """Print lines that are not errors, and that a user should see."""
    for note in notes:
        out.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def print_error(error: CompressError) -> None:
    """Print an error and its remedy."""
    err.print(Text("error: ", style="bold red") + Text(error.what), soft_wrap=True)
    if error.remedy:
        err.print(Text(f"  → {error.remedy}"), soft_wrap=True)


def new_table(*columns: str, title: str | None = None) -> Table:
    """Return a table whose first column is left-aligned and the others right-aligned."""
    table = _plain_table(title)
    for index, name in enumerate(columns):
        justify: JustifyMethod = "left" if index == 0 else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in _UNBROKEN)
    return table


def new_text_table(*columns: str, title: str | None = None) -> Table:
    """Return a table whose columns are all left-aligned."""
    table = _plain_table(title)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, omitted: int = 0) -> None:
    """Print rows of text; ``omitted`` is the number of further rows that are not printed."""
    table = new_table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)
    if omitted:
        print_line(f"… and {omitted} more (--json prints all)")


def aligned_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines, the first column left-aligned; thousands of rows take no time."""
    table = [tuple(map(printable, cells)) for cells in (columns, *rows)]
    widths = [max(map(cell_len, cells)) for cells in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [first + " " * (widths[0] - cell_len(first))]
        cells += [
            " " * (width - cell_len(cell)) + cell
            for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def print_lines(lines: Sequence[str]) -> None:
    """Print lines without wrapping them, all at once."""
    out.file.write("".join(f"{printable(line)}\n" for line in lines))


def print_pairs(rows: Sequence[tuple[str, str]], title: str | None = None) -> None:
    """Print labels and texts in two columns."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    out.print(table)


def _plain_table(title: str | None) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
