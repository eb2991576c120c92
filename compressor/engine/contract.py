"""What a pass promises, and what the engine gives it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from compressor.config.record import Record
from compressor.data.contract import default_cache
from compressor.models.capabilities.capability import Capability
from compressor.models.facts import ModelFacts

if TYPE_CHECKING:
    from compressor.artifacts.store import Artifact
    from compressor.data.contract import Dataset


class PassConfig(Record):
    """Base of every pass's config."""


P = TypeVar("P", bound=PassConfig)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step will take; None where it cannot be known. Shown by ``plan``, compared with what happened."""

    model: ModelFacts = field(default_factory=ModelFacts)
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What a pass may know while planning."""

    facts: Mapping[str, ModelFacts]
    """Role to facts, of the other artifacts that the config names; None for what lies outside the plan."""


@dataclass(frozen=True, slots=True)
class PassContext:
    """What the engine gives a running pass."""

    artifacts: Mapping[str, Artifact]
    """Field name to artifact, for each field of the config that is a ``StepName``, as ``{"teacher": …}``."""
    data: Callable[[str], Dataset]
    """Opens a set by its name in pipeline.yaml."""
    work: Path
    """A folder that survives a kill: checkpoints go here. It is removed once the artifact is published."""
    seed: int
    threads: int
    device: str
    artifact_id: str
    """The id that the output will have."""
    progress: Callable[[str, int, int, Mapping[str, float]], None]
    """Called as (what, done, total, figures) as often as one likes."""
    note: Callable[[str], None]
    """One line for the person who runs it: a fall-back taken, a choice made. It is logged and reported."""
    cache: Path = field(default_factory=default_cache)
    """What later runs on this machine may use again goes here."""


@dataclass(frozen=True, slots=True)
class PassOutput:
    """What a pass hands back beside the files it wrote."""

    summary: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the manifest: history, choices, counts."""


class Pass(ABC, Generic[P]):
    """Reads one artifact, writes another; never touches its input.

    A new pass is one folder and one entry point in the group ``autoglm_compress.passes``. Its module must import without
    torch, onnx or tensorrt; ``run`` imports them. What a pass reads beside its parent is told by the types of its config's
    fields: ``DataName`` for a data set, ``StepName`` for another artifact; the plan checks them and hashes their content.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Bump it when the output may change."""
    accepts: ClassVar[frozenset[str]]
    """Names of the model formats it reads."""
    produces: ClassVar[str]
    """Name of the model format it writes."""
    Config: ClassVar[type[PassConfig]]
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    """Distributions whose version can change the bytes."""

    capabilities: ClassVar[tuple[type[Capability], ...]] = ()
    """Capabilities of the parent model that the pass needs, whatever its config."""

    def needs(self, config: P) -> tuple[type[Capability], ...]:
        """Return the capabilities of the parent model that the pass needs with this config.

        Reads only fields that have defaults: `show` and `doctor` call it without the others.
        """
        return self.capabilities

    def tools_for(self, config: P) -> tuple[str, ...]:
        """Those of ``tools`` and, where a config asks for something that needs them, more."""
        return self.tools

    def estimate(self, config: P, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Peak memory, time and disk, and what the output will be, before anything runs."""
        return Estimate(model=parent)

    def requires(self, config: P, parent: Artifact, context: PassContext) -> None:
        """Cheap checks of the input; names ALL offenders at once.

        Raises:
            RequirementError: the input does not fit.
        """
        return

    def preview(self, config: P, parent: Artifact, context: PassContext) -> list[Mapping[str, Any]]:
        """What ``run`` would decide, as rows of a table, without writing anything; none where there is nothing to tell."""
        return []

    @abstractmethod
    def run(self, config: P, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
        """Write the model's files into ``out`` (an empty folder), going on from ``context.work`` where there is something."""

    def ensures(self, config: P, parent: Artifact, out: Path, context: PassContext) -> None:
        """Reload what was written with its real consumer.

        Raises:
            ParityError: it does not compute what it should.
        """
        return
