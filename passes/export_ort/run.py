"""The ``export-ort`` pass as a whole: from a folder with ONNX graphs to one with ``.ort`` files."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from onnx import TensorProto

from compressor.artifacts.files import copy_file
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import ParityError
from compressor.graphs.files import MODEL, read_graph, tensors_of
from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.lint.onnxruntime_mobile import xnnpack_problems
from compressor.runtimes.formats import format_named, open_session
from compressor.runtimes.onnxruntime.inference import open_inference_session
from compressor.runtimes.onnxruntime.integer_kernels import (
    SATURATING_PRODUCTS,
    integer_products_saturate,
)
from compressor.runtimes.onnxruntime.session import OnnxSession
from passes.common.converted_parity import ConvertedParityConfig, beyond, parity_batches
from passes.common.graph_comparison import OutputDifference, compare_graphs, compare_runs
from passes.export_ort.config import ExportOrtConfig
from passes.export_ort.convert import OPERATORS, convert_graphs

_OPENINGS = 5
_LOW_PRECISION = frozenset(
    {
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4),
        *(TensorProto.INT2, TensorProto.UINT2, TensorProto.FLOAT16, TensorProto.BFLOAT16),
    }
)
_FLOAT_ERROR, _LOW_PRECISION_ERROR = 1e-4, 0.05


def export_ort(
    config: ExportOrtConfig, parent: Path, out: Path, context: PassContext
) -> PassOutput:
    """Write the ``.ort`` files beside copies of the graphs, and compare both.

    Raises:
        DataError: the data set is empty, or does not fit the graph.
        PassError: ONNX Runtime cannot convert a graph.
        ParityError: a ``.ort`` file computes something else than its graph.
    """
    for name, file in format_named("onnx").files(parent).items():
        copy_file(file, out / name)
    context.progress("convert", 0, 2, {})
    files = convert_graphs(config, out)
    context.progress("compare", 1, 2, {})
    differences = _compare(config.parity, parent, out, context)
    context.progress("compare", 2, 2, {})
    xnnpack = _xnnpack(out, context)
    operators = (out / OPERATORS).read_text(encoding="utf-8").splitlines()
    return PassOutput(
        {
            "platform": config.platform,
            "files": {
                name: _file_row(parent, out, name, context.threads) for name in sorted(files)
            },
            "operator_sets": [line.partition("{")[0] for line in operators if line[:1] != "#"],
            "against_parent": {name: each.row() for name, each in differences.items()},
            "xnnpack": xnnpack,
        }
    )


def _compare(
    parity: ConvertedParityConfig, parent: Path, out: Path, context: PassContext
) -> dict[str, OutputDifference]:
    """Compare the outputs of the files with those of the graphs.

    Where integer products saturate, the graph is computed exactly, by a setting that has no effect
    on a file that is optimized already. So the file may also equal the graph as it saturates.

    Raises:
        DataError: the data set is empty, or does not fit the graph.
        ParityError: an output differs by more than the limit.
    """
    batches = list(parity_batches(parity, parent, context))
    differences = compare_graphs(parent, out, batches, context.threads)
    limit = parity.relative_error
    if limit is None:
        limit = _LOW_PRECISION_ERROR if _has_low_precision(parent) else _FLOAT_ERROR
    wrong = beyond(limit, differences)
    if wrong and integer_products_saturate():
        saturated = _compare_with_saturation(parent, out, batches, context.threads)
        if not beyond(limit, saturated):
            context.note(
                "this processor lacks VNNI, so ONNX Runtime saturates large sums of integer "
                "products in model.ort: it equals model.onnx with such products. Processors of "
                "phones do not saturate them"
            )
            return saturated
    if wrong:
        raise ParityError(
            f"the .ort file computes something else than {MODEL}, beyond a relative error of "
            f"{limit:g}:\n" + "\n".join(wrong),
            remedy="set `optimizations: saved` or another `platform`, or raise "
            "`parity.relative_error` if the difference is acceptable",
        )
    return differences


def _compare_with_saturation(
    parent: Path, out: Path, batches: Sequence[Batch], threads: int
) -> dict[str, OutputDifference]:
    with (
        OnnxSession(parent, threads, "cpu", SATURATING_PRODUCTS) as reference,
        open_session("ort", out, threads=threads) as session,
    ):
        return compare_runs(reference.run, session.run, batches)


def _has_low_precision(folder: Path) -> bool:
    """Return True if a graph stores integers of 8 bits or less, or float16."""
    return any(
        tensor.data_type in _LOW_PRECISION
        for graph in sorted(folder.glob("*.onnx"))
        for tensor in tensors_of(read_graph(graph))
    )


def _xnnpack(folder: Path, context: PassContext) -> dict[str, int]:
    """Count the convolutions that XNNPACK takes and leaves, and note why it leaves some."""
    indices = [GraphIndex(read_graph(graph)) for graph in sorted(folder.glob("*.onnx"))]
    convolutions = sum(node.op_type == "Conv" for index in indices for node in index.nodes)
    problems = [problem for index in indices for problem in xnnpack_problems(index)]
    if problems:
        reasons = Counter(problem.detail for problem in problems)
        listed = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        context.note(f"{len(problems)} of {convolutions} convolutions: {listed}")
    return {"taken": convolutions - len(problems), "left": len(problems)}


def _file_row(parent: Path, out: Path, name: str, threads: int) -> dict[str, Any]:
    """Return sizes, and the median time to open each of the two files, in alternation."""
    seconds: dict[Path, list[float]] = {parent: [], out: []}
    for _ in range(_OPENINGS):
        for folder, times in seconds.items():
            started = perf_counter()
            session = open_inference_session(folder, threads, name=name)
            times.append(perf_counter() - started)
            del session
    onnx_ms, ort_ms = (1e3 * statistics.median(times) for times in seconds.values())
    return {
        "onnx_bytes": (parent / name).stat().st_size,
        "ort_bytes": (out / name).with_suffix(".ort").stat().st_size,
        "onnx_open_ms": onnx_ms,
        "ort_open_ms": ort_ms,
    }
