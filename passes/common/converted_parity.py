"""Comparison of a graph that was converted to another format with the ONNX graph it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from compressor.config.record import BatchSize, DataName, Record

if TYPE_CHECKING:
    from compressor.data.contract import Batch
    from compressor.engine.contract import PassContext
    from passes.common.graph_comparison import OutputDifference


class ConvertedParityConfig(Record):
    """Comparison of the converted file with its ONNX graph, both executed on this machine."""

    data: DataName = "test"
    """Data set whose samples are compared. Labels are not used, and random values do."""
    num_samples: Annotated[int, Field(ge=1)] = 16
    """Number of samples; the whole data set if it has fewer."""
    batch_size: BatchSize = 4
    """Samples per run of the graph."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the selection. The data set is divided into `num_samples` equal stretches, and one
    sample is drawn at random from each."""
    relative_error: Annotated[float, Field(gt=0)] | None = None
    """Largest mean of ‖Δ‖ / ‖values‖ of any output. The default depends on the types in the
    file."""


def parity_batches(
    parity: ConvertedParityConfig, parent: Path, context: PassContext, format_name: str = "onnx"
) -> Iterator[Batch]:
    """Yield the samples of the comparison, as many per run as the parent takes.

    Raises:
        DataError: the data set is empty, or does not fit the graph.
    """
    import numpy as np

    from calibration.samples import Samples
    from compressor.errors import DataError
    from compressor.evaluation.calls import plan_calls
    from compressor.runtimes.formats import open_session

    dataset = context.data(parity.data)
    if len(dataset) == 0:
        raise DataError(f"data set {parity.data!r} is empty")
    count = min(len(dataset), parity.num_samples)
    with open_session(format_name, parent, threads=context.threads) as session:
        calls = plan_calls([session], dataset.batch(np.arange(1)), parity.batch_size, count)
    if calls.reason is not None:
        context.note(f"{calls.batch_size} samples per run: {calls.reason}")
    samples = Samples(dataset, count=count, batch_size=calls.batch_size, seed=parity.seed)
    yield from samples.batches("samples")


def beyond(limit: float, differences: Mapping[str, OutputDifference]) -> list[str]:
    """Return a line for each output that differs by more than the limit, or in its shape."""
    return [
        f"    {name}: {each.describe()}, cosine {each.cosine:.6f}"
        for name, each in differences.items()
        if not each.relative_error <= limit or each.other_shapes
    ]
