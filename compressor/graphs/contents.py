"""Read what an ONNX graph holds from its nodes and the headers of its tensors, not its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto

from compressor.graphs.decoder.interface import CONTEXT_LENGTH_KEY
from compressor.graphs.einsums import product_equation
from compressor.graphs.files import inline_functions, unreadable_parts
from compressor.graphs.graph_index import GraphIndex, node_label, subgraphs_of
from compressor.graphs.integer_regions import PRODUCTS
from compressor.graphs.operator_weights import WEIGHT_POSITIONS
from compressor.graphs.signature import unsupported_inputs
from compressor.models.graph_contents import Branching, GraphContents, Scheme

_ONNX_DOMAINS = {"", "ai.onnx"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
"""Types of weights that are quantized."""
_OTHER_PRODUCTS = frozenset({"ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Attention"})
_PEEPHOLES = 7
"""Position of the peepholes among the inputs of LSTM."""
_OPERATORS: Mapping[str, Scheme] = {
    "QuantizeLinear": "qdq",
    "ConvInteger": "dynamic",
    "MatMulInteger": "dynamic",
    "MatMulIntegerToFloat": "dynamic",
    "DynamicQuantizeLinear": "dynamic",
    "DynamicQuantizeMatMul": "dynamic",
    "DynamicQuantizeLSTM": "dynamic",
    "MatMulNBits": "weights",
    "MatMulBnb4": "weights",
    "GatherBlockQuantized": "weights",
    "QAttention": "operators",
    "QGemm": "operators",
}
_BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.INT64: 64,
    TensorProto.UINT64: 64,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.BOOL: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}
_NAMES: Mapping[int, str] = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}


def graph_contents(model: onnx.ModelProto) -> GraphContents:
    """Return what a graph holds, its functions written out; weights need not be loaded."""
    model = inline_functions(model)
    index = GraphIndex(model)
    constants = _constant_types(index)
    inner = {id(node) for node in index.nodes} - {id(node) for node in model.graph.node}
    products, stored, others = Counter[str](), Counter[str](), Counter[str]()
    layers, stored_layers = Counter[str](), Counter[str]()
    for node in index.nodes:
        if node.domain not in _ONNX_DOMAINS:
            continue
        weight = None if id(node) in inner else _product_weight(node, index, constants)
        if weight is not None:
            products[node.op_type] += 1
            stored[node.op_type] += int(_is_stored(index, weight))
        elif node.op_type in PRODUCTS | _OTHER_PRODUCTS and not _is_constant(node, constants):
            others[node.op_type] += 1
            if weights := _layer_weights(node, constants, is_inner=id(node) in inner):
                layers[node.op_type] += 1
                is_stored = all(_is_stored(index, name) for name in weights)
                stored_layers[node.op_type] += int(is_stored)
    metadata = {entry.key for entry in model.metadata_props}
    return GraphContents(
        opset=index.opset(""),
        weight_bytes=_weight_bytes(index),
        computed_bytes=_weight_bytes(index, computed=True),
        operators=Counter(n.op_type for n in index.nodes if n.domain in _ONNX_DOMAINS),
        products=products,
        stored_products=+stored,
        other_products=others,
        layers=layers,
        stored_layers=+stored_layers,
        quantized=_quantized(index.nodes),
        branches=tuple(_branches(index, constants)),
        domains=_domains(index.nodes),
        is_decoder=CONTEXT_LENGTH_KEY in metadata,
        unsupported_inputs=unsupported_inputs(model),
        unreadable=tuple(unreadable_parts(model)),
    )


def _constant_types(index: GraphIndex) -> dict[str, int]:
    """Return the values that depend on constants alone, with their type; 0 where it is unknown."""
    types = {name: int(tensor.data_type) for name, tensor in index.constants.items()}
    for node in index.nodes:
        inputs = [name for name in node.input if name]
        if not inputs or not all(name in types for name in inputs) or _has_subgraphs(node):
            continue
        dtype = types[inputs[0]]
        if node.op_type == "Cast":
            dtype = next((each.i for each in node.attribute if each.name == "to"), 0)
        elif node.op_type == "DequantizeLinear":
            dtype = types[inputs[1]]
        types |= dict.fromkeys(node.output, dtype)
    return types


def _is_stored(index: GraphIndex, name: str) -> bool:
    """Return True for a constant, and the Cast of one."""
    node = index.producers.get(name)
    if node is not None and node.op_type == "Cast":
        name = node.input[0]
    return name in index.constants


def _has_subgraphs(node: onnx.NodeProto) -> bool:
    return any(each.HasField("g") or each.graphs for each in node.attribute)


def _is_constant(node: onnx.NodeProto, constants: Mapping[str, int]) -> bool:
    return all(name in constants for name in node.output if name)


def _product_weight(
    node: onnx.NodeProto, index: GraphIndex, constants: Mapping[str, int]
) -> str | None:
    """Return the constant float weight that a node multiplies a computed value by, if it does."""
    if node.op_type == "Einsum":
        return _einsum_weight(node, index, constants)
    if node.op_type not in PRODUCTS or len(node.input) < 2 or node.input[0] in constants:
        return None
    weight = node.input[1]
    if constants.get(weight, TensorProto.INT8) not in _FLOATS | {0}:
        return None
    dims = index.constants[weight].dims if weight in index.constants else (1, 1)
    return weight if node.op_type == "Conv" or (len(dims) == 2 and 0 not in dims) else None


def _einsum_weight(
    node: onnx.NodeProto, index: GraphIndex, constants: Mapping[str, int]
) -> str | None:
    """Return the weight of an Einsum that is written as a product: see ``einsums``."""
    positions = [place for place, name in enumerate(node.input) if name in constants]
    if len(positions) != 1 or len(node.input) != 2:
        return None
    weight = node.input[positions[0]]
    equation = next((each.s.decode() for each in node.attribute if each.name == "equation"), "")
    is_empty = weight in index.constants and 0 in index.constants[weight].dims
    if constants[weight] not in _FLOATS | {0} or is_empty:
        return None
    return weight if product_equation(equation, positions[0]) is not None else None


def _layer_weights(
    node: onnx.NodeProto, constants: Mapping[str, int], *, is_inner: bool
) -> list[str]:
    """Return the weights of a layer that can be stored as integers; none if it cannot."""
    attributes = {each.name: each.i for each in node.attribute}
    if node.op_type == "LSTM":
        has_peepholes = len(node.input) > _PEEPHOLES and bool(node.input[_PEEPHOLES])
        is_supported = not has_peepholes and not attributes.get("layout", 0)
    else:
        is_supported = node.op_type == "ConvTranspose" and not is_inner
    weights = [node.input[each] for each in WEIGHT_POSITIONS[node.op_type]] if is_supported else []
    return weights if all(constants.get(name, -1) in _FLOATS | {0} for name in weights) else []


def _quantized(nodes: Iterable[onnx.NodeProto]) -> dict[Scheme, Counter[str]]:
    """Return the operators that round, or compute with integers in place of floats."""
    schemes: dict[Scheme, Counter[str]] = {}
    dequantized = 0
    for node in nodes:
        name = node.op_type
        dequantized += name == "DequantizeLinear"
        scheme = "operators" if name.startswith("QLinear") else _OPERATORS.get(name)
        if scheme is not None:
            schemes.setdefault(scheme, Counter())[name] += 1
    if dequantized:  # without QuantizeLinear, what is dequantized are weights
        scheme = "qdq" if "qdq" in schemes else "weights"
        schemes.setdefault(scheme, Counter())["DequantizeLinear"] = dequantized
    return schemes


def _branches(index: GraphIndex, constants: Mapping[str, int]) -> Iterable[Branching]:
    for node in index.nodes:
        if _has_subgraphs(node):
            inner = [each for graph in subgraphs_of(node) for each in graph.node]
            count = sum(_product_weight(each, index, constants) is not None for each in inner)
            yield Branching(node_label(node), count)


def _domains(nodes: Iterable[onnx.NodeProto]) -> dict[str, Counter[str]]:
    domains: dict[str, Counter[str]] = {}
    for node in nodes:
        if node.domain not in _ONNX_DOMAINS:
            domains.setdefault(node.domain, Counter())[node.op_type] += 1
    return domains


def _weight_bytes(index: GraphIndex, *, computed: bool = False) -> dict[str, int]:
    """Return dtype to bytes of the constants: the stored type, or that in which nodes read it."""
    sizes = Counter[str]()
    for constant, tensor in index.constants.items():
        dtype = (_cast_type(index, constant) if computed else None) or tensor.data_type
        name = _NAMES.get(dtype) or TensorProto.DataType.Name(dtype).lower()
        sizes[name] += math.prod(tensor.dims) * _BITS.get(tensor.data_type, 8) // 8
    return dict(sizes)


def _cast_type(index: GraphIndex, name: str) -> int | None:
    """Return the type that all readers of a value cast it to; None if one reads it as it is."""
    readers = index.consumers.get(name, [])
    if not readers or any(node.op_type != "Cast" for node in readers):
        return None
    types = {int(each.i) for node in readers for each in node.attribute if each.name == "to"}
    return types.pop() if len(types) == 1 else None
