"""Layer-by-layer inspection: the inputs and outputs of each layer of an open model.

A layer holds weights: a linear layer, a convolution, a norm, an embedding. A batch normalization
directly behind a layer counts as part of it, as exporters and quantizers fold it. A layer's name is
the name of its torch module; ``export-onnx`` gives the layer's output the same name, and records
which value it reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.data.contract import Batch

Array = np.ndarray[Any, Any]
INPUTS_KEY = "autoglm_compress.layer_inputs"
"""Metadata key of an ONNX file: JSON that maps each layer to the value it reads."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Values of one batch inside a model; layers in the order in which they were last executed."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    answers: Mapping[str, Array]
    """The model's own outputs."""
    from_zero: frozenset[str] = frozenset()
    """Layers whose result is rounded on a grid that starts at 0, for the ReLU that reads it:
    negative values become 0 already there."""


class Layers(ABC):
    """An open model whose layers can be inspected.

    Attributes:
        notes_layers: False for a file in which layers are found by operators: what other tools name
            alike need not be the same layer.
    """

    notes_layers: bool = True

    def samples_per_call(self, batch: Batch) -> int | None:  # noqa: ARG002
        """Return the number of samples that the model takes at once; None for any number."""
        return None

    @abstractmethod
    def trace(self, batch: Batch) -> Trace:
        """Return input and output of every layer for a batch."""

    @abstractmethod
    def alone(self, batch: Batch, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return each layer's output for a replaced input; all else in the model sees ``batch``.

        Layers whose input has another number of values here are omitted.
        """


def reshape_like(array: Array, like: Array) -> Array | None:
    """Return the values in another array's shape and dtype; None where their number differs."""
    if array.size != like.size:
        return None
    return np.ascontiguousarray(array.reshape(like.shape).astype(like.dtype, copy=False))
