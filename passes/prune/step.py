"""The ``prune`` pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    DataNeed,
    Estimate,
    Pass,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.architecture import Architecture
from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts, planned_facts
from passes.common.data_needs import training_needs
from passes.prune.config import PruneConfig, Target

_BACKWARD_COST = 3
"""Cost of a forward and a backward pass, in forward passes."""


class Prune(Pass[PruneConfig]):
    """Remove channels, attention heads, inner widths or layers; the result is a dense model.

    The model's family states which dimensions are coupled (dependency groups, Fang et al. 2023).
    Units are scored by magnitude (Li et al. 2017), activation (Sun et al. 2024), entropy (Luo & Wu
    2017), gradient, or first-order Taylor expansion of the loss (Molchanov et al. 2019); layers by
    the cosine similarity of their input and output (Men et al. 2024). The units that lose the least
    importance per cost saved are removed, at once or in rounds with training between them (Zhu &
    Gupta 2017). `recovery` trains the pruned model. So does a later `distill` step with `student:
    {parent: true}` and the unpruned step as the teacher, which can also match features.
    """

    name = "prune"
    version = 6
    accepts = frozenset({"torch"})
    produces = "torch"
    Config = PruneConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")

    def needs(self, config: PruneConfig) -> tuple[type[Capability], ...]:
        """Return the cuttable axes, and the training heads if a loss is computed."""
        uses_labels = config.loss_field is not None or config.recovery is not None
        return (CuttableAxes, TrainingHeads) if uses_labels else (CuttableAxes,)

    def data_needs(self, config: PruneConfig) -> tuple[DataNeed, ...]:
        """Return the calibration samples and the data sets of the recovery."""
        needs: tuple[DataNeed, ...] = ()
        if config.calibration is not None:
            field = config.loss_field
            instead = "importance: activation"
            if field is not None and field.startswith("layer_importance"):
                instead = "layer_importance: cosine"
            needs = (DataNeed("calibration", config.calibration, labels=field, unlabelled=instead),)
        recovery = config.recovery
        if recovery is None:
            return needs
        weight = recovery.soft_weight
        hard = f"recovery.soft_weight: {weight:g}" if weight < 1 else None
        return (
            *needs,
            *training_needs(
                recovery.train,
                recovery.validation,
                hard,
                "recovery.soft_weight: 1",
                prefix="recovery.",
            ),
        )

    def tools_for(self, config: PruneConfig) -> tuple[str, ...]:
        """Return the tools, with ONNX Runtime if it measures the operators."""
        measures = config.latency is not None and config.latency.runtime == "onnxruntime"
        return (*self.tools, "onnxruntime") if measures else self.tools

    def estimate(self, config: PruneConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Estimate the output from the target, and the time of scoring and recovery.

        Raises:
            RequirementError: fields do not apply to the parent.
        """
        from passes.common.estimates import mapped_memory, training_memory, training_seconds

        _check_planned(config, parent)
        size = parent.size_bytes or 4 * (parent.parameters or 0)
        pruned = _planned_model(config, parent)
        if pruned is not None and pruned.parameters and parent.parameters:
            ratio = pruned.parameters / parent.parameters
        else:
            ratio = _size_ratio(config.target, parent, size)
        data = None if config.calibration is None else context.data.get(config.calibration)
        memory = mapped_memory(parent, config.batch_size, int((1 + ratio) * size), data)
        if (recovery := config.recovery) is not None:
            data = context.data.get(recovery.train)
            memory = max(memory, training_memory(parent, recovery.training.batch_size, data))
        return Estimate(
            model=replace(pruned or _scaled(parent, ratio), size_bytes=int(ratio * size) or None),
            seconds=training_seconds(
                parent, _scoring_passes(config) + _recovery_passes(config, ratio)
            ),
            peak_memory_bytes=memory,
            disk_bytes=_disk_bytes(config, ratio, size),
        )

    def requires(self, config: PruneConfig, parent: Artifact, context: PassContext) -> None:
        """Check that fields apply to the model, and that its weights are finite."""
        from compressor.models.checkpoint.description import read_description
        from compressor.models.checkpoint.finite import check_finite
        from passes.prune.axes import check_applicable

        description = read_description(parent.model)
        check_applicable(config, description.family, description.config)
        check_finite(parent.model)

    def preview(
        self, config: PruneConfig, parent: Artifact, context: PassContext
    ) -> list[Mapping[str, Any]]:
        """Return the cut of every axis; for a gradual schedule, as the first scores predict it."""
        from passes.prune.rounds import preview_cut

        return preview_cut(config, parent, context)

    def run(
        self, config: PruneConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Score, select, cut and train in all rounds, and save the model."""
        from passes.prune.rounds import prune

        return prune(config, parent, out, context)

    def ensures(
        self,
        config: PruneConfig,
        parent: Artifact,
        out: Path,
        context: PassContext,
    ) -> None:
        """Check that the model loads with its new config, and that its weights are finite."""
        from passes.common.requirements import check_saved_model

        check_saved_model(out, context.device)


def _check_planned(config: PruneConfig, parent: ModelFacts) -> None:
    """Check that fields apply to the parent, if its architecture is known."""
    from passes.prune.axes import check_applicable

    if (architecture := parent.architecture()) is not None:
        check_applicable(config, architecture.family, architecture.config)


def _planned_model(config: PruneConfig, parent: ModelFacts) -> ModelFacts | None:
    """Return the pruned model where the target states all its sizes; else None."""
    from passes.prune.axes import planned_config

    architecture = parent.architecture()
    if architecture is None or not parent.sizes_known:
        return None
    pruned = planned_config(config, architecture.family, architecture.config)
    return None if pruned is None else planned_facts(Architecture(architecture.family, pruned))


def _scaled(parent: ModelFacts, ratio: float) -> ModelFacts:
    """Return the parent with fewer parameters and MACs, and sizes that are not known."""
    return replace(
        parent,
        parameters=int(ratio * parent.parameters) if parent.parameters else None,
        macs=int(ratio * parent.macs) if parent.macs else None,
        sizes_known=False,
    )


def _size_ratio(target: Target, parent: ModelFacts, size_bytes: int) -> float:
    """Return the size of the output relative to the parent; 1 if the target does not state it."""
    measures = {"macs": parent.macs, "params": parent.parameters, "size_mb": size_bytes / 1e6}
    for name, value in measures.items():
        if value and (limit := target.limit(name, value)) is not None:
            return min(1.0, limit / value)
    return 1.0


def _scoring_passes(config: PruneConfig) -> int:
    """Return the cost of scoring, in forward passes of the parent."""
    if config.importance == "magnitude":
        return 0
    return _BACKWARD_COST * config.schedule.cuts * config.num_samples


def _recovery_passes(config: PruneConfig, ratio: float) -> float:
    """Return the cost of recovery, in forward passes of the parent: of students and teacher."""
    if config.recovery is None:
        return 0.0
    cuts = config.schedule.cuts
    sizes = [ratio + (1 - ratio) * (1 - number / cuts) ** 3 for number in range(1, cuts + 1)]
    training = config.recovery.training
    teacher_cost = 1 if config.recovery.soft_weight > 0 else 0
    student_cost = _BACKWARD_COST * sum(sizes) / cuts
    return training.steps * training.batch_size * (student_cost + teacher_cost)


def _disk_bytes(config: PruneConfig, ratio: float, size_bytes: int) -> int:
    if config.recovery is None:
        # The output and its memory-mapped weights, and the weights that `repair` changes.
        return int(2 * ratio * size_bytes) + (size_bytes if config.repair else 0)
    # A checkpoint with the optimizer's moments and the averaged weights, and that of the rounds.
    return 6 * size_bytes
