"""The float graph that a step starts from: simplified, of a sufficient opset, in FP32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxscript import ir

from compressor.errors import RequirementError
from compressor.graphs.constant_casts import fold_casts
from compressor.graphs.constant_transposes import fold_transposes
from compressor.graphs.constant_weights import fold_weights
from compressor.graphs.contents import graph_contents
from compressor.graphs.default_inputs import freeze_default_inputs
from compressor.graphs.einsums import split_einsums
from compressor.graphs.files import load_typed_model, read_graph, typed_model
from compressor.graphs.gemms import fold_gemm_factors
from compressor.graphs.hard_swish import restore_hard_swish, split_hard_swish
from compressor.graphs.simplify import simplify
from compressor.graphs.upgrade import upgrade_opset
from compressor.graphs.values import remove_unused
from compressor.graphs.widen import widen_halves
from passes.optimize_onnx.config import OptimizeOnnxConfig
from passes.optimize_onnx.planned import HALF_TYPES, OPSETS, contents_problems

_MOST_NAMES = 5
"""Names that a note lists."""


def prepare_graph(config: OptimizeOnnxConfig, model: Path, note: Callable[[str], None]) -> ir.Model:
    """Return the graph of a folder, simplified if the config has `simplify`, in a sufficient opset.

    A graph in FP16 is converted to FP32 where its weights are to be quantized.

    Raises:
        ModelError: the graph cannot be read.
        RequirementError: its opset is too old, and onnx cannot upgrade it.
    """
    graph = load_typed_model(model)
    if frozen := freeze_default_inputs(graph):
        names = ", ".join(frozen[:_MOST_NAMES]) + (", …" if frozen[_MOST_NAMES:] else "")
        note(f"{len(frozen)} inputs with a default value became constants: {names}")
    if config.precision in OPSETS and widen_halves(graph):
        note("converted from FP16 to FP32, which is exact; inputs and outputs keep their types")
    if config.precision != "fp32":
        fold_casts(graph)
    metadata = sorted(graph.metadata_props.items())
    if config.simplify:
        simplification = simplify(graph)
        note(simplification.summary)
        if simplification.applied:
            graph = typed_model(ir.to_proto(simplification.model))
        restore_hard_swish(graph)
        remove_unused(graph.graph)
        if config.precision in OPSETS:
            fold_transposes(graph)
        if config.precision != "fp32":
            fold_weights(graph, twice=config.precision in OPSETS)
    if config.precision in OPSETS:
        fold_gemm_factors(graph)
        split_einsums(graph)
    if config.rounds_values and config.target == "onnxruntime":
        split_hard_swish(graph)
    before = graph.opset_imports.get("", 1)
    opset = OPSETS.get(config.precision, 0)
    if before < opset:
        graph = upgrade_opset(graph, opset)
        note(f"upgraded from opset {before} to {opset}")
    graph.metadata_props.clear()  # onnxsim and onnx note their own settings
    graph.metadata_props.update(metadata)
    return graph


def computes_halves(model: Path) -> bool:
    """Return True if a graph computes in FP16."""
    return graph_contents(read_graph(model)).computed_float_type == "float16"


def stores_halves(model: Path) -> bool:
    """Return True if a file stores most weights in 16 bits, also where it computes in FP32."""
    return graph_contents(read_graph(model)).float_type in HALF_TYPES


def check_graph(config: OptimizeOnnxConfig, model: Path) -> None:
    """Check what can be refused before anything is computed.

    Raises:
        ModelError: the graph cannot be read.
        RequirementError: the graph is quantized already, is of a type that is not converted, has
            nothing to convert, or is a decoder with a cache.
    """
    problems = list(contents_problems(config, graph_contents(read_graph(model))))
    if problems:
        raise RequirementError(
            "\n".join(what for what, _ in problems),
            remedy="; ".join(dict.fromkeys(remedy for _, remedy in problems)),
        )
