"""Operators of ONNX that TensorRT lacks, and branches that it refuses.

The list is what the parser of tensorrt-rtx 1.7 reports as unsupported, and what its builder has no
kernels for; tests hold the rules against that version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.lint.problem import Problem, Rule

LACKING = frozenset(
    {
        "AffineGrid",
        "Bernoulli",
        "BitCast",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "CumProd",
        "DFT",
        "DeformConv",
        "Det",
        "ImageDecoder",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "NonMaxSuppression",
        "NonZero",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "SwiGLU",
        "TfIdfVectorizer",
        "Unique",
    }
)
_SIZES = {"Shape", "Size"}


def operator_problems(index: GraphIndex) -> Iterator[Problem]:
    """Yield operators that TensorRT lacks, and branches between which it cannot choose."""
    ranks: dict[str, int] | None = None
    for node in index.nodes:
        if node.domain not in {"", "ai.onnx"}:
            continue
        if node.op_type in LACKING:
            yield Problem.of(node, Rule.FOREIGN_OPERATOR, "TensorRT has no such operator")
        elif node.op_type == "If":
            ranks = _ranks(index.model) if ranks is None else ranks
            if problem := _branch_problem(index, node, ranks):
                yield problem


def _branch_problem(
    index: GraphIndex, node: onnx.NodeProto, ranks: Mapping[str, int]
) -> Problem | None:
    """Return the problem of branches of different ranks, between which TensorRT cannot choose."""
    branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    for outputs in zip(*(branch.output for branch in branches), strict=False):
        known = [ranks.get(output.name) for output in outputs]
        differ = None not in known and len(set(known)) > 1
        if differ and not _is_fixed(index, node.input[0], ranks):
            dimensions = " and ".join(map(str, known))
            detail = (
                f"its branches give {dimensions} dimensions, and its condition varies: export "
                "the model with inputs of fixed sizes"
            )
            return Problem.of(node, Rule.BRANCHES, detail)
    return None


def _is_fixed(index: GraphIndex, name: str, ranks: Mapping[str, int]) -> bool:
    """Return True if a value is known when an engine is built: by constants and fixed sizes."""
    if name in index.constants:
        return True
    producer = index.producers.get(name)
    if producer is None:
        return False
    if producer.op_type in _SIZES:
        return f"{producer.input[0]}:fixed" in ranks
    return all(_is_fixed(index, source, ranks) for source in producer.input if source)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of dimensions of values, and ``NAME:fixed`` for those of fixed sizes."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # over 2 GB, or contradictory
        graph = model.graph
    ranks: dict[str, int] = {}
    graphs = [graph]
    while graphs:
        current = graphs.pop()
        for value in (*current.input, *current.value_info, *current.output):
            tensor = value.type.tensor_type
            if not tensor.HasField("shape"):
                continue
            ranks[value.name] = len(tensor.shape.dim)
            if all(axis.HasField("dim_value") for axis in tensor.shape.dim):
                ranks[f"{value.name}:fixed"] = 1
        attributes = [attribute for node in current.node for attribute in node.attribute]
        graphs += [attribute.g for attribute in attributes if attribute.HasField("g")]
    return ranks
