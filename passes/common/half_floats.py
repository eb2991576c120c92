"""Conversion of a graph to FP16, except for nodes that would overflow or lose accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnxscript import ir

from compressor.data.contract import Batch
from compressor.errors import NumericalError
from compressor.graphs.fp16 import convert_to_fp16, divisors, float_values
from compressor.graphs.fp16_block_list import BlockList, Cause
from compressor.runtimes.onnxruntime.ranges import measure_magnitudes, smallest_magnitudes


def convert_floats(
    graph: ir.Model, feeds: Sequence[Batch], data_max: float, data: str
) -> dict[str, Any]:
    """Convert a graph in place, and return the decisions for the summary of the manifest.

    Args:
        graph: a graph whose values have types.
        feeds: samples on which ranges are measured.
        data_max: largest magnitude of a value in FP16.
        data: name of the data set, for messages.

    Raises:
        NumericalError: the graph computes NaN on the samples.
    """
    magnitudes = measure_magnitudes(graph, float_values(graph), feeds)
    if nan_values := [name for name, magnitude in magnitudes.items() if np.isnan(magnitude)]:
        raise NumericalError(
            f"the graph computes NaN in FP32 on samples of {data!r}: {', '.join(nan_values)}",
            remedy="set `calibration.data` to samples that were made for this model",
        )
    criteria = BlockList(magnitudes, data_max, smallest_magnitudes(graph, divisors(graph), feeds))
    fp32_nodes = convert_to_fp16(graph, criteria)
    reasons = Counter(node.reason for node in fp32_nodes if node.cause is not Cause.RANGE)
    finite = [magnitude for magnitude in magnitudes.values() if np.isfinite(magnitude)]
    return {
        "largest_magnitude": max(finite, default=0.0),
        "kept_fp32": [node.row() for node in fp32_nodes],
        "kept_fp32_reasons": dict(reasons) | {"overflows FP16": len(fp32_nodes) - reasons.total()},
    }
