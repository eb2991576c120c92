"""The ``lora`` pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    DataNeed,
    Estimate,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.adapters.peft_modules import check_peft
from compressor.models.architecture import Architecture
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts
from passes.common.config import training_problems
from passes.common.data_needs import training_needs
from passes.common.field_problems import check_no_problems
from passes.common.training_pass import TrainingPass
from passes.lora.config import LoraConfig


class Lora(TrainingPass[LoraConfig]):
    """Train a small increment to a model whose own weights stay as they are.

    The base is a float model or an `awq` artifact; of packed weights, the unpacked values are
    trained on, so that the adapter fits the packed model and also makes up for its rounding
    (QLoRA, Dettmers et al. 2023). The result is an adapter in PEFT's own layout that refers to its
    base by id and digest. The reports are those of base and adapter together. The loss is the
    cross-entropy with labels, for language models with the next token, and with the logits of a
    `teacher` if there is one.
    """

    name = "lora"
    version = 1
    accepts = frozenset({"torch", "packed"})
    produces = "adapter"
    Config = LoraConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy", "peft")
    capabilities = (TrainingHeads,)

    def data_needs(self, config: LoraConfig) -> tuple[DataNeed, ...]:
        """Return the data sets, which the teacher runs on too."""
        hard: str | None = "type: lora"
        if config.teacher is not None:
            weight = config.soft_weight
            hard = f"soft_weight: {weight:g}" if weight < 1 else None
        soft = None if config.teacher is None else "soft_weight: 1"
        train, *validation = training_needs(config.train, config.validation, hard, soft)
        roles = ("parent",) if config.teacher is None else ("parent", "teacher")
        return (*(replace(train, role=role) for role in roles), *validation)

    def check_applies(self, config: LoraConfig, models: Mapping[str, ModelFacts]) -> None:
        """Check that the fields apply to the base, and that each target matches something."""
        parent = models["parent"]
        problems = training_problems(config.training, "training", parent)
        architecture: Architecture | None = parent.architecture()
        if architecture is not None and not problems:  # a model that can be trained can be built
            from passes.lora.targets import target_problems

            problems += target_problems(config, architecture)
        check_no_problems(problems)

    def estimate(self, config: LoraConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Estimate time and memory from the parameters and linear layers of the base.

        Raises:
            MissingExtraError: PEFT is not installed.
            RequirementError: a field does not apply to the model, or a target matches nothing.
        """
        from passes.common.estimates import training_estimate

        check_peft("the pass `lora`")
        self.check_applies(config, {**context.facts, "parent": parent})
        return training_estimate(
            parent,
            config.training,
            context.facts.get("teacher"),
            context.data.get(config.train),
            is_frozen=True,
        )

    def run(
        self, config: LoraConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Train the adapter, with checkpoints in ``context.work``, and write it to ``out``."""
        from passes.lora.training import train_adapter

        teacher = None if config.teacher is None else context.artifacts["teacher"]
        return train_adapter(config, parent, teacher, out, context)

    def ensures(
        self, config: LoraConfig, parent: Artifact, out: Path, context: PassContext
    ) -> None:
        """Check that PEFT loads the adapter onto its base, and that its values are finite."""
        from compressor.models.adapters.layout import ADAPTER_WEIGHTS
        from compressor.models.adapters.peft_modules import add_adapter
        from compressor.models.checkpoint.finite import check_files_finite
        from compressor.models.checkpoint.loading import load_module

        check_files_finite(out, [out / ADAPTER_WEIGHTS])
        add_adapter(load_module(parent.model), out)
