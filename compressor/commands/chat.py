"""The conversation of ``generate`` without a prompt, in a terminal or with piped lines."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compressor import interrupts
from compressor.errors import CompressError, UsageError

if TYPE_CHECKING:
    from compressor.generation.conversation import Conversation

CLEAR, EXIT, ADAPTER = "/clear", "/exit", "/adapter"
_PROMPT = "> "


def read_messages() -> Iterator[str]:
    """Return the lines of standard input; from pipes, the first one has been read already.

    Raises:
        UsageError: standard input has no line, or is not UTF-8.
    """
    if is_terminal():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # lets `input` edit lines and recall earlier ones
        return _typed_lines()
    lines = _piped_lines()
    first = next(lines, None)
    if first is None:
        raise UsageError("there is no prompt", remedy="give some text with --prompt")

    def all_lines() -> Iterator[str]:
        yield first
        yield from lines

    return all_lines()


def is_terminal() -> bool:
    """Return True if messages are typed into a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def hold(conversation: Conversation, messages: Iterator[str]) -> None:
    """Answer messages until there are no more, or one is ``/exit``.

    Ctrl-C ends the present answer, and a second one the program. In a terminal, an error ends the
    turn.

    Raises:
        CompressError: a message from a pipe cannot be answered.
    """
    from compressor.reports.console.models import render_reply
    from compressor.reports.console.terminal import print_chunk, print_error

    for line in messages:
        message = line.strip()
        if message == EXIT:
            break
        if message == CLEAR:
            conversation.clear()
        elif message:
            try:
                if message.split()[0] == ADAPTER:
                    conversation.use_adapter(message.removeprefix(ADAPTER).strip() or None)
                    continue
                with interrupts.diverted(conversation.cancel):
                    reply = conversation.ask(message, print_chunk)
            except CompressError as error:
                if not is_terminal():
                    raise
                print_error(error)
            else:
                render_reply(reply)


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            yield input(_PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return


def _piped_lines() -> Iterator[str]:
    if not isinstance(sys.stdin, io.TextIOWrapper):  # it is closed
        return
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        yield from (line for line in sys.stdin if line.strip())
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8: {error.reason}") from error
