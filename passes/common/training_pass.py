"""The frame of passes that train a model of torch; imports no torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import Pass, PassConfig, PassContext
from compressor.models.architecture import Architecture
from compressor.models.facts import ModelFacts, facts_of

if TYPE_CHECKING:
    from torch import nn

P = TypeVar("P", bound=PassConfig)


class TrainingPass(Pass[P]):
    """What `train`, `distill`, `lora` and `align` share: their checks before and after training."""

    accepts = frozenset({"torch"})
    produces = "torch"
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")

    @abstractmethod
    def check_applies(self, config: P, models: Mapping[str, ModelFacts]) -> None:
        """Check that the fields apply to the models, as far as these are known.

        Args:
            config: of the pass.
            models: by role: ``parent``, or the config field that names the artifact.

        Raises:
            RequirementError: The message names every field that does not apply.
        """

    def requires(self, config: P, parent: Artifact, context: PassContext) -> None:
        """Check that the fields apply, and that the weights of all models are finite.

        Raises:
            RequirementError: A field does not apply to a model.
            NumericalError: A weight is NaN or infinite.
        """
        from compressor.models.checkpoint.finite import check_finite

        artifacts = {"parent": parent, **context.artifacts}
        self.check_applies(config, {role: facts_of(each.model) for role, each in artifacts.items()})
        for artifact in artifacts.values():
            check_finite(artifact.model)

    def ensures(
        self,
        config: P,  # noqa: ARG002
        parent: Artifact,  # noqa: ARG002
        out: Path,
        context: PassContext,
    ) -> None:
        """Check that the saved model loads, and that its weights are finite."""
        from passes.common.requirements import check_saved_model

        check_saved_model(out, context.device)


def save_trained(architecture: Architecture, model: nn.Module, parent: Path, out: Path) -> None:
    """Save a trained model with the tokenizer, processor and licence of its parent.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    from compressor.models.checkpoint.companions import copy_companions

    architecture.family.save(model, architecture.config, out)
    copy_companions(parent, out)
