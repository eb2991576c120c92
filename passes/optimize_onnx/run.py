"""The ``optimize-onnx`` pass as a whole: from a folder with an ONNX graph to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxscript import ir

from calibration.table import Range
from compressor.artifacts.files import copy_file
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.graphs.embeddings import store_integer_tables
from compressor.graphs.files import MODEL, external_files, read_graph
from compressor.graphs.half_weights import has_halves, store_weights_as_halves
from compressor.graphs.integer_regions import Product, float_products
from compressor.graphs.saving import exceeds_protobuf, initializer_bytes, save_model
from compressor.graphs.widen import store_as_halves
from compressor.runtimes.formats import format_named
from passes.common.graph_samples import graph_inputs, load_feeds
from passes.common.half_floats import convert_floats
from passes.optimize_onnx.config import OptimizeOnnxConfig
from passes.optimize_onnx.int4 import store_int4
from passes.optimize_onnx.integers import IntegerGraphs, observe_ranges
from passes.optimize_onnx.keep_float import choose_float_products
from passes.optimize_onnx.layer_names import name_layers, shared_layers
from passes.optimize_onnx.planned import OPSETS
from passes.optimize_onnx.prepare import prepare_graph, stores_halves
from passes.optimize_onnx.selection import (
    branch_products,
    check_weights,
    float_operators,
    float_weights,
    is_ignored,
    select_products,
)
from passes.optimize_onnx.smoothing import smooth_values
from passes.optimize_onnx.verification import check_prepared, compare_with_parent, random_feeds
from passes.optimize_onnx.weight_layers import weight_layers

_MOST_BRANCHES = 5
"""Nodes with subgraphs that a note lists."""
_MOSTLY_FLOAT = 0.7
"""Part of the bytes of the weights from which INT4 is hardly worth its name."""


def optimize(
    config: OptimizeOnnxConfig, parent: Path, out: Path, context: PassContext
) -> PassOutput:
    """Write the converted graph, and the files that belong to it, into ``out``.

    Raises:
        RequirementError: the graph does not fit the config.
        NumericalError: the graph, or the result, is not finite on the samples.
    """
    graph = prepare_graph(config, parent, context.note)
    if config.precision in {"int8", "int4"}:
        # Refused before samples are read.
        check_weights(config, graph, select_products(config, graph))
    calibration = config.calibration
    feeds = (
        [] if calibration is None else load_feeds(calibration, graph_inputs(graph), context, parent)
    )
    compared = feeds or random_feeds(parent, context)
    check_prepared(config, parent, graph, compared, context)
    layers = shared_layers(parent, graph, compared[0], context.threads) if compared else None
    summary: dict[str, Any] = {"precision": config.precision}
    if config.precision != "fp32" and (branches := branch_products(graph)):
        summary["branches"] = branches
        context.note(_describe_branches(config, branches))
    if config.precision == "int8":
        graph, decisions = _to_int8(config, graph, parent, feeds, context)
        summary |= {"target": config.target, **decisions}
    elif config.precision == "int4":
        summary |= {"target": config.target, **_to_int4(config, graph, feeds, context)}
    elif config.precision == "fp16":
        assert calibration is not None  # noqa: S101 - FP16 requires it
        summary |= convert_floats(graph, feeds, config.data_max, calibration.data)
        summary["stored_fp16"] = store_weights_as_halves(graph)
        if not has_halves(graph):
            context.note(_describe_unconverted(graph, summary["kept_fp32_reasons"]))
    if config.precision in OPSETS and stores_halves(parent):
        store_as_halves(graph)
    if layers is not None:
        name_layers(graph, layers)
    save_model(graph, out, external=exceeds_protobuf(graph))
    _copy_companions(parent, out)
    if feeds:
        differences = compare_with_parent(config, parent, out, feeds, context)
        summary["against_parent"] = {name: each.row() for name, each in differences.items()}
        outputs = [str(value.name) for value in graph.graph.outputs]
        if others := [name for name in outputs if name not in differences]:
            context.note(f"not compared, as they are no numbers: {', '.join(others)}")
    return PassOutput(summary)


def _describe_unconverted(graph: ir.Model, reasons: Mapping[str, int]) -> str:
    """Return why a graph has nothing in FP16: the reasons for which nodes stay in FP32."""
    causes = [f"{reason}: {count} nodes" for reason, count in reasons.items() if count]
    if domains := sorted({node.domain for node in graph.graph if node.domain}):
        causes.append(f"the types behind operators of {', '.join(domains)} are not known")
    why = "; ".join(causes) or "no node computes floats in a form that FP16 has"
    return f"nothing became FP16 ({why})"


def _describe_branches(config: OptimizeOnnxConfig, branches: dict[str, int]) -> str:
    parts = [
        f"{node}: {count} product{'s' if count != 1 else ''} in its branches"
        for node, count in branches.items()
    ]
    listed = "; ".join(parts[:_MOST_BRANCHES])
    more = len(parts) - _MOST_BRANCHES
    form = "left in float"
    if config.precision == "fp16":
        form = "computed in FP32, with weights from 1 kB on in FP16"
    return f"{form}: {listed}" + (f"; and {more} nodes more" if more > 0 else "")


def _to_int4(
    config: OptimizeOnnxConfig, graph: ir.Model, feeds: Sequence[Batch], context: PassContext
) -> dict[str, Any]:
    """Store weights in 4 bits, in place, and return the decisions."""
    weights = initializer_bytes(graph)
    products = select_products(config, graph)
    left_out = store_int4(config, graph, products, feeds, context)
    summary: dict[str, Any] = {"products": len(products) - len(left_out)}
    if config.stores_tables:
        summary["embeddings"] = store_integer_tables(graph, config.ignore)
    if left_out:
        summary["not_int4"] = left_out
        context.note(
            f"not stored as INT4, because blocks of {config.block_size} do not divide their "
            f"inputs, as TensorRT requires: {', '.join(left_out)}"
        )
    left = initializer_bytes(graph) / max(weights, 1)
    if left > _MOSTLY_FLOAT:
        convolutions = any(product.node.op_type == "Conv" for product in float_products(graph))
        context.note(
            f"the weights still take {left:.0%} of their bytes, since only matrix products become "
            "INT4" + (": `precision: int8` converts convolutions too" if convolutions else "")
        )
    return summary


def _to_int8(
    config: OptimizeOnnxConfig,
    graph: ir.Model,
    parent: Path,
    feeds: Sequence[Batch],
    context: PassContext,
) -> tuple[ir.Model, dict[str, Any]]:
    products = select_products(config, graph)
    smoothed: dict[str, float] = {}
    ranges: dict[str, Range] = {}
    unused: set[str] = set()
    if config.rounds_values:
        if config.smoothing:
            smoothed = smooth_values(graph, products, feeds, config.target, context.threads)
        ranges = observe_ranges(config, graph, products, feeds, context)
        unused = _unused(products, ranges)
    layers = weight_layers(config, graph)
    names = [product.name for product in products if product.name not in unused]
    names += [name for name in layers if not is_ignored(config, name)]
    if not names:
        raise RequirementError(
            "no product reads values that vary on the samples",
            remedy="set `calibration.data` to samples that were made for this model, or "
            "`weight_only: true` where its products read constants",
        )
    if unused:
        context.note(f"left in float, as their input never varies: {', '.join(sorted(unused))}")
    graphs = IntegerGraphs(config, graph, ranges, feeds, context.threads)
    summary: dict[str, Any] = {}
    if config.keep_float is not None:
        kept = choose_float_products(config.keep_float, graphs, names, parent, context)
        names = [name for name in names if name not in kept.names]
        summary |= kept.summary()
        if kept.names:
            context.note(f"kept in float: {', '.join(kept.names)}")
    context.progress("round weights", 0, len(names), {})
    result = graphs.build(names)
    return result.model, {
        "products": len(names),
        "kept_float": sorted({*_product_names(graph), *layers} - set(names)),
        "float_operators": _float_operators(config, graph, list(layers.values()), context),
        "corrected_biases": result.corrected_biases,
        **({"embeddings": result.tables} if config.stores_tables else {}),
        **({"smoothed": smoothed} if config.rounds_values else {"weight_only": True}),
        **summary,
    }


def _product_names(graph: ir.Model) -> list[str]:
    return [product.name for product in float_products(graph)]


def _float_operators(
    config: OptimizeOnnxConfig, graph: ir.Model, layers: Sequence[ir.Node], context: PassContext
) -> dict[str, int]:
    """Return what multiplies in float all the same, or has its weights in float, and note it."""
    count_operators = float_operators if config.rounds_values else float_weights
    counts = count_operators(graph, float_products(graph), layers)
    if counts:
        listed = ", ".join(f"{count} {operator}" for operator, count in counts.items())
        where = "so in float" if config.rounds_values else "so with weights in float"
        context.note(f"without an integer form, {where}: {listed}")
    return counts


def _unused(products: Sequence[Product], ranges: dict[str, Range]) -> set[str]:
    """Return the products whose input no sample reaches, or is constant on all samples."""
    unused = set()
    for product in products:
        range_ = ranges.get(str(product.source.name))
        if range_ is None or range_.minimum == range_.maximum:
            unused.add(product.name)
    return unused


def _copy_companions(parent: Path, out: Path) -> None:
    """Copy the files beside the graph that belong to the model, such as its tokenizer."""
    data = external_files(read_graph(parent))
    for name, file in format_named("onnx").files(parent).items():
        if name not in {MODEL, *data} and not (out / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(file, out / name)
