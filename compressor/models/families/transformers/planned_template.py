"""A checkpoint's chat template as the plan renders it: to find what it refuses, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import DataError
from compressor.models.families.transformers.chat_templates import (
    chat_templates,
    check_templates,
    special_tokens,
    with_fixed_date,
)

if TYPE_CHECKING:
    from jinja2 import Environment

_DEFAULT = "default"


class _RefusedError(Exception):
    """A template called ``raise_exception``."""


class PlannedTemplate:
    """The default chat template of a folder.

    Steps render conversations with transformers, which imports torch. Here only those errors are
    reported that no other environment could change: wrong syntax, calls of ``raise_exception``, and
    conversations that render to nothing.
    """

    def __init__(self, folder: Path) -> None:
        """Compile the template.

        Raises:
            DataError: it is not a template of Jinja, or does not end.
        """
        from jinja2 import TemplateSyntaxError

        check_templates(folder)
        try:
            self._template = environment().from_string(
                with_fixed_date(chat_templates(folder)[_DEFAULT])
            )
        except TemplateSyntaxError as error:
            raise DataError(
                f"{folder}: the chat template is wrong in line {error.lineno}: {error.message}",
                remedy="copy the checkpoint's chat template again",
            ) from error
        self._tokens = special_tokens(folder)

    def refusal(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the reason that the template refuses a conversation; None if it does not.

        Args:
            messages: ``{"role", "content"}``, as ``apply_chat_template`` takes them.
        """
        variables = {**self._tokens, "messages": [dict(message) for message in messages]}
        try:
            text = self._template.render(tools=None, documents=None, **variables)
        except _RefusedError as error:
            return f"the chat template fails: {error}"
        except Exception:  # noqa: BLE001  may differ in transformers, whose error `load` reports
            return None
        return None if text.strip() else "the chat template renders nothing"


def environment() -> Environment:
    """Return an environment with the names that transformers gives to templates."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Blocks that mark the assistant's tokens; their content is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012  as Jinja declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise _RefusedError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment
