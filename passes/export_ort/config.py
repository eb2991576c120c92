"""Configuration of the ``export-ort`` pass; planning imports it, so it imports no runtime."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.config.record import BatchSize, DataName, Record
from compressor.engine.contract import PassConfig


class OrtParityConfig(Record):
    """Comparison of the `.ort` file with its ONNX graph, both in ONNX Runtime on this machine."""

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
    """Largest mean of ‖Δ‖ / ‖values‖ of any output. By default 1e-4, and 0.05 for a graph with
    integers or in float16, whose kernels may round a value to another neighbour."""


class ExportOrtConfig(PassConfig):
    """Fields of an ``export-ort`` step."""

    platform: Literal["arm64", "amd64"] = "arm64"
    """Kind of processor that executes the file. `arm64`: phones, whose kernels keep signed 8-bit
    activations. `amd64`: also blocked layouts of convolutions, which only such processors have."""
    optimizations: Literal["applied", "saved"] = "applied"
    """When the runtime's fusions are made. `applied`: now, for the runtime's own CPU kernels and
    XNNPACK. `saved`: on the phone, for what a provider such as NNAPI or Core ML leaves over; they
    are replayed only where the application sets `session.enable_saved_runtime_optimizations`."""
    parity: OrtParityConfig = OrtParityConfig()
    """Comparison with the ONNX graph that ends the pass."""
