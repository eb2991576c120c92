"""Problems that the linters report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import onnx

from compressor.graphs.graph_index import node_label


class Rule(Enum):
    """Rules of all targets; a pass chooses the remedy by the rule."""

    FLOAT_OPERATOR = "ONNX Runtime computes the operator in float"
    INPUT_TYPE = "TensorRT takes no input of this type"
    FOREIGN_OPERATOR = "TensorRT lacks the operator"
    BRANCHES = "TensorRT needs branches of equal rank"
    INTEGER_TYPE = "TensorRT has no such quantized type"
    INTEGER_CONSTANT = "TensorRT reads INT8 constants by DequantizeLinear only"
    UNSIGNED_INTEGERS = "TensorRT takes signed integers only"
    INTEGER_BIAS = "TensorRT takes biases in float only"
    ZERO_POINT = "TensorRT takes zero-points of 0 only"
    SCALE = "scales have to be positive"
    MIXED_TYPES = "operands have different float types"
    NO_KERNEL = "a GPU has no kernels for a type"
    NO_XNNPACK = "XNNPACK does not take the convolution"
    FP32_PRODUCTS = "a GPU has no kernels for products in FP32"


@dataclass(frozen=True, slots=True)
class Problem:
    """One node or input that a target refuses or leaves in float."""

    subject: str
    """The node or input, as messages name it."""
    rule: Rule
    detail: str

    @classmethod
    def of(cls, node: onnx.NodeProto, rule: Rule, detail: str) -> Problem:
        """Return a problem of a node."""
        return cls(node_label(node), rule, detail)

    def __str__(self) -> str:
        return f"{self.subject}: {self.detail}"
