"""Errors of this project, and the exit code that each of them gives.

CompressError                    1
├── UsageError                   2   the command line, or a file the user wrote
│   └── ConfigError              2   a list of problems, each with file and line
├── PassError                    1   a pass failed
│   ├── CallTimeoutError         1   one call of a model did not end in time
│   ├── RequirementError         1   its input or config does not fit (checked before it runs)
│   ├── NumericalError           1   NaN or infinity in weights, data or loss
│   └── ParityError              1   the output does not compute what the input does
├── MissingExtraError            1   an optional library is not installed
├── GpuError                     1   no GPU, or not one that an engine was built for
├── ModelError                   2   a model folder cannot be opened
├── DataError                    2   a data source cannot be read
├── StorageError                 1   disk full, no permission
├── ResourceError                1   memory ran out, a child was killed
├── GateError                    3   a gate failed
├── DamagedArtifactError         4   files do not match their manifest
└── Interrupted                130   Ctrl-C or SIGTERM
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class CompressError(Exception):
    """Base of every error that users see.

    Attributes:
        what: the problem, with its place.
        remedy: the next thing to do, if there is one.
    """

    exit_code = 1

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what if remedy is None else f"{what}\n  → {remedy}")
        self.what = what
        self.remedy = remedy


class UsageError(CompressError):
    """An impossible request on the command line, or in a file that the user wrote."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file: its place, what is wrong, what was expected, what to do."""

    where: str
    what: str
    expected: str | None = None
    remedy: str | None = None
    file: Path | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = ""
        if self.file:
            place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        text = f"{place}{self.where}: {self.what}" if self.where else f"{place}{self.what}"
        if self.expected:
            text += f"\n    expected {self.expected}"
        if self.remedy:
            text += f"\n    → {self.remedy}"
        return text


class ConfigError(UsageError):
    """All problems of a pipeline file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(
            f"{count} problem{'s' if count != 1 else ''}\n"
            + "\n".join(f"  {problem}" for problem in self.problems)
        )


class PassError(CompressError):
    """A pass failed."""


class CallTimeoutError(PassError):
    """One call of a model has not ended after the time that it may take."""


class RequirementError(PassError):
    """The input or config of a pass does not fit; the message names every offender."""


class NumericalError(PassError):
    """NaN or infinity in weights, data or loss."""


class ParityError(PassError):
    """The output of a pass does not compute what its input does."""


class MissingExtraError(CompressError):
    """An optional library is not installed."""

    def __init__(self, library: str, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs {library}, which is not installed",
            remedy=f"pip install 'autoglm-compress[{extra}]'",
        )


class GpuError(CompressError):
    """There is no GPU, or not one that an engine was built for."""


class ModelError(CompressError):
    """A model folder cannot be opened."""

    exit_code = 2


class DataError(CompressError):
    """A data source cannot be read."""

    exit_code = 2


class StorageError(CompressError):
    """The disk is full, or a path is not writable."""


class ResourceError(CompressError):
    """Memory ran out, or a child was killed."""


class GateError(CompressError):
    """A gate failed."""

    exit_code = 3


class DamagedArtifactError(CompressError):
    """Files do not match their manifest."""

    exit_code = 4


class Interrupted(CompressError):  # noqa: N818 - an interruption is not an error
    """Ctrl-C or SIGTERM."""

    exit_code = 130
