"""Limits of models that generate, and the contract for those with an encoder.

Shapes: T new tokens, V vocabulary entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
class EncoderDecoderOptions:
    """Options for opening an encoder-decoder."""

    threads: int
    capacity: int
    """Tokens that the decoder's key-value cache must hold."""
    fast_prompts: bool = False
    """Read the decoder's first tokens with 8-bit copies of the packed weights (ONNX only)."""


class EncoderDecoder(ABC):
    """An open encoder-decoder with the key-value cache of one sequence.

    A decoder alone is a ``RowDecoder``, also where it generates a single sequence.
    """

    @abstractmethod
    def encode(self, arrays: Mapping[str, Array]) -> None:
        """Run the encoder, and start a new sequence.

        Args:
            arrays: the encoder's inputs for one sample, with a first dimension of size 1.
        """

    @abstractmethod
    def forward(self, token_ids_T: Array) -> Array:
        """Append tokens to the sequence and return the logits after the last one, float32 [V].

        Args:
            token_ids_T: int64; the first tokens, or the token selected last.
        """
