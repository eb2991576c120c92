"""Config of the ``align`` pass."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.config.record import DataName, StepName
from compressor.engine.contract import PassConfig
from passes.common.config import TrainingConfig, validation_problems
from passes.common.field_problems import is_set, raise_problems

Kind = Literal["image", "text", "audio"]


class AlignConfig(PassConfig):
    """Fields of an ``align`` step."""

    other: StepName | None = None
    """Step or artifact directory with a second encoder: one of images and one of texts become
    transformers' VisionTextDualEncoder, with a projection behind each. Both are classes of
    transformers with a `pooler_output`, such as ViTModel and BertModel."""
    projection_dim: Annotated[int, Field(ge=1)] = 512
    """Width of the embeddings of both encoders; only with `other`."""
    train: DataName = "train"
    """Data set of pairs to train on, such as one of `text-pairs` or `image-captions`."""
    validation: DataName | None = "validation"
    """Data set of pairs on which retrieval is evaluated during training, for the report and for
    early stopping: the mean of recall@1 counts. Do not use the test set. `null` for none."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch size in pairs, learning rate and so on. Every other pair of a batch is a
    negative, so large batches train better."""
    loss: Literal["infonce", "sigmoid"] = "infonce"
    """`infonce`: the softmax of each row and column of the batch's products (Oord et al. 2018;
    Radford et al. 2021). `sigmoid`: each product is classified by itself, with a trained bias
    (SigLIP, Zhai et al. 2023)."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Divisor of the products. By default that of the model's own `logit_scale`; without one, 0.07
    for `infonce`, 0.1 for `sigmoid`, and 1 for `similarity: dot`. ClapModel has one for each
    direction; their geometric mean counts."""
    learn_temperature: bool = False
    """Train the temperature too, from `temperature` on; with `infonce` it stays above 0.01."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Products of embeddings that are scaled to length 1, or as they are. `evaluate` compares
    embeddings as they are: of an encoder whose output has any length, only `dot` trains what is
    measured."""
    output: str | None = None
    """Output of an encoder of one kind that is trained; hidden states count by their mean over
    valid positions. By default the one that metrics of retrieval score."""
    teacher: StepName | None = None
    """Step or artifact directory with a model of the same kind whose products are soft labels: the
    softmax of each row and column, at the temperature of the loss. By default the pairs alone
    count."""
    soft_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the soft labels in the loss; the pairs have the rest."""
    freeze: tuple[Kind, ...] = ()
    """Towers of a model of two kinds that stay as they are, such as `[image]` for locked-image
    tuning (Zhai et al. 2022); projections behind a tower are trained."""
    chunk_size: Annotated[int, Field(ge=1)] | None = None
    """Pairs whose activations are kept at once, for batches that do not fit into memory (GradCache,
    Gao et al. 2021). The gradient is that of the whole batch, for one more forward pass. By default
    the whole batch."""

    @model_validator(mode="after")
    def _check_fields(self) -> AlignConfig:
        problems = validation_problems(self.validation, self.training)
        if self.training.batch_size == 1:
            problems.append("`training.batch_size: 1` leaves no negatives: set 2 or more")
        if self.chunk_size is not None and self.chunk_size >= self.training.batch_size:
            problems.append(
                f"`chunk_size` has no effect with batches of {self.training.batch_size} pairs: "
                "leave it out, or raise `training.batch_size`"
            )
        if len(set(self.freeze)) != len(self.freeze):
            problems.append("`freeze` names a tower twice: name each once")
        if self.teacher is None and is_set(self, "soft_weight"):
            problems.append("`soft_weight` has no effect without `teacher`: leave it out")
        if self.teacher is not None and self.soft_weight == 1 and is_set(self, "loss"):
            problems.append("`loss` has no effect with `soft_weight: 1`: leave it out")
        if self.other is None and is_set(self, "projection_dim"):
            problems.append("`projection_dim` has no effect without `other`: leave it out")
        raise_problems(problems)
        return self
