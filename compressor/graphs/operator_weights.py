"""Inputs of ONNX operators that hold the weights of layers."""

from __future__ import annotations

from collections.abc import Mapping

WEIGHT_POSITIONS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("MatMul", "Gemm", "Conv", "ConvTranspose"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
}
"""Operator to the positions of its weights among its inputs."""
