"""Checks of a graph by its contents alone, when a pipeline is planned and before a step starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compressor.errors import RequirementError
from compressor.evaluation.outputs import fitting_metrics, misfit
from compressor.graphs.opsets import BLOCKS_OPSET, INTEGERS_OPSET
from compressor.models.facts import ModelFacts
from compressor.models.graph_contents import GraphContents
from passes.optimize_onnx.config import OptimizeOnnxConfig, Precision

OPSETS: dict[Precision, int] = {"int8": INTEGERS_OPSET, "int4": BLOCKS_OPSET}
"""The opset that the operators of a precision require."""
HALF_TYPES = frozenset({"float16", "bfloat16"})
"""Types of 16 bits in which a file may store weights."""
_ALONE = "or set `precision: fp32`, which simplifies it alone"
_NO_WEIGHTS = "leave this step out: such operators, as trees are, have one form"


def check_facts(config: OptimizeOnnxConfig, parent: ModelFacts) -> GraphContents | None:
    """Check what is known of the parent, and return the contents of its graph, if they are.

    Raises:
        RequirementError: the graph, or the metric of `keep_float`, does not fit.
    """
    contents = None if parent.graph_contents is None else parent.graph_contents()
    problems = [] if contents is None else list(contents_problems(config, contents))
    planned = parent.graph
    if contents is None and planned is not None and planned.integers:
        problems += list(_quantized(config, "it has integers"))
    problems += list(_metric_problems(config, parent))
    if problems:
        raise RequirementError(
            "\n".join(what for what, _ in problems),
            remedy="; ".join(dict.fromkeys(remedy for _, remedy in problems)),
        )
    return contents


def contents_problems(
    config: OptimizeOnnxConfig, contents: GraphContents
) -> Iterator[tuple[str, str]]:
    """Yield what of a graph does not fit a config, each with a remedy."""
    precision = f"`precision: {config.precision}`"
    yield from contents.input_problems()
    yield from contents.unreadable
    if contents.is_decoder:
        yield (
            "the graph is a decoder of `export-onnx`, whose weights `awq` quantizes with less loss",
            "put an `awq` step before `export-onnx`, or set its `dtype`",
        )
    if contents.quantized:
        yield from _quantized(config, contents.describe_quantized())
        return
    computed = contents.computed_float_type
    if computed == "bfloat16":
        yield (
            f"{precision}: the graph is in bfloat16, which ONNX Runtime does not compute on CPUs: "
            "neither its values nor the result could be compared",
            "export the model in float32 or float16",
        )
        return
    if computed == "float64" and config.precision != "fp32":
        yield (
            f"{precision}: the weights of the graph are in FP64, and only FP32 and FP16 are "
            "converted",
            f"export the model in float32, {_ALONE}",
        )
        return
    elif computed == "float16" and config.precision == "fp16":
        yield (
            f"{precision}: the graph is in FP16 already",
            f"leave the step out, set `precision: int8` or `int4`, {_ALONE}",
        )
    elif contents.in_other_domains and config.precision == "fp16":
        yield (
            f"{precision}: there is nothing to convert, as the graph consists of "
            + contents.describe_domains(),
            _NO_WEIGHTS,
        )
    if config.precision in {"int8", "int4"}:
        yield from _product_problems(config, contents)


def _quantized(config: OptimizeOnnxConfig, what: str) -> Iterator[tuple[str, str]]:
    if config.precision != "fp32":
        yield (
            f"`precision: {config.precision}`: the graph is quantized already: {what}",
            f"start from the float graph that it was made of, {_ALONE}",
        )


def _product_problems(
    config: OptimizeOnnxConfig, contents: GraphContents
) -> Iterator[tuple[str, str]]:
    """Yield a problem if no product can be quantized, nor the weights of a layer."""
    present = contents.products if config.simplify else contents.stored_products
    kinds = {"MatMul", "Gemm", "Einsum"} | ({"Conv"} if config.precision == "int8" else set())
    layers = contents.layers if config.simplify else contents.stored_layers
    if any(present.get(kind) for kind in kinds) or (config.stores_layers and any(layers.values())):
        return
    what = "matrix product" if config.precision == "int4" else "convolution or matrix product"
    text = f"`precision: {config.precision}`: the graph has no {what} with a constant float weight"
    if contents.in_other_domains:
        text += f", but {contents.describe_domains()}"
    if any(contents.products.get(kind) for kind in kinds) or (
        config.stores_layers and any(contents.layers.values())
    ):
        yield f"{text} before it is simplified", "leave out `simplify: false`"
    elif contents.in_other_domains:
        yield text, _NO_WEIGHTS
    elif config.precision == "int4" and present.get("Conv"):
        yield text, "set `precision: int8`, which converts convolutions too"
    elif contents.domains:
        yield (
            text,
            "set `precision: fp16`, which converts what ONNX's own operators compute, or leave "
            "this step out",
        )
    elif contents.computed_float_type == "float16":
        yield text, f"leave the step out, {_ALONE}"
    else:
        yield text, "set `precision: fp16`"


def _metric_problems(config: OptimizeOnnxConfig, parent: ModelFacts) -> Iterator[tuple[str, str]]:
    """Yield a problem if the metric of `keep_float` does not fit the outputs."""
    signature = parent.signature() if config.keep_float is not None else None
    if config.keep_float is None or signature is None or not signature.outputs:
        return
    name, outputs, classes = config.keep_float.metric, signature.outputs, signature.classes
    if reason := misfit(name, outputs, classes, signature.output_specs):
        fitting = ", ".join(fitting_metrics(outputs, classes, signature.output_specs))
        yield f"`keep_float.metric: {name}`: {reason}", f"set it to one of {fitting}"


def planned_contents(config: OptimizeOnnxConfig, contents: GraphContents) -> GraphContents:
    """Return the contents of the graph that a step will write."""
    count = sum(contents.products.values())
    opset = max(contents.opset, OPSETS.get(config.precision, 0))
    if config.rounds_values:
        quantized = {"QuantizeLinear": count, "DequantizeLinear": 2 * count}
        return replace(contents, opset=opset, quantized={"qdq": quantized})
    if config.precision in {"int8", "int4"}:
        return replace(contents, opset=opset, quantized={"weights": {"DequantizeLinear": count}})
    if config.precision == "fp16":
        floats = contents.weight_bytes.get("float32", 0)
        halves = {"float32": 0, "float16": floats // 2}
        return replace(
            contents,
            weight_bytes={**contents.weight_bytes, **halves},
            computed_bytes={**contents.computed_bytes, **halves},
        )
    return contents
