"""The ``align`` pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    OUTPUT,
    DataNeed,
    Estimate,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.capabilities.embeddings import Embeddings
from compressor.models.facts import ModelFacts
from passes.align.checks import (
    data_problems,
    format_problems,
    model_problems,
    teacher_problems,
)
from passes.align.config import AlignConfig
from passes.common.data_needs import training_needs
from passes.common.field_problems import check_no_problems
from passes.common.training_pass import TrainingPass


class Align(TrainingPass[AlignConfig]):
    """Train an encoder on pairs, so that what belongs together has similar embeddings.

    The model is one encoder for queries and passages, such as `sentence-encoder` or BERT, with
    data of `text-pairs`; or a model of two kinds, such as CLIP, SigLIP or transformers'
    VisionTextDualEncoder, with data of `image-captions`. The result is a model of the same class.
    With `other`, an encoder of images and one of texts are joined to a VisionTextDualEncoder. The
    loss compares each pair with the others of its batch, except those that share its image,
    passage or query.
    """

    name = "align"
    version = 1
    Config = AlignConfig
    capabilities = (Embeddings,)

    def data_needs(self, config: AlignConfig) -> tuple[DataNeed, ...]:
        """Return the data sets to train on and to evaluate; both need labels, which are pairs."""
        needs = training_needs(config.train, config.validation, "type: align")
        if config.other is not None:
            needs = tuple(replace(need, role=OUTPUT) for need in needs)
        if config.teacher is None:
            return needs
        return (*needs, replace(needs[0], role="teacher"))

    def check_applies(self, config: AlignConfig, models: Mapping[str, ModelFacts]) -> None:
        """Check that the fields apply to the model that is trained, and to the teacher."""
        model = _trained_model(config, models["parent"], models.get("other"))
        problems = model_problems(config, model)
        check_no_problems([*problems, *teacher_problems(model, models.get("teacher"))])

    def estimate(self, config: AlignConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Estimate time, memory and disk from the parameters and MACs of the model.

        Raises:
            RequirementError: A field does not apply to the model, or a data set has no pairs.
        """
        from passes.align.estimates import align_estimate

        check_no_problems(format_problems(context.formats))
        self.check_applies(config, {**context.facts, "parent": parent})
        model = _trained_model(config, parent, context.facts.get("other"))
        check_no_problems(data_problems(config, model, context.data))
        teacher = context.facts.get("teacher")
        return align_estimate(config, model, teacher, context.data.get(config.train))

    def run(
        self, config: AlignConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Train the model, with checkpoints in ``context.work``, and save it to ``out``."""
        from passes.align.training import align

        return align(config, parent, out, context)


def _trained_model(config: AlignConfig, parent: ModelFacts, other: ModelFacts | None) -> ModelFacts:
    """Return the model that is trained: the parent, or both encoders joined.

    Raises:
        RequirementError: the encoders cannot be joined.
    """
    if other is None:
        return parent
    from passes.align.joining import join_facts

    return join_facts(parent, other, config.projection_dim)
