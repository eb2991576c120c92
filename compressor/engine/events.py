"""Events of a run, as frozen records; a listener shows or logs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from compressor.artifacts.manifest import Metric
from compressor.errors import CompressError


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run starts; ``steps`` are those it will visit, in order."""

    pipeline: str
    store: Path
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another run is building this artifact; this run waits for it."""

    step: str
    artifact: str


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step is being built; ``resumed`` if an interrupted run left files of it."""

    step: str
    pass_name: str
    artifact: str
    resumed: bool


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Progress within a step: ``done`` of ``total`` units of ``what``."""

    step: str
    what: str
    done: int
    total: int
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepNote:
    """One line from a step to the user."""

    step: str
    text: str


@dataclass(frozen=True, slots=True)
class StepMeasured:
    """The step's artifact was measured."""

    step: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The step's artifact is published; ``how`` states where it came from."""

    step: str
    path: Path
    how: Literal["built", "cached", "measured"]
    seconds: float
    """Wall time of the step, measurements included."""
    pass_seconds: float
    """Wall time of the pass in the run that built the artifact; the estimate is of it."""
    peak_rss_bytes: int
    estimated_seconds: float | None = None
    estimated_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The step failed; nothing was published, and its checkpoints are kept for the next run."""

    step: str
    error: CompressError


@dataclass(frozen=True, slots=True)
class ArtifactDamaged:
    """A published artifact failed verification; it was set aside and is rebuilt."""

    step: str
    path: Path
    moved_to: Path
    details: str


@dataclass(frozen=True, slots=True)
class GateProgress:
    """``done`` of at most ``total`` rounds of a gate that measures latency again."""

    gate: str
    done: int
    total: int


Event = (
    RunStarted
    | Waiting
    | StepStarted
    | StepProgress
    | StepNote
    | StepMeasured
    | StepFinished
    | StepFailed
    | ArtifactDamaged
    | GateProgress
)
Listener = Callable[[Event], None]
