"""Text generation with a key-value cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.signature import InputSpec

PAST = "past"
"""Name of the dimension of a cached tensor that holds the cached positions."""


@dataclass(frozen=True, slots=True)
class CachedTensor:
    """A tensor of a decoder's cache."""

    name: str
    """``<layer>.key`` and ``<layer>.value``, or ``<layer>.conv_state`` and
    ``<layer>.recurrent_state`` of a recurrent layer."""
    shape: tuple[int | str, ...]
    """Keys are ``("batch", heads, "past", width)``; states have no dimension ``past``."""

    @property
    def is_state(self) -> bool:
        """True for the state of a recurrent layer, whose size does not grow with the tokens."""
        return PAST not in self.shape

    def values(self, tokens: int) -> int:
        """Return the number of values of one sequence."""
        return math.prod(tokens if size == PAST else int(size) for size in self.shape[1:])


@dataclass(frozen=True, slots=True)
class CachedGeneration(Capability):
    """The shape of a decoder's key-value cache.

    ``generate`` limits prompts and sizes the cache with it; ``export-onnx`` writes the graph of a
    decoder, with the cache as inputs and outputs, for models that have this capability.
    """

    label: ClassVar[str] = "cached generation"
    remedy: ClassVar[str] = "use a causal language model of transformers"

    context_length: int
    """Tokens of prompt and answer that the model has positions for."""
    layers: int
    key_heads: int
    """Key-value heads of a layer; of the first layer if they differ."""
    head_width: int
    """Values of one head; of the first layer's keys if they differ."""
    image_inputs: tuple[InputSpec, ...] = ()
    """Inputs for images, beside ``input_ids``; empty for a model of text alone."""
    tensors: tuple[CachedTensor, ...] = ()
    """Tensors of the cache in the order of the layers; empty if all layers hold keys and values
    of ``key_heads`` and ``head_width``."""
    encoder_inputs: tuple[InputSpec, ...] = ()
    """Inputs of the encoder that the decoder attends to; empty for a decoder alone."""
    cross_tensors: tuple[CachedTensor, ...] = ()
    """Keys and values of the encoder's output, which are computed once; their dimension ``past``
    holds the encoder's positions."""

    def cache_bytes(self, tokens: int, value_bytes: int) -> int:
        """Return the bytes of the keys, values and states of one sequence."""
        if self.tensors:
            return value_bytes * sum(tensor.values(tokens) for tensor in self.tensors)
        return 2 * self.layers * self.key_heads * self.head_width * tokens * value_bytes
