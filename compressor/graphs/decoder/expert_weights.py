"""Weights of single experts, which files hold one by one or fused.

Shapes: E experts, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compressor.graphs.decoder.mixture import Experts
from compressor.graphs.decoder.weights import (
    BlockMatrix,
    CheckpointWeights,
    ExpertBlocks,
    lazy_tensor,
)
from compressor.graphs.values import Array
from compressor.models.quantized.weight_grid import WeightGrid


class ExpertWeights:
    """Weights of the experts of one layer.

    Args:
        weights: of the checkpoint.
        experts: what the module holds.
        module: full name of the module.
    """

    def __init__(self, weights: CheckpointWeights, experts: Experts, module: str) -> None:
        self.weights, self.experts, self.module = weights, experts, module
        self.layout = experts.layout

    @property
    def inputs(self) -> tuple[str, ...]:
        """Projections that read the input of an expert."""
        return self.layout.projections[:-1]

    @property
    def output(self) -> tuple[str]:
        """The projection that gives the output of an expert."""
        return (self.layout.projections[-1],)

    def grid(self, number: int, projection: str) -> WeightGrid | None:
        """Return the grid of a projection of an expert; None if it is not packed."""
        stored = self._stored(number, projection)
        return None if stored is None else self.weights.grid(stored)

    def grids(self, projections: Sequence[str]) -> set[WeightGrid | None]:
        """Return the grids that projections have in any expert."""
        return {self.grid(n, part) for n in range(self.layout.experts) for part in projections}

    def matrix(
        self, number: int, projections: Sequence[str], shape: tuple[int, int]
    ) -> ir.LazyTensor:
        """Return projections of an expert side by side, [I, O of all].

        Args:
            number: of the expert.
            projections: that read one input.
            shape: (I, O of all).
        """

        def read() -> Tensor:
            return torch.cat([self._float(number, part) for part in projections]).T

        return lazy_tensor(read, self.weights.dtype, shape)

    def blocks(
        self,
        number: int,
        projections: Sequence[str],
        shape: tuple[int, int],
        rows: Tensor | None = None,
        size: int = 0,
    ) -> BlockMatrix:
        """Return packed projections of an expert; see ``CheckpointWeights.blocks``."""
        names = [self._stored(number, part) or "" for part in projections]
        return self.weights.blocks(names, shape, rows, size)

    def all_blocks(
        self, projections: Sequence[str], shape: tuple[int, int], rows: Tensor | None, size: int
    ) -> ExpertBlocks:
        """Return packed projections of all experts; arguments as of ``blocks``."""
        each = [
            self.blocks(number, projections, shape, rows, size)
            for number in range(self.layout.experts)
        ]
        outputs = shape[0]

        def stack(tensors: list[ir.LazyTensor]) -> ir.LazyTensor:
            width = tensors[0].size // outputs

            def read() -> Tensor:
                arrays = [tensor.numpy().reshape(outputs, width) for tensor in tensors]
                return torch.from_numpy(np.stack(arrays))

            return lazy_tensor(read, tensors[0].dtype, (len(each), outputs, width))

        zeros = [matrix.zeros for matrix in each if matrix.zeros is not None]
        return ExpertBlocks(
            stack([matrix.data for matrix in each]),
            stack([matrix.scales for matrix in each]),
            stack(zeros) if zeros else None,
        )

    def bias(self, number: int, projections: Sequence[str]) -> Array | None:
        """Return the biases of projections one after another, float32; None without biases."""
        if not self.layout.has_bias:
            return None
        parts = [self._float(number, part, "bias") for part in projections]
        result: Array = torch.cat(parts).numpy()
        return result

    def _stored(self, number: int, projection: str) -> str | None:
        """Return the name in the files of a linear layer; None if they hold fused experts."""
        return self.weights.expert_layers.get(f"{self.module}.{number}.{projection}")

    def _float(self, number: int, projection: str, kind: str = "weight") -> Tensor:
        """Return a tensor of an expert, float32."""
        if (stored := self._stored(number, projection)) is not None:
            return torch.from_numpy(self.weights.vector(f"{stored}.{kind}"))
        is_down = projection == self.layout.projections[-1]
        fused = projection if is_down else self.layout.first
        fused = f"{fused}_bias" if kind == "bias" else fused
        value = self.weights.first_rows(f"{self.module}.{fused}", number)
        one = replace(self.layout, experts=1).split({fused: value.float()})
        return one[f"0.{projection}.{kind}"]
