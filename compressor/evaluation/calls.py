"""Choose the samples per call, for models without a batch axis or with a fixed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.data.contract import Batch
from compressor.errors import DataError
from compressor.evaluation.metrics import Array
from compressor.runtimes.session import Session, is_whole_sample


@dataclass(frozen=True, slots=True)
class Calls:
    """How a model is called in a measurement of accuracy."""

    batch_size: int
    reason: str | None = None
    """Why it is not the configured one, for the user."""
    whole_outputs: bool = False
    """True if a call takes one sample, and outputs need not have a batch axis."""

    def add_batch_axis(self, outputs: Batch) -> Batch:
        """Return the outputs of a call, with a batch axis of one where they have none."""
        if not self.whole_outputs:
            return outputs
        return {name: _with_batch_axis(array) for name, array in outputs.items()}


def _with_batch_axis(array: Array) -> Array:
    return array if array.ndim and len(array) == 1 else array[None]


def plan_calls(
    sessions: Sequence[Session], sample: Mapping[str, Array], requested: int, count: int
) -> Calls:
    """Return how models are called that are measured together.

    Args:
        sessions: the models.
        sample: a batch of one sample.
        requested: the configured batch size.
        count: number of samples.

    Raises:
        DataError: a model takes a fixed number of samples, and the count is no multiple of it,
            or they differ in it.
    """
    fixed = {size for session in sessions for size in _fixed_sizes(session, sample)}
    reasons = (_without_batch_axis(session, sample) for session in sessions)
    whole = next((text for text in reasons if text is not None), None)
    if whole is not None or fixed == {1}:
        why = whole or "the model takes one sample per call"
        return Calls(1, why if requested != 1 and count > 1 else None, whole_outputs=True)
    if not fixed:
        return Calls(requested)
    sizes = sorted(fixed)
    if len(sizes) > 1 or count % sizes[0]:
        raise _batch_error(sizes, count)
    reason = f"the model takes {sizes[0]} samples per call" if requested != sizes[0] else None
    return Calls(sizes[0], reason)


def _batch_error(sizes: Sequence[int], count: int) -> DataError:
    """Return the error of samples that do not fill calls, with what would help."""
    size = sizes[0]
    if len(sizes) > 1:
        return DataError(
            f"calls of the model take {' and '.join(map(str, sizes))} samples, which differ",
            remedy="export the model with a dynamic batch axis",
        )
    if count < size:
        return DataError(
            f"a call of the model takes exactly {size} samples, and there are {count}",
            remedy=f"use a data set and `num_samples` of at least {size} samples, or export the "
            "model with a dynamic batch axis",
        )
    return DataError(
        f"a call of the model takes exactly {size} samples, and {count} are measured",
        remedy=f"set `num_samples` to a multiple of {size}, or export the model with a "
        "dynamic batch axis",
    )


def _fixed_sizes(session: Session, sample: Mapping[str, Array]) -> set[int]:
    """Return the fixed sizes of batch axes."""
    return {
        spec.shape[0]
        for spec in session.inputs
        if spec.name in sample
        and spec.shape
        and isinstance(spec.shape[0], int)
        and not is_whole_sample(spec, sample[spec.name].shape)
    }


def _without_batch_axis(session: Session, sample: Mapping[str, Array]) -> str | None:
    """Return why a session takes one sample per call: an input or output has no batch axis."""
    for spec in session.inputs:
        if spec.name in sample and is_whole_sample(spec, sample[spec.name].shape):
            return f"the input `{spec.name}` has no batch axis"
    batch_axes = {spec.shape[0] for spec in session.inputs if spec.shape}
    for output in session.outputs:
        first = output.shape[0] if output.shape else None
        if isinstance(first, int) and first not in batch_axes:
            return f"the first axis of the output `{output.name}` is fixed to {first}"
    return None
