"""Constants that a file stores in another float type than the graph computes in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.names import WIDENED_SUFFIX
from compressor.graphs.values import add_initializer, constant_array, remove_unused

_STORED = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


def fold_casts(model: ir.Model) -> None:
    """Store constants that nodes read behind a Cast to FP32 as FP32, in place.

    Simplifiers leave such a Cast where the file would grow; weights that are converted are stored
    anew in any case.
    """
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" and not node.domain else None
        if source is None or source.dtype not in _STORED or node.outputs[0].is_graph_output():
            continue
        array = constant_array(source)
        if array is None or node.attributes.get_int("to", 0) != int(ir.DataType.FLOAT):
            continue
        with np.errstate(over="ignore"):  # as the Cast does
            widened = array.astype(np.float32)
        stored = add_initializer(model.graph, f"{source.name}{WIDENED_SUFFIX}", widened)
        for reader, index in list(node.outputs[0].uses()):
            reader.replace_input_with(index, stored)
    remove_unused(model.graph)
