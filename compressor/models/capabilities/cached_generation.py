"""Text generation with a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.signature import InputSpec


@dataclass(frozen=True, slots=True)
class CachedGeneration(Capability):
    """The shape of a decoder's key-value cache.

    ``generate`` limits prompts and sizes the cache with it; ``export-onnx`` builds the graph of a
    decoder, with the cache as inputs and outputs, for models that have this capability.
    """

    label: ClassVar[str] = "cached generation"
    remedy: ClassVar[str] = "use a causal language model of transformers"

    context_length: int
    """Tokens of prompt and answer that the model has positions for."""
    layers: int
    key_heads: int
    """Key-value heads of a layer."""
    head_width: int
    """Values of one head."""
    image_inputs: tuple[InputSpec, ...] = ()
    """Inputs for images, beside ``input_ids``; empty for a model of text alone."""

    def cache_bytes(self, tokens: int, value_bytes: int) -> int:
        """Return the bytes of the keys and values of one sequence."""
        return 2 * self.layers * self.key_heads * self.head_width * tokens * value_bytes
