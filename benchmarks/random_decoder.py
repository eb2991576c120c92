"""Write a decoder's graph with random INT4 weights, to measure its speed.

    python -m benchmarks.random_decoder FOLDER [--layers 4] [--tree CONFIG_JSON] [--grouped]

By default it is a tenth of AutoGLM-Phone-9B's text model: 4 of 40 layers, and a tenth of the
vocabulary, so that each part takes its usual share of a step. Nothing of it means anything: only
its time is that of a real model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.make_glm4v import VOCABULARY, config
from compressor.graphs.decoder.block_sizes import embedding_block_size
from compressor.graphs.decoder.graph import DecoderGraph
from compressor.graphs.decoder.interface import CONTEXT_LENGTH_KEY, TARGET_KEY
from compressor.graphs.decoder.onnxruntime_operators import OnnxRuntimeOperators
from compressor.graphs.decoder.read_architecture import read_architecture
from compressor.graphs.decoder.weights import BlockMatrix, lazy_tensor
from compressor.graphs.saving import save_checked_model

LAYERS_OF_9B, GROUP_SIZE, SCALE = 40, 64, 0.005


class RandomWeights:
    """Packed weights of any name and size; norms are ones, and biases are absent."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def has(self, _: str) -> bool:
        return False

    def grid(self, _: str) -> bool:
        return True

    def blocks(self, _: Sequence[str], shape: tuple[int, int], __: Any = None) -> BlockMatrix:
        return self._matrix(*shape, bits=4, size=GROUP_SIZE)

    def int8_table(self, _: str, size: int) -> BlockMatrix:
        return self._matrix(self.vocabulary, self.hidden, bits=8, size=size)

    def _matrix(self, outputs: int, inputs: int, *, bits: int, size: int) -> BlockMatrix:
        import torch

        count = inputs // size
        shape = (outputs, count, size * bits // 8)

        def data() -> Any:
            return torch.from_numpy(self.generator.integers(0, 256, shape, dtype=np.uint8))

        def scales() -> Any:
            return torch.full((outputs, count), SCALE, dtype=torch.float16)

        return BlockMatrix(
            outputs,
            inputs,
            bits,
            size,
            data=lazy_tensor(data, ir.DataType.UINT8, shape),
            scales=lazy_tensor(scales, ir.DataType.FLOAT16, (outputs, count)),
            zeros=None,
        )


def write(folder: Path, tree: Mapping[str, Any], *, stacks_heads: bool) -> None:
    """Write model.onnx."""
    architecture = read_architecture(dict(tree), None)
    weights: Any = RandomWeights()
    weights.hidden = architecture.decoder.hidden
    weights.vocabulary = architecture.decoder.vocabulary
    assert embedding_block_size(weights.hidden)
    operators = OnnxRuntimeOperators(accuracy_level=4, stacks_heads=stacks_heads)
    graph = DecoderGraph(architecture, weights, operators, int8_embeddings=True)
    metadata = {TARGET_KEY: "onnxruntime", CONTEXT_LENGTH_KEY: str(architecture.context)}
    folder.mkdir(parents=True)
    save_checked_model(graph.build(), folder, metadata, 2_000_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tree", type=Path, help="config.json of another model")
    parser.add_argument("--grouped", action="store_true", help="GroupQueryAttention alone")
    options = parser.parse_args()
    tree = config(options.layers, VOCABULARY * options.layers // LAYERS_OF_9B)
    if options.tree is not None:
        tree = json.loads(options.tree.read_text(encoding="utf-8"))
    write(options.folder, tree, stacks_heads=not options.grouped)


if __name__ == "__main__":
    main()
