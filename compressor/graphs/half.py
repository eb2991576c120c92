"""A graph in FP32 to one in FP16, with casts around what has to stay in FP32.

TensorRT builds what the graph says (strongly typed), so the graph says it all: which operator computes in which type. A node goes
to FP16 where ONNX allows it for that operator, unless it sums over many values (softmax, norms, reductions), or reads or writes a
value that FP16 cannot hold. Inputs and outputs of the graph keep their types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnxscript import ir

HIGHEST = 65504.0
"""The largest finite value of FP16."""
_SMALLEST = 2.0**-17
"""Below, FP16 has a value with an error of more than 0.4 %."""
_SUMMING = frozenset(
    {
        "Softmax",
        "LogSoftmax",
        "LayerNormalization",
        "RMSNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "BatchNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceProd",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "CumSum",
        "GlobalAveragePool",
    }
)
_CURVED = frozenset({"Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos"})
"""What overflows or loses its digits soonest, and what norms and softmaxes are made of where they are written out."""
_CHEAP = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Abs",
        "Max",
        "Min",
        "Clip",
        "Cast",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
    }
)
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


@dataclass(frozen=True, slots=True)
class Kept:
    """A node that stays in FP32."""

    node: str
    operator: str
    reason: str


def to_half(model: ir.Model, largest: Mapping[str, float], highest: float = HIGHEST) -> list[Kept]:
    """Turn a graph to FP16 in place.

    Args:
        model: a graph whose values all have types (ONNX's shape inference gives them).
        largest: value to the largest magnitude that it had on samples; inf or NaN for one that was not finite.
        highest: the largest magnitude that a value in FP16 may have.

    Returns:
        The nodes that could be FP16 by their operator, and stay in FP32, and why.
    """
    kept = _kept(model, largest, highest)
    wide = {node for node in model.graph if node in kept or not _is_able(node)}
    types = {
        value: _HALF
        for node in model.graph
        if node not in wide
        for value in node.outputs
        if _halves(node, value)
    }
    for value in _floats(model):
        _connect(model, value, types.get(value, _FLOAT), wide)
    for node in model.graph:
        if node not in wide:
            _retype(node, types)
    return [
        Kept(node.name or node.outputs[0].name or "", node.op_type, reason)
        for node, reason in kept.items()
    ]


def _kept(model: ir.Model, largest: Mapping[str, float], highest: float) -> dict[ir.Node, str]:
    able = [node for node in model.graph if _is_able(node)]
    positions = _of_shapes(model)
    found = dict.fromkeys(
        (node for node in able if node in positions),
        "made of shapes and constants alone, as positions are",
    )
    for node in able:
        if node not in found and (told := _reason(node, largest, highest)):
            found[node] = told
    more = True
    while more:  # a norm's epsilon is nothing in FP16; TensorRT multiplies integers whose scales are of one type
        between = {
            node
            for node in able
            if node not in found and node.op_type in _CHEAP and _is_between(node, found)
        }
        rounded = {node for node in able if node not in found and _shares_rounding(node, found)}
        found |= dict.fromkeys(between, "between nodes in FP32") | dict.fromkeys(
            rounded, "rounded with a node in FP32"
        )
        more = bool(between or rounded)
    return {node: found[node] for node in able if node in found}


def _of_shapes(model: ir.Model) -> set[ir.Node]:
    """Nodes that read no sample, only how large it is."""
    constant: set[ir.Node] = set()
    found: set[ir.Node] = set()
    for node in model.graph:
        makers = {
            one.producer() for one in node.inputs if one is not None and one.const_value is None
        }
        if node.op_type in {"Shape", "Size"} or (makers & found and makers <= found | constant):
            found.add(node)
        elif makers <= constant:
            constant.add(node)
    return found


def _reason(node: ir.Node, largest: Mapping[str, float], highest: float) -> str | None:
    if node.op_type in _SUMMING:
        return "sums over many values"
    if node.op_type in _CURVED:
        return "a power, root, exponential or logarithm"
    if any(reader.graph is not node.graph for value in node.outputs for reader, _ in value.uses()):
        return "read in a graph within"
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != _FLOAT:
            continue
        magnitude = (
            _magnitude(value)
            if value.const_value is not None
            else largest.get(value.name or "", 0.0)
        )
        if not magnitude <= highest:
            return f"{value.name} reaches {magnitude:.3g}"
        if value.const_value is not None and _vanishes(node, value):
            return f"{value.name} is too small for FP16"
    return None


def _magnitude(value: ir.Value) -> float:
    return float(np.abs(_array(value)).max(initial=0.0))


def _vanishes(node: ir.Node, value: ir.Value) -> bool:
    """Whether a constant that stands by itself, or a scale, loses its digits; small weights among large ones may."""
    magnitudes = np.abs(_array(value))
    is_scale = node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    return bool(
        (magnitudes.size == 1 or is_scale) and ((magnitudes > 0) & (magnitudes < _SMALLEST)).any()
    )


def _array(value: ir.Value) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    assert value.const_value is not None  # noqa: S101 - callers ask for constants
    return value.const_value.numpy().astype(np.float32)


def _is_between(node: ir.Node, found: Mapping[ir.Node, str]) -> bool:
    makers = [
        one.producer()
        for one in node.inputs
        if one is not None and one.dtype == _FLOAT and one.const_value is None
    ]
    readers = [reader for value in node.outputs for reader, _ in value.uses()]
    return (
        bool(makers)
        and all(one in found for one in makers)
        and any(reader in found for reader in readers)
    )


def _shares_rounding(node: ir.Node, found: Mapping[ir.Node, str]) -> bool:
    """Whether a node reads, makes or is a dequantized value that a node in FP32 reads or makes."""
    if node.op_type == "DequantizeLinear":
        return any(reader in found for reader, _ in node.outputs[0].uses())
    if node.op_type == "QuantizeLinear":
        return any(
            reader in found and reader.op_type == "DequantizeLinear"
            for reader, _ in node.outputs[0].uses()
        )
    makers = [one.producer() for one in node.inputs if one is not None]
    return any(
        one is not None and one in found and one.op_type == "DequantizeLinear" for one in makers
    )


def _is_able(node: ir.Node) -> bool:
    """Whether ONNX has the operator in FP16; graphs within stay as they are."""
    if any(
        one.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
        for one in node.attributes.values()
    ):
        return False
    rounds = node.op_type == "QuantizeLinear" and _allows(node, 1, of_inputs=True)
    return rounds or any(_halves(node, one) for one in node.outputs)


def _halves(node: ir.Node, value: ir.Value) -> bool:
    """Whether ONNX lets the operator give this FP32 result as FP16."""
    return value.dtype == _FLOAT and _allows(node, node.outputs.index(value), of_inputs=False)


def _allows(node: ir.Node, index: int, *, of_inputs: bool) -> bool:
    version = node.graph.opset_imports.get(node.domain) if node.graph is not None else None
    try:
        schema = onnx.defs.get_schema(node.op_type, version or 1, node.domain)
    except onnx.defs.SchemaError:  # not ONNX's own: nothing is known of it
        return False
    formal = schema.inputs if of_inputs else schema.outputs
    parameter = formal[min(index, len(formal) - 1)]
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    return "tensor(float16)" in allowed.get(parameter.type_str, ())


def _floats(model: ir.Model) -> list[ir.Value]:
    """Every FP32 value that something may read."""
    made = [value for node in model.graph for value in node.outputs]
    every = [*model.graph.inputs, *model.graph.initializers.values(), *made]
    return [value for value in dict.fromkeys(every) if value.dtype == _FLOAT]


def _connect(model: ir.Model, value: ir.Value, stored: ir.DataType, wide: set[ir.Node]) -> None:
    """Give each reader of a value the type it needs, by a second constant or one cast."""
    readers = {ir.DataType.FLOAT: [], ir.DataType.FLOAT16: []}  # type: dict[ir.DataType, list[tuple[ir.Node, int]]]
    for reader, index in value.uses():
        outside = reader.graph is not model.graph or reader in wide
        halves = not outside and _allows(reader, index, of_inputs=True)
        readers[_HALF if halves else _FLOAT].append((reader, index))
    is_output = value in model.graph.outputs
    producer = value.producer()
    if stored == _HALF:
        value.dtype = _HALF
        if readers[_FLOAT] or is_output:
            cast = _cast(model, value, _FLOAT, producer)
            for reader, index in readers[_FLOAT]:
                reader.replace_input_with(index, cast)
            if is_output:
                _become_output(model, value, cast)
    elif readers[_HALF]:
        other = (
            _half_constant(model, value)
            if value.const_value is not None
            else _cast(model, value, _HALF, producer)
        )
        for reader, index in readers[_HALF]:
            reader.replace_input_with(index, other)
        if value.const_value is not None and not value.uses() and not is_output:
            model.graph.initializers.pop(str(value.name))


def _cast(model: ir.Model, value: ir.Value, to: ir.DataType, producer: ir.Node | None) -> ir.Value:
    node = ir.node(
        "Cast",
        [value],
        {"to": int(to)},
        name=f"{value.name}.to_{'half' if to == _HALF else 'float'}",
    )
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = node.name, to, value.shape
    if producer is not None:
        model.graph.insert_after(producer, node)
    else:
        model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]


def _become_output(model: ir.Model, value: ir.Value, cast: ir.Value) -> None:
    """The cast has the name that the graph's output has to have."""
    name = value.name
    value.name = f"{name}.half"
    cast.name = name
    for index, one in enumerate(model.graph.outputs):
        if one is value:
            model.graph.outputs[index] = cast


def _half_constant(model: ir.Model, value: ir.Value) -> ir.Value:
    name = f"{value.name}.half"
    array = _array(value).astype(np.float16)
    tensor = ir.tensor(array, name=name)
    made = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(_HALF)
    )
    model.graph.initializers[name] = made
    return made


def _retype(node: ir.Node, types: Mapping[ir.Value, ir.DataType]) -> None:
    """The attributes that say which type a node gives."""
    if not any(one in types for one in node.outputs):
        return
    for name in ("to", "dtype", "output_dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_int() == int(_FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(_HALF))
    if node.op_type == "ConstantOfShape":
        filled = node.attributes.get("value")
        value = filled.as_tensor().numpy() if filled is not None else np.zeros(1)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value.astype(np.float16)))
