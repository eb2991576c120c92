"""Shared parts of the scorers: batches with a model's outputs, and checks of arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError, NumericalError
from compressor.evaluation.metrics import Array, Scores

_MASK, _DECODER_MASK = "attention_mask", "decoder_attention_mask"
_DECODER_TOKENS = "decoder_input_ids"


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """A batch with the outputs of the model, and of the reference if there is one."""

    batch: Batch
    outputs: Batch
    """Empty if no scorer needs them."""
    reference: Batch | None
    done: int
    """Samples before this batch."""
    data: str
    """Name of the data set, for messages."""


class OutputScorer(ABC):
    """Scores one output of a model by some metrics, batch by batch."""

    needs_outputs: ClassVar[bool] = True
    """False if the outputs of a call are not scored."""
    note: str | None = None
    """How the output is read, for the user; None where its name states it."""

    @abstractmethod
    def update(self, scored: ScoredBatch) -> None:
        """Score a batch; no reference to its outputs is kept beyond what the metrics need."""

    @abstractmethod
    def finish(self) -> Scores:
        """Return the scores of all batches."""


def output_array(outputs: Batch, name: str, model: str) -> Array:
    """Return an output.

    Raises:
        DataError: the model lacks it.
    """
    if name not in outputs:
        raise DataError(
            f"{model} has no output `{name}` to score; it has {', '.join(outputs)}",
            remedy="measure latency only, or export the model with an output of that name"
            if model == "the model"
            else "name a reference of the same task as `evaluate.accuracy.reference`",
        )
    return outputs[name]


def reference_array(scored: ScoredBatch, name: str, values: Array) -> Array | None:
    """Return the reference's output of the same name and shape; None if there is no reference.

    Raises:
        DataError: the reference lacks the output, or has another shape.
    """
    if scored.reference is None:
        return None
    expected = output_array(scored.reference, name, "the reference")
    if expected.shape != values.shape:
        raise DataError(
            f"the reference outputs {name} {list(expected.shape)}, the model {list(values.shape)}",
            remedy="name a reference of the same task as `evaluate.accuracy.reference`",
        )
    return expected


def valid_positions(batch: Batch, shape: tuple[int, ...]) -> Array | None:
    """Return the positions [N, T] of an output that are not padding; None if all are valid.

    Args:
        batch: the inputs, with a mask [N, T] where texts are padded.
        shape: shape of the output; a mask applies to outputs [N, T, ...].
    """
    mask = batch.get(_DECODER_MASK if _DECODER_TOKENS in batch else _MASK)
    if mask is None or len(shape) < 3 or mask.shape != shape[:2]:
        return None
    valid: Array = mask != 0
    return valid


def raise_nan(model: str, count: int, values: Array, scored: ScoredBatch) -> None:
    """Raise an error if samples of a batch have NaN.

    Raises:
        NumericalError: ``count`` is not 0.
    """
    if count:
        total = f"the first {scored.done + len(values)} samples of {scored.data!r}"
        raise NumericalError(f"{model} outputs NaN for {count} of {total}")


def samples_with_nan(values: Array) -> int:
    """Return the number of samples with NaN anywhere."""
    return int(np.isnan(values.reshape(len(values), -1)).any(axis=1).sum())


NOTHING: Array = np.empty(0, dtype=np.int64)
