"""Generation with a key-value cache: the contract between a runtime and `generate`.

Shapes: T new tokens, V vocabulary entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.errors import UsageError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Limits of the prompts that a generative model accepts."""

    context_length: int
    """Tokens of prompt and answer together."""
    takes_images: bool
    """True if the prompt may hold images."""
    vocabulary: int | None = None
    """Rows of the embedding, which token ids must stay below; None if not known."""
    encoder_inputs: tuple[str, ...] = ()
    """Names of the inputs of the encoder that the decoder attends to; none for a decoder alone."""


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """Options for opening a model to generate one sequence."""

    threads: int
    capacity: int
    """Tokens of prompt and answer that the key-value cache must hold."""
    fast_prompts: bool = False
    """Prefill with 8-bit copies of the packed weights (ONNX decoders only)."""


class Decoder(ABC):
    """An open model with the key-value cache of one sequence."""

    def encode(self, arrays: Mapping[str, Array]) -> None:  # noqa: ARG002
        """Run the encoder of an encoder-decoder, and start a new sequence.

        Args:
            arrays: the encoder's inputs for one sample, with a first dimension of size 1.
        """
        raise UsageError("the model has no encoder: it continues tokens")

    @abstractmethod
    def forward(self, token_ids_T: Array, images: Mapping[str, Array] | None = None) -> Array:
        """Append tokens to the sequence and return the logits after the last one, float32 [V].

        Args:
            token_ids_T: int64; a prompt, or the token sampled last.
            images: the processor's arrays of the images in these tokens. Only the first call may
                pass images.
        """
