"""The ``export-mnn`` pass as a whole: from a folder with an ONNX graph to one with an MNN file."""

from __future__ import annotations

from pathlib import Path

from onnxscript import ir

from compressor.artifacts.files import copy_file
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import ParityError, PassError
from compressor.graphs.files import MODEL, load_typed_model
from compressor.graphs.reductions import write_out_reductions
from compressor.graphs.saving import save_model
from compressor.runtimes.formats import format_named, open_session
from passes.common.converted_parity import beyond, parity_batches
from passes.common.graph_comparison import OutputDifference, compare_runs
from passes.common.graph_conversion import describe_failure
from passes.common.reproducible_child import run_module
from passes.export_mnn.config import ExportMnnConfig
from passes.export_mnn.identity import with_content_uuid

_FILE, _WORKING = "model.mnn", "rewritten.onnx"
_OPTIONS = {"float32": (), "float16": ("--fp16",), "int8": ("--weightQuantBits", "8")}
_LIMITS = {"float32": 1e-3, "float16": 0.01, "int8": 0.1}


def export_mnn(
    config: ExportMnnConfig, parent: Path, out: Path, context: PassContext
) -> PassOutput:
    """Write ``model.mnn`` beside a copy of the graph, and compare both.

    Raises:
        DataError: the data set is empty, or does not fit the graph.
        PassError: MNN cannot convert the graph.
        ParityError: the file computes something else than the graph.
    """
    for name, file in format_named("onnx").files(parent).items():
        copy_file(file, out / name)
    context.progress("convert", 0, 2, {})
    graph = load_typed_model(parent)
    rewritten = write_out_reductions(graph)
    _convert(config, graph, out)
    context.progress("compare", 1, 2, {})
    differences = _compare(config, parent, out, context)
    context.progress("compare", 2, 2, {})
    return PassOutput(
        {
            "weights": config.weights,
            "bytes": (out / _FILE).stat().st_size,
            "rewritten_reductions": rewritten,
            "against_parent": {name: each.row() for name, each in differences.items()},
        }
    )


def _convert(config: ExportMnnConfig, graph: ir.Model, out: Path) -> None:
    """Write the MNN file.

    Raises:
        PassError: the converter failed, or wrote nothing, which it reports as a success; or its
            file has no identifier.
    """
    save_model(graph, out, external=False, name=_WORKING)
    arguments = [
        "-f",
        "ONNX",
        "--modelFile",
        _WORKING,
        "--MNNModel",
        _FILE,
        *_OPTIONS[config.weights],
    ]
    process = run_module("passes.export_mnn.converter", arguments, out)
    (out / _WORKING).unlink()
    if process.returncode == 0 and (out / _FILE).is_file():
        (out / _FILE).write_bytes(with_content_uuid((out / _FILE).read_bytes()))
        return
    raise PassError(
        f"MNN's converter wrote no file and {describe_failure(process, out)}",
        remedy="MNN lacks an operator of the graph; `export-ort` makes a file for phones too",
    )


def _compare(
    config: ExportMnnConfig, parent: Path, out: Path, context: PassContext
) -> dict[str, OutputDifference]:
    """Compare the file in MNN with the graph in ONNX Runtime.

    Raises:
        ParityError: an output differs by more than the limit.
    """
    batches = list(parity_batches(config.parity, parent, context))
    with (
        open_session("onnx", parent, threads=context.threads) as reference,
        open_session("mnn", out, threads=context.threads) as session,
    ):
        differences = compare_runs(reference.run, session.run, batches)
    limit = config.parity.relative_error or _LIMITS[config.weights]
    if wrong := beyond(limit, differences):
        raise ParityError(
            f"MNN reports success, and {_FILE} computes something else than {MODEL}, beyond a "
            f"relative error of {limit:g}:\n" + "\n".join(wrong),
            remedy="MNN converts an operator of the graph wrongly: use `export-ort` for the phone, "
            "or raise `parity.relative_error` if the difference is acceptable",
        )
    return differences
