"""Layer by layer: what goes into and comes out of each layer of a model, and what a layer makes of another model's input.

A layer is what holds weights: a linear layer, a convolution, a norm, a table. A batch normalization right behind a layer
counts as part of it, as exporters and quantizers fold it. Its name is that of its torch module; ``export-onnx`` gives the value
that it makes the same name, and writes down which value it reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.kinds import OF_FAMILIES, Kind
from compressor.data.contract import Batch
from compressor.errors import UsageError

Array = np.ndarray[Any, Any]
INPUTS_KEY = "autoglm_compress.layer_inputs"
"""In the metadata of an ONNX file: JSON of layer to the value that it reads."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One batch on its way through a model; layers in the order in which they computed last."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    answers: Mapping[str, Array]
    """The model's own outputs."""


class Layers(ABC):
    """An open model whose layers can be looked at."""

    @abstractmethod
    def trace(self, batch: Batch) -> Trace:
        """What went through each layer for a batch."""

    @abstractmethod
    def alone(self, batch: Batch, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What each layer makes of an input that is given to it alone; the rest of the model sees ``batch``.

        A layer whose input here has another number of values is left out.
        """


def open_layers(kind: Kind, model: Path, threads: int) -> Layers:
    """The layers of an artifact's model; of an engine, those of the graph that it was built from.

    Raises:
        ModelError: the folder does not hold a model that can be opened.
        UsageError: models of this kind have no layers to look at.
    """
    if kind in OF_FAMILIES:
        from compressor.runtimes.torch.layers import TorchLayers
        from compressor.runtimes.torch.session import TorchSession

        return TorchLayers.of_session(TorchSession(model, threads, "cpu"))
    if kind in {Kind.ONNX, Kind.ENGINE}:
        from compressor.runtimes.onnxruntime.layers import OnnxLayers

        return OnnxLayers(model, threads)
    raise UsageError(f"a model of kind {kind.value!r} has no layers to look at: {model}")


def reshaped(array: Array, like: Array) -> Array | None:
    """The same values in another shape and type; None where their number differs."""
    if array.size != like.size:
        return None
    return np.ascontiguousarray(array.reshape(like.shape).astype(like.dtype, copy=False))
