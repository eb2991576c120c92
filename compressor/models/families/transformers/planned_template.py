"""A checkpoint's chat template as the plan renders it: to find what it refuses, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.models.families.transformers.chat_templates import (
    chat_templates,
    check_templates,
    special_tokens,
    with_fixed_date,
)
from compressor.models.families.transformers.template_environment import (
    RefusedError,
    environment,
)

_DEFAULT = "default"


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
        except RefusedError as error:
            return f"the chat template fails: {error}"
        except Exception:  # noqa: BLE001  may differ in transformers, whose error `load` reports
            return None
        return None if text.strip() else "the chat template renders nothing"
