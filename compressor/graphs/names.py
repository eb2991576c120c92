"""Parts of the names of initializers, by which a weight of a graph is matched with the module's."""

from __future__ import annotations

MODULE_PREFIX = "module."
"""Prefix of the names of weights and modules in a traced graph: the module that wraps the model."""
INTEGER_SUFFIX = ".integers"
"""Suffix of a weight's integers, which a DequantizeLinear reads."""
TRANSPOSED_SUFFIX = ".T"
"""Suffix of a transposed weight, [inputs, outputs]; it follows other suffixes."""
SMOOTHED_SUFFIX = ".smoothed"
"""Suffix of a value whose outlier channels ``optimize-onnx`` has scaled down."""
HALF_SUFFIX = ".half"
"""Suffix of a weight that was converted to FP16."""
WIDENED_SUFFIX = ".float"
"""Suffix of a constant that is stored in FP32 in place of the type that the file had."""
FOLDED_SUFFIX = ".folded"
"""Suffix of a weight that the file computes from other constants."""
