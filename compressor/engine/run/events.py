"""What happens during a run, as frozen records; whoever wants to show or log it is a listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from compressor.artifacts.manifest import Metric
from compressor.errors import CompressError


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The plan stands; ``steps`` are those that will be looked at, in order."""

    pipeline: str
    store: Path
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another run builds this artifact; this one waits for it."""

    step: str
    artifact: str


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step is being built; ``resumed`` where a killed run left something of it."""

    step: str
    pass_name: str
    artifact: str
    resumed: bool


@dataclass(frozen=True, slots=True)
class StepProgress:
    """``done`` of ``total`` of ``what`` within a step."""

    step: str
    what: str
    done: int
    total: int
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepNote:
    """One line from a step to the person who runs it."""

    step: str
    text: str


@dataclass(frozen=True, slots=True)
class StepMeasured:
    """The step's artifact was measured."""

    step: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The step's artifact is published; ``how`` tells whether it was built now, taken as it was, or measured again."""

    step: str
    path: Path
    how: Literal["built", "cached", "measured"]
    seconds: float
    peak_rss_bytes: int
    estimated_seconds: float | None = None
    estimated_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The step failed; nothing was published, and what it had is kept for the next run."""

    step: str
    error: CompressError


@dataclass(frozen=True, slots=True)
class ArtifactDamaged:
    """A published artifact failed verification; it was set aside and is built again."""

    step: str
    path: Path
    moved_to: Path
    details: str


@dataclass(frozen=True, slots=True)
class GateProgress:
    """``done`` of at most ``total`` rounds of a gate that measures latency."""

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
