"""The contract between the engine and a pass.

A new pass is one folder and one entry point in the group ``autoglm_compress.passes``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from compressor.config.record import Record
from compressor.data.contract import DataFacts, default_cache
from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.signature import InputSpec
from compressor.models.facts import ModelFacts

if TYPE_CHECKING:
    from compressor.artifacts.artifact import Artifact
    from compressor.data.contract import Dataset


class PassConfig(Record):
    """Base of every pass's config."""


P = TypeVar("P", bound=PassConfig)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted cost and output of a step; None where a value is not known.

    `plan` shows it, and the run compares it with what was measured.
    """

    model: ModelFacts = field(default_factory=ModelFacts)
    """Facts of the model that the step will write."""
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    disk_bytes: int | None = None
    notes: tuple[str, ...] = ()
    """Lines for the user that are not errors, such as consumers that do not load the output."""


@dataclass(frozen=True, slots=True)
class DataNeed:
    """A data set that a pass runs a model on. The engine checks that it fits the model."""

    field: str
    """Path of the config field that names the data set, such as ``calibration.data``."""
    data: str
    """Name of the data set."""
    role: str = "parent"
    """Role of the model, as in ``PlanContext.facts``, or ``OUTPUT``."""
    labels: str | None = None
    """Setting that needs labels, as the user writes it, such as ``importance: taylor``; None if no
    setting needs them."""
    unlabelled: str | None = None
    """Setting in its place that needs no labels, such as ``importance: activation``."""
    min_samples: int = 1
    """Smallest number of samples that the pass accepts."""
    min_samples_field: str | None = None
    """Path of the config field that states ``min_samples``."""
    ignores_inputs: bool = False
    """True if arrays that the model does not take are ignored."""
    any_values: bool = False
    """True if the values of the samples do not matter, as for latency."""


OUTPUT = "output"
"""Role of the model that a step writes."""


@dataclass(frozen=True, slots=True)
class PlanContext:
    """Facts that a pass may use while planning."""

    facts: Mapping[str, ModelFacts]
    """Facts of the input artifacts by role: ``parent``, or the config field that names the
    artifact, such as ``teacher``."""
    data: Mapping[str, DataFacts] = field(default_factory=dict)
    """Facts of the data sets that the config names, by name."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Names of the formats of the input artifacts by role, as ``facts``."""


@dataclass(frozen=True, slots=True)
class StarterModel:
    """A model on disk for which `show` checks the passes and `init --from` writes a pipeline."""

    facts: ModelFacts
    inputs: tuple[InputSpec, ...] | None = None
    """None where they are not known."""
    data: str | None = "samples"
    """Name of a data set with samples of these inputs; None if no installed source provides it."""
    runs: Callable[[int], bool] | None = field(default=None, compare=False)
    """Tries whether the model runs where all dimensions that vary, but for batches, have a size;
    None where it is not to be tried."""


@dataclass(frozen=True, slots=True)
class PassContext:
    """Inputs and services that the engine provides to a running pass."""

    artifacts: Mapping[str, Artifact]
    """Config field to artifact, for each ``StepName`` field: ``{"teacher": …}``."""
    data: Callable[[str], Dataset]
    """Opens a data set by its name in pipeline.yaml."""
    work: Path
    """Folder for checkpoints. It survives a kill, and is removed once the artifact is published."""
    seed: int
    threads: int
    device: str
    artifact_id: str
    """Id of the artifact that is being built."""
    progress: Callable[[str, int, int, Mapping[str, float]], None]
    """Reports progress as (label, done, total, metrics), at any rate."""
    note: Callable[[str], None]
    """Records one line for the user, such as a fallback; it is logged and reported."""
    cache: Path = field(default_factory=default_cache)
    """Folder for files that later runs on this machine can reuse."""


@dataclass(frozen=True, slots=True)
class PassOutput:
    """Result of a pass beside the files it wrote."""

    summary: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the manifest: history, decisions, counts."""


class Pass(ABC, Generic[P]):
    """Reads one artifact and writes another; the input is never modified.

    The engine calls ``estimate`` while planning, then ``requires``, ``run`` and ``ensures`` in this
    order. The module of a pass must import without torch, onnx or tensorrt; ``run`` imports them.
    Inputs beside the parent are declared by the types of config fields: ``DataName`` for a data
    set, ``StepName`` for another artifact. The plan checks that they exist and hashes their
    content.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Increase it when the output may change for the same input."""
    accepts: ClassVar[frozenset[str]]
    """Names of the model formats that the pass reads."""
    produces: ClassVar[str]
    """Name of the model format that the pass writes."""
    keeps_format: ClassVar[bool] = False
    """True if the output has the format of the parent, of which ``produces`` is the usual one."""
    Config: ClassVar[type[PassConfig]]
    keeps_attention_pattern: ClassVar[bool] = False
    """True if the output computes with the ``attention_pattern.json`` of the parent. Others are
    refused by the plan for a parent that has one: its heads would attend to all keys again."""
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    """Python distributions whose version can change the bytes of the output."""
    capabilities: ClassVar[tuple[type[Capability], ...]] = ()
    """Capabilities of the parent model that the pass needs, whatever its config."""

    def needs(self, config: P) -> tuple[type[Capability], ...]:
        """Return the capabilities of the parent model that the pass needs with this config.

        It may read only fields that have defaults: `show` and `doctor` call it with a config in
        which the required fields are missing.
        """
        return self.capabilities

    def data_needs(self, config: P) -> tuple[DataNeed, ...]:
        """Return the data sets that the pass runs a model on.

        The engine compares them with the model while planning, before the first step of a run, and
        batch by batch: inputs, shapes, ranges, labels and the number of samples.
        """
        return ()

    def is_recommended(self, model: StarterModel) -> bool:
        """Return True if a first pipeline for a model should have the pass; by default it has not.

        It is called for models that the pass accepts.
        """
        return False

    def starter_fields(self, model: StarterModel) -> Mapping[str, Any]:
        """Return the fields that a step needs for a model, without those whose default fits.

        `show` checks the model with them, and `init --from` writes them.
        """
        return {}

    def tools_for(self, config: P) -> tuple[str, ...]:
        """Return ``tools`` and the distributions that only this config needs."""
        return self.tools

    def estimate(self, config: P, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Predict memory, time, disk and the output model, before anything runs.

        Raises:
            RequirementError: config fields do not apply to the model; the message names all.
        """
        return Estimate(model=parent)

    def requires(self, config: P, parent: Artifact, context: PassContext) -> None:
        """Check the input cheaply.

        Raises:
            RequirementError: the input does not fit; the message names every offender.
        """
        return

    def preview(self, config: P, parent: Artifact, context: PassContext) -> list[Mapping[str, Any]]:
        """Return the decisions that ``run`` would make, as table rows; nothing is written."""
        return []

    @abstractmethod
    def run(self, config: P, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
        """Write the model's files into ``out``, an empty folder.

        Resumes from ``context.work`` if an earlier, interrupted run left checkpoints there.
        """

    def ensures(self, config: P, parent: Artifact, out: Path, context: PassContext) -> None:
        """Reload the written model with the library that is to run it.

        Raises:
            ParityError: the model does not compute what it should.
        """
        return
