"""Samples that an ONNX graph is run on, and the comparison of a changed graph with its parent.

Shapes: N samples, V values of one output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnxscript import ir

from calibration.samples import Samples
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import DataError, NumericalError
from compressor.evaluation.calls import plan_calls
from compressor.graphs.decoder.interface import ATTENTION_MASK, INPUT_IDS, PAST_PREFIX
from compressor.graphs.signature import dimension
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.runtimes.formats import open_session
from compressor.runtimes.session import match_inputs

Array = np.ndarray[Any, Any]


class SampleChoice(Protocol):
    """Fields of a config that choose samples."""

    @property
    def data(self) -> str:
        """Name of the data set."""

    @property
    def num_samples(self) -> int:
        """Number of samples, at most."""

    @property
    def batch_size(self) -> int:
        """Samples per run."""

    @property
    def seed(self) -> int:
        """Seed of the selection."""


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """Difference of one output from the parent's, over all samples."""

    max_abs: float
    """Largest absolute difference of any value."""
    cosine: float
    """Smallest cosine similarity of any sample."""
    relative_error: float
    """Mean over the samples of ‖Δ‖ / ‖parent's values‖, of those whose values are not all 0."""
    other_shapes: int
    """Samples whose output has another shape, such as another number of boxes; the rest is of the
    others."""

    def row(self) -> dict[str, float | int]:
        """Return the difference as a row of the manifest."""
        others = {"samples_of_other_shapes": self.other_shapes} if self.other_shapes else {}
        return {
            "max_abs": self.max_abs,
            "cosine": self.cosine,
            "relative_error": self.relative_error,
            **others,
        }


def graph_inputs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Return the inputs of a graph; an unnamed dimension gets a name of its own."""
    return tuple(_input_spec(value) for value in model.graph.inputs)


def _input_spec(value: ir.Value) -> InputSpec:
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "float32"
    name = str(value.name)
    if value.shape is None:
        return InputSpec(name, dtype, (REST,))
    shape = tuple(
        dimension(name, axis, size if isinstance(size, int) else size.value)
        for axis, size in enumerate(value.shape)
    )
    return InputSpec(name, dtype, shape)


def load_feeds(
    choice: SampleChoice,
    inputs: Sequence[InputSpec],
    context: PassContext,
    parent: Path | None = None,
) -> list[Batch]:
    """Return batches of samples for all inputs of a graph.

    Args:
        choice: the fields of the config.
        inputs: the inputs of the graph.
        context: opens the data set.
        parent: folder of a graph that decides the samples per run where it fixes them.

    Raises:
        DataError: the data set is empty, or does not fit the graph.
    """
    dataset = context.data(choice.data)
    if len(dataset) == 0:
        raise DataError(f"data set {choice.data!r} is empty")
    batch_size = choice.batch_size
    if parent is not None:
        with open_session("onnx", parent, threads=context.threads) as session:
            sample = dataset.batch(np.arange(1))
            count = min(len(dataset), choice.num_samples)
            calls = plan_calls([session], sample, choice.batch_size, count)
        if calls.reason is not None:
            context.note(f"{calls.batch_size} samples per run: {calls.reason}")
        batch_size = calls.batch_size
    samples = Samples(dataset, count=choice.num_samples, batch_size=batch_size, seed=choice.seed)
    names = {spec.name for spec in inputs}
    is_decoder = names >= {INPUT_IDS, ATTENTION_MASK}
    caches = [spec for spec in inputs if is_decoder and spec.name.startswith(PAST_PREFIX)]
    computed = {spec.name for spec in caches} | ({ATTENTION_MASK} if caches else set())
    from_data = [spec for spec in inputs if spec.name not in computed]
    return [
        _add_masked_past(match_inputs(batch, from_data), caches)
        for batch in samples.batches("samples")
    ]


def _add_masked_past(feeds: Batch, caches: Sequence[InputSpec]) -> Batch:
    """Add a cache of one masked position, so that a decoder's keys and values are not empty."""
    if not caches:
        return feeds
    count, tokens = feeds[INPUT_IDS].shape
    mask = np.ones((count, tokens + 1), dtype=np.int64)
    mask[:, 0] = 0
    past = {
        spec.name: np.zeros(
            (count, *(size if isinstance(size, int) else 1 for size in spec.shape[1:])),
            dtype=spec.dtype,
        )
        for spec in caches
    }
    return {**feeds, ATTENTION_MASK: mask, **past}


