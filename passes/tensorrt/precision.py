"""Conversion of the graph to its precision: weights to INT4, floats to FP16."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from onnxscript import ir

from compressor.engine.contract import PassContext
from compressor.errors import NumericalError, RequirementError
from compressor.graphs.blocks import store_int4_weights
from compressor.graphs.fp16 import convert_to_fp16, float_values
from compressor.graphs.fp16_block_list import BlockList, Cause
from compressor.runtimes.onnxruntime.ranges import measure_magnitudes
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.graph import count_integers, graph_inputs
from passes.tensorrt.smoke_test import load_feeds


def convert_precision(
    config: TensorRTConfig, graph: ir.Model, context: PassContext
) -> dict[str, Any]:
    """Convert a graph in place to the types that the config requests.

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
        summary |= _convert_floats(config, graph, context)
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


def _convert_floats(
    config: TensorRTConfig, graph: ir.Model, context: PassContext
) -> dict[str, Any]:
    """Convert the graph to FP16, except for nodes that would overflow or lose accuracy."""
    assert config.calibration is not None  # noqa: S101 - FP16 requires it
    feeds = load_feeds(config.calibration, graph_inputs(graph), context)
    magnitudes = measure_magnitudes(ir.to_proto(graph), float_values(graph), feeds)
    if nan_values := [name for name, magnitude in magnitudes.items() if np.isnan(magnitude)]:
        raise NumericalError(
            f"the graph computes NaN in FP32 on samples of {config.calibration.data!r}: "
            f"{', '.join(nan_values)}",
            remedy="set `calibration.data` to samples that were made for this model",
        )
    fp32_nodes = convert_to_fp16(graph, BlockList(magnitudes, config.data_max))
    reasons = Counter(node.reason for node in fp32_nodes if node.cause is not Cause.RANGE)
    finite = [magnitude for magnitude in magnitudes.values() if np.isfinite(magnitude)]
    return {
        "largest_magnitude": max(finite, default=0.0),
        "kept_fp32": [node.row() for node in fp32_nodes],
        "kept_fp32_reasons": dict(reasons) | {"overflows FP16": len(fp32_nodes) - reasons.total()},
    }
