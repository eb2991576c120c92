"""Check several pipeline files at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compressor.engine.plan.plan import CheckedPipeline
from compressor.errors import ConfigError, Problem


def check_files(
    files: Sequence[Path], check: Callable[[Path], CheckedPipeline]
) -> dict[Path, CheckedPipeline]:
    """Return the steps and notes of each file.

    Raises:
        ConfigError: lists every problem of every file.
    """
    checked: dict[Path, CheckedPipeline] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            checked[file] = check(file)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return checked