def compare_graphs(
    parent: Path, changed: Path, feeds: Sequence[Batch], threads: int
) -> dict[str, OutputDifference]:
    """Compare the numeric outputs of a graph with those of its parent, in ONNX Runtime.

    Args:
        parent: folder of the parent's graph.
        changed: folder of the changed graph, whose outputs have the same names.
        feeds: batches of samples.
        threads: threads of one operator.

    Raises:
        NumericalError: the changed graph computes NaN or infinity where its parent does not.
    """
    differences: dict[str, list[tuple[Array, Array, Array] | int]] = {}
    with (
        open_session("onnx", parent, threads=threads) as reference,
        open_session("onnx", changed, threads=threads) as session,
    ):
        for batch in feeds:
            expected, actual = reference.run(batch), session.run(batch)
            for name, values in expected.items():
                if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
                    continue  # a sequence, or texts
                pair = _flatten(values), _flatten(actual[name])
                differences.setdefault(name, []).append(_differences(name, *pair))
    return {name: _merged(parts) for name, parts in differences.items()}


def _flatten(values: Array) -> Array:
    """Return the values of each sample in a row, float64 [N, V]."""
    rows = len(values) if values.ndim else 1
    return values.reshape(rows, math.prod(values.shape[1:])).astype(np.float64)


def _differences(
    name: str, expected_NV: Array, actual_NV: Array
) -> tuple[Array, Array, Array] | int:
    """Return largest difference, cosine and relative error of each sample.

    The relative error is NaN where the parent's values are all 0. An output of another shape gives
    the number of samples instead.
    """
    if expected_NV.shape != actual_NV.shape:
        return len(expected_NV)
    finite = np.isfinite(expected_NV)
    if not np.isfinite(actual_NV[finite]).all():
        raise NumericalError(f"the converted graph computes NaN or infinity in {name}")
    expected_NV, actual_NV = (np.where(finite, array, 0) for array in (expected_NV, actual_NV))
    difference_NV = actual_NV - expected_NV
    error_N = np.linalg.norm(difference_NV, axis=1)
    lengths_N = np.linalg.norm(expected_NV, axis=1)
    products_N = lengths_N * np.linalg.norm(actual_NV, axis=1)
    dots_N = (expected_NV * actual_NV).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        both_zero_N = (lengths_N == 0) & (error_N == 0)
        cosine_N = np.where(products_N > 0, dots_N / products_N, both_zero_N.astype(np.float64))
        relative_N = np.where(lengths_N > 0, error_N / lengths_N, np.nan)
    return np.abs(difference_NV).max(axis=1, initial=0.0), cosine_N, relative_N


def _merged(parts: Sequence[tuple[Array, Array, Array] | int]) -> OutputDifference:
    others = sum(part for part in parts if isinstance(part, int))
    compared = [part for part in parts if not isinstance(part, int)]
    if not compared:
        return OutputDifference(0.0, 1.0, 0.0, others)
    largest_N, cosine_N, relative_N = (
        np.concatenate(arrays) for arrays in zip(*compared, strict=True)
    )
    known_N = relative_N[np.isfinite(relative_N)]
    return OutputDifference(
        float(largest_N.max(initial=0.0)),
        float(cosine_N.min(initial=1.0)),
        float(known_N.mean()) if len(known_N) else 0.0,
        others,
    )
