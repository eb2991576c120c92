"""Transposed constants that products multiply, as tied embeddings are: Transpose of the table."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.names import TRANSPOSED_SUFFIX
from compressor.graphs.values import add_initializer, attribute, constant_array, remove_unused

_PRODUCTS = frozenset({"MatMul", "Gemm"})
_MATRIX_RANK = 2


def fold_transposes(model: ir.Model) -> None:
    """Store the weights that products read behind a Transpose as they are multiplied, in place.

    A simplifier leaves such a Transpose where the table is read in other places too, as the file
    would grow. Weights that become integers may be stored twice.
    """
    for node in list(model.graph):
        array = constant_array(node.inputs[0]) if node.op_type == "Transpose" else None
        if array is None or array.ndim != _MATRIX_RANK or node.domain:
            continue
        readers = [
            (reader, index)
            for reader, index in node.outputs[0].uses()
            if index == 1 and reader.op_type in _PRODUCTS and reader.graph is model.graph
        ]
        if readers:
            transposed = np.ascontiguousarray(array.transpose(attribute(node, "perm", [1, 0])))
            name = f"{node.outputs[0].name}{TRANSPOSED_SUFFIX}"
            stored = add_initializer(model.graph, name, transposed)
            for reader, index in readers:
                reader.replace_input_with(index, stored)
    remove_unused(model.graph)
