"""Check that code which a model brings along may run, before anything is built."""

from __future__ import annotations

from pathlib import Path

from compressor.config.permission import code_is_allowed
from compressor.errors import UsageError
from compressor.models.facts import ModelFacts


def check_user_code(facts: ModelFacts, path: Path) -> None:
    """Check that a model which runs code may be opened.

    Args:
        facts: facts of the model.
        path: its folder, for the message.

    Raises:
        UsageError: opening it runs a Python file, and code is not allowed.
    """
    architecture = facts.architecture()
    code = None if architecture is None else architecture.family.user_code(architecture.config)
    if code is not None and not code_is_allowed():
        raise UsageError(
            f"the model {path} runs {code}, which is code", remedy="allow it with --allow-code"
        )
