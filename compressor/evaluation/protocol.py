"""What the measuring process is asked, and what it answers: JSON, one request a line on stdin, one message a line on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from compressor import errors
from compressor.errors import CompressError, PassError
from compressor.evaluation.records import EvaluateConfig, Measurement
from compressor.runtimes.formats import StoredModel, format_named


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReferenceModel(_Message):
    """The model whose answers count as right for the metrics that compare."""

    id: str
    """Id of its artifact."""
    format: str
    model: Path

    @property
    def stored(self) -> StoredModel:
        """The model with its format."""
        return StoredModel(format_named(self.format), self.model)


class Request(_Message):
    """One measurement."""

    task: Literal["measure", "rounds"] = "measure"
    """``measure``: all of ``evaluate``, once. ``rounds``: calls are timed each time that a line comes."""
    format: str
    model: Path
    evaluate: EvaluateConfig
    sources: dict[str, dict[str, Any]]
    """Data set to the config of its source; those that ``evaluate`` names."""
    reference: ReferenceModel | None
    base: Path
    allow_code: bool
    cache: Path
    parent: int
    """Process id of the caller; the measuring process ends when the caller does, however it ends."""

    @property
    def stored(self) -> StoredModel:
        """The model with its format."""
        return StoredModel(format_named(self.format), self.model)


class Failure(_Message):
    """A ``CompressError`` on its way to the process that asked."""

    error: str
    """The name of its class."""
    what: str
    remedy: str | None = None

    @classmethod
    def of(cls, error: CompressError) -> Failure:
        """The message for an error."""
        return cls(error=type(error).__name__, what=error.what, remedy=error.remedy)

    def rebuilt(self) -> CompressError:
        """The same error, of the same class where it is one of ours."""
        known = {one.__name__: one for one in _subclasses(CompressError)}
        rebuilt = CompressError.__new__(known.get(self.error, PassError))
        CompressError.__init__(rebuilt, self.what, remedy=self.remedy)
        if isinstance(rebuilt, errors.ConfigError):
            rebuilt.problems = (errors.Problem("", self.what, remedy=self.remedy),)
        return rebuilt


class Answer(_Message):
    """One line: progress, or the end of it."""

    progress: tuple[str, int, int] | None = None
    measurement: Measurement | None = None
    milliseconds: tuple[float, ...] | None = None
    """Of each call of a round; of the warm-up when the model is ready, and none of an engine that cannot run here."""
    failure: Failure | None = None


def _subclasses(base: type[CompressError]) -> Iterator[type[CompressError]]:
    yield base
    for one in base.__subclasses__():
        yield from _subclasses(one)
