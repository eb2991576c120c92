"""Conversion of a traced graph to float16; built decoder graphs are written in it at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.data.contract import Batch
from compressor.graphs.files import load_typed_model
from compressor.graphs.fp16 import convert_to_fp16, float_values
from compressor.graphs.fp16_block_list import BlockList
from compressor.graphs.saving import save_checked_model
from compressor.runtimes.onnxruntime.ranges import measure_magnitudes


def convert_to_half(
    folder: Path, feeds: Sequence[Batch], external_threshold_bytes: int
) -> dict[str, Any]:
    """Convert the graph of a folder to float16, in place; inputs and outputs stay float32.

    Norms, softmaxes, reductions and values beyond 65504 on the samples stay in float32.

    Args:
        folder: holds ``model.onnx`` in float32.
        feeds: all inputs of the graph, for the ranges of its values.
        external_threshold_bytes: weights beyond it go into ``model.onnx.data``.

    Returns:
        Entries of the summary.

    Raises:
        PassError: ONNX Runtime cannot run the graph, or onnx's checker refuses the result.
    """
    graph = load_typed_model(folder)
    magnitudes = measure_magnitudes(graph, float_values(graph), feeds)
    kept = convert_to_fp16(graph, BlockList(magnitudes))
    external = save_checked_model(
        graph, folder, dict(graph.metadata_props), external_threshold_bytes
    )
    if not external:
        (folder / "model.onnx.data").unlink(missing_ok=True)
    return {"dtype": "float16", "kept_float32": len(kept), "external_data": external}
