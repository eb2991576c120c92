"""Samples that an ONNX graph is run on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from onnxscript import ir

from calibration.samples import Samples
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import DataError
from compressor.evaluation.calls import plan_calls
from compressor.graphs.decoder.interface import ATTENTION_MASK, INPUT_IDS, PAST_PREFIX
from compressor.graphs.signature import dimension
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.runtimes.formats import open_session
from compressor.runtimes.session import match_inputs


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
