"""xIELU, an activation with two learned parameters (Huang et al. 2024, arXiv:2411.13010)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.decoder.operators import Operators
from compressor.graphs.decoder.weights import CheckpointWeights


def xielu(
    add: Operators, x: ir.Value, weights: CheckpointWeights, module: str, name: str
) -> ir.Value:
    """Return αp·x² + β·x for x > 0, and αn·(exp(min(x, ε)) - 1 - x) + β·x otherwise.

    Args:
        add: the graph.
        x: the input.
        weights: of the checkpoint.
        module: name of the activation, for its parameters.
        name: name of the result.
    """

    def constant(part: str, value: float) -> ir.Value:
        return add.floats(f"{name}.{part}", np.array(value, np.float32))

    beta, largest = (float(weights.vector(f"{module}.{part}").item()) for part in ("beta", "eps"))
    positive, negative = (
        float(np.logaddexp(0, weights.vector(f"{module}.{part}").item()))
        for part in ("alpha_p", "alpha_n")
    )
    squared = add.op("Mul", [x, x], f"{name}.squared")
    above = add.op("Mul", [squared, constant("positive", positive)], f"{name}.above")
    capped = add.op("Min", [x, constant("largest", largest)], f"{name}.capped")
    grown = add.op("Exp", [capped], f"{name}.grown")
    grown = add.op("Sub", [grown, constant("unit", 1.0)], f"{name}.grown.from_zero")
    grown = add.op("Sub", [grown, x], f"{name}.curved")
    below = add.op("Mul", [grown, constant("negative", beta + negative)], f"{name}.below")
    is_above = add.op("Greater", [x, constant("zero", 0.0)], f"{name}.is_above")
    chosen = add.op("Where", [is_above, above, below], f"{name}.chosen")
    linear = add.op("Mul", [x, constant("slope", beta)], f"{name}.linear")
    return add.op("Add", [chosen, linear], name)
