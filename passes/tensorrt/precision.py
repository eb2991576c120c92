"""Conversion of the graph to its precision: weights to INT4, floats to FP16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxscript import ir

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.graphs.blocks import store_int4_weights
from passes.common.half_floats import convert_floats
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.graph import count_integers


def convert_precision(
    config: TensorRTConfig, graph: ir.Model, feeds: Sequence[Batch], context: PassContext
) -> dict[str, Any]:
    """Convert a graph in place to the types that the config requests.

    Args:
        config: config of the step.
        graph: the graph.
        feeds: the samples of the calibration.
        context: context of the step.

    Returns:
        The decisions, for the summary of the manifest.

    Raises:
        RequirementError: no weight can be stored as INT4.
        NumericalError: the graph computes NaN on the samples.
    """
    summary: dict[str, Any] = {}
    if config.precision == "int4" and not count_integers(graph).int4:
        summary |= _quantize_weights(config, graph, context)
    if config.float_type == "fp16":
        assert config.calibration is not None  # noqa: S101 - FP16 requires it
        summary |= convert_floats(graph, feeds, config.data_max, config.calibration.data)
    return summary


def _quantize_weights(
    config: TensorRTConfig, graph: ir.Model, context: PassContext
) -> dict[str, Any]:
    """Round the weights of a float graph to INT4, and note those that are left."""
    count, skipped = store_int4_weights(graph, config.block_size)
    if not count:
        raise RequirementError(
            f"no weight of the graph can be stored in blocks of {config.block_size} INT4 values",
            remedy="set a smaller `block_size`, or another precision",
        )
    if skipped:
        context.note(
            f"not stored as INT4, because blocks of {config.block_size} do not divide their input "
            f"size: {', '.join(skipped)}"
        )
    return {"int4_weights": count, "not_int4": skipped}
