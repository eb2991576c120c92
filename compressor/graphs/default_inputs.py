"""Inputs of a graph that have a default value, as files of ONNX's IR version 3 list all weights."""

from __future__ import annotations

import onnx_ir as ir

_SEPARATE_WEIGHTS = 4
"""The first IR version in which weights need not be inputs."""


def freeze_default_inputs(model: ir.Model) -> list[str]:
    """Turn inputs with a default value into constants, in place, and return their names.

    Neither engines nor simplified graphs have optional inputs.
    """
    frozen = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    for value in frozen:
        model.graph.inputs.remove(value)
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.numpy().shape)
    # Files of version 3 whose weights are no inputs are not valid, but exist.
    model.ir_version = max(model.ir_version, _SEPARATE_WEIGHTS)
    return [str(value.name) for value in frozen]
