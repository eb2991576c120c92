"""Check several pipeline files at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compressor.engine.plan.plan import Plan
from compressor.errors import ConfigError, Problem


def check_files(files: Sequence[Path], plan: Callable[[Path], Plan]) -> dict[Path, Plan]:
    """Return the plan of each file.

    Raises:
        ConfigError: lists every problem of every file.
    """
    plans: dict[Path, Plan] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            plans[file] = plan(file)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return plans
