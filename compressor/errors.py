"""Everything that can go wrong, and the exit code each of them gives.

CompressError                    1
├── UsageError                   2   the command line, or a file the user wrote
│   └── ConfigError              2   a list of problems, each with file and line
├── PassError                    1   a pass could not do its work
│   ├── RequirementError         1   its input does not fit (found before it runs)
│   ├── NumericalError           1   NaN or infinity in weights, data or loss
│   └── ParityError              1   what was written does not compute what was read
├── MissingExtraError            1   an optional library is not installed
├── GpuError                     1   no GPU here, or not the one that an engine was built for
├── ModelError                   2   a model directory that cannot be opened
├── DataError                    2   a data source that cannot be read
├── StorageError                 1   disk full, no permission
├── GateError                    3   a gate failed
├── DamagedArtifactError         4   files that do not match their manifest
└── Interrupted                130   Ctrl-C or SIGTERM
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class CompressError(Exception):
    """Base of every error that is the user's to read: ``what`` happened, and the ``remedy``."""

    exit_code = 1

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what if remedy is None else f"{what}\n  → {remedy}")
        self.what = what
        self.remedy = remedy


class UsageError(CompressError):
    """The command line, or a file the user wrote, asks for something that cannot be."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file: where it is, what is wrong, what was expected, what to do."""

    where: str
    what: str
    expected: str | None = None
    remedy: str | None = None
    file: Path | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = (
            f"{self.file}:{self.line}: "
            if self.file and self.line
            else f"{self.file}: "
            if self.file
            else ""
        )
        text = f"{place}{self.where}: {self.what}" if self.where else f"{place}{self.what}"
        if self.expected:
            text += f"\n    expected {self.expected}"
        if self.remedy:
            text += f"\n    → {self.remedy}"
        return text


class ConfigError(UsageError):
    """Every problem of a pipeline file at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(
            f"{count} problem{'s' if count != 1 else ''}\n"
            + "\n".join(f"  {problem}" for problem in self.problems)
        )


class PassError(CompressError):
    """A pass could not do its work."""


class RequirementError(PassError):
    """A pass's input does not fit; the message names every offender."""


class NumericalError(PassError):
    """NaN or infinity in weights, data or loss."""


class ParityError(PassError):
    """What a pass wrote does not compute what it read."""


class MissingExtraError(CompressError):
    """An optional library is not installed."""

    def __init__(self, library: str, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs {library}, which is not installed",
            remedy=f"pip install 'autoglm-compress[{extra}]'",
        )


class GpuError(CompressError):
    """There is no GPU here, or not the one that an engine was built for."""


class ModelError(CompressError):
    """A model directory that cannot be opened."""

    exit_code = 2


class DataError(CompressError):
    """A data source that cannot be read."""

    exit_code = 2


class StorageError(CompressError):
    """The disk is full, or a place may not be written."""


class GateError(CompressError):
    """A gate failed."""

    exit_code = 3


class DamagedArtifactError(CompressError):
    """Files that do not match their manifest."""

    exit_code = 4


class Interrupted(CompressError):  # noqa: N818 - an interruption is not an error of anything
    """Ctrl-C or SIGTERM."""

    exit_code = 130
