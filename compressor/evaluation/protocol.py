"""Messages between this process and a measuring process: one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from compressor import errors
from compressor.errors import CompressError, PassError
from compressor.evaluation.records import EvaluateConfig, GenerationReport, Measurement
from compressor.runtimes.formats import StoredModel, format_named

Task = Literal["measure", "generation", "rounds"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReferenceModel(_Message):
    """The model that ``agreement``, ``kl`` and ``cosine`` compare with."""

    id: str
    """Id of the reference's artifact."""
    format: str
    model: Path

    @property
    def stored(self) -> StoredModel:
        """Return the model with its format."""
        return StoredModel(format_named(self.format), self.model)


class Request(_Message):
    """A measurement to carry out; sent to the process's stdin."""

    task: Task = "measure"
    """``measure``: accuracy, latency and energy, once; ``generation``: that alone; ``rounds``: one
    round of calls per line of stdin."""
    format: str
    model: Path
    evaluate: EvaluateConfig
    sources: dict[str, dict[str, Any]]
    """Data set to the config of its source, for the data sets that ``evaluate`` names."""
    reference: ReferenceModel | None
    base: Path
    allow_code: bool
    cache: Path
    parent: int
    """Process id of the caller; the kernel ends the measuring process when the caller ends."""

    @property
    def stored(self) -> StoredModel:
        """Return the model with its format."""
        return StoredModel(format_named(self.format), self.model)

    @property
    def threads(self) -> int | None:
        """Threads of the runtime, as the timed part of the task states; None if it states none."""
        evaluate = self.evaluate
        timed = evaluate.generation if self.task == "generation" else evaluate.latency
        return timed.threads if timed else None


class Failure(_Message):
    """A ``CompressError`` as a message."""

    error: str
    """Name of the class."""
    what: str
    remedy: str | None = None

    @classmethod
    def from_error(cls, error: CompressError) -> Failure:
        """Return the message of an error."""
        return cls(error=type(error).__name__, what=error.what, remedy=error.remedy)

    def to_error(self) -> CompressError:
        """Return the error, of the same class; ``PassError`` for a class that is not ours."""
        classes = {error_class.__name__: error_class for error_class in _subclasses(CompressError)}
        error = CompressError.__new__(classes.get(self.error, PassError))
        CompressError.__init__(error, self.what, remedy=self.remedy)
        if isinstance(error, errors.ConfigError):
            error.problems = (errors.Problem("", self.what, remedy=self.remedy),)
        return error


class Answer(_Message):
    """A message of the measuring process: progress, a result, or a failure; one field is set."""

    progress: tuple[str, int, int] | None = None
    measurement: Measurement | None = None
    generation: GenerationReport | None = None
    milliseconds: tuple[float, ...] | None = None
    """Duration of each call of a round, and of the first calls when the model is ready.

    Empty if the model cannot run on this machine.
    """
    failure: Failure | None = None


def _subclasses(base: type[CompressError]) -> Iterator[type[CompressError]]:
    yield base
    for subclass in base.__subclasses__():
        yield from _subclasses(subclass)
