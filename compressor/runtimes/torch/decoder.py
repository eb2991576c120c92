"""Generation with torch and the key-value cache of transformers.

Shapes: T new tokens, V vocabulary entries.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import read_description
from compressor.runtimes.decoding import (
    Array,
    EncoderDecoder,
    EncoderDecoderOptions,
    GenerationLimits,
)
from compressor.runtimes.memory import check_kv_cache_fits

INPUT_IDS, DECODER_TOKENS = "input_ids", "decoder_input_ids"
ATTENTION_MASK = "attention_mask"
FLOAT_BYTES = 4


def limits_of(folder: Path) -> GenerationLimits | None:
    """Return the limits of a model that generates with a cache; None for other models."""
    model = read_description(folder)
    generation = model.capability(CachedGeneration)
    if generation is None:
        return None
    tokens = DECODER_TOKENS if generation.encoder_inputs else INPUT_IDS
    bounds = (spec.below for spec in model.signature.inputs if spec.name == tokens)
    return GenerationLimits(
        generation.context_length,
        bool(generation.image_inputs),
        next(bounds, None),
        tuple(spec.name for spec in generation.encoder_inputs),
    )


class TorchEncoderDecoder(EncoderDecoder):
    """An encoder-decoder of transformers, in torch, with the kind of cache it uses itself."""

    def __init__(self, folder: Path, options: EncoderDecoderOptions) -> None:
        """Open the model.

        Raises:
            UsageError: the keys and values do not fit into memory.
            ModelError: the model cannot be opened.
            RequirementError: the model does not generate with a key-value cache.
        """
        import torch

        from compressor.models.checkpoint.loading import load_module
        from compressor.models.families.transformers.generic.generation import (
            cache_argument,
            new_cache,
        )

        model = read_description(folder)
        generation = model.require(CachedGeneration)
        cache_bytes = generation.cache_bytes(options.capacity, FLOAT_BYTES)
        check_kv_cache_fits(cache_bytes, batch_size=1, tokens=options.capacity)
        torch.set_num_threads(options.threads)
        module: Any = load_module(model)
        self._module = module
        self._new_cache: Callable[[], dict[str, Any]] = lambda: {
            str(cache_argument(module)): new_cache(module)
        }
        self._cache = self._new_cache()
        self._encoded: dict[str, Any] = {}
        parameters = inspect.signature(type(self._module).forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def encode(self, arrays: Mapping[str, Array]) -> None:
        """Run the encoder; see ``EncoderDecoder.encode``."""
        import torch

        self._cache = self._new_cache()
        inputs = {name: self._tensor(array) for name, array in arrays.items()}
        with torch.inference_mode():
            self._encoded = {"encoder_outputs": self._module.get_encoder()(**inputs)}
        if ATTENTION_MASK in inputs:
            self._encoded[ATTENTION_MASK] = inputs[ATTENTION_MASK]

    def forward(self, token_ids_T: Array) -> Array:
        """Run the new tokens through the model; see ``EncoderDecoder.forward``."""
        import torch

        inputs = {DECODER_TOKENS: self._tensor(token_ids_T[None])}
        with torch.inference_mode():
            outputs = self._module(
                **inputs, **self._cache, **self._encoded, **self._options, use_cache=True
            )
        logits_V: Array = outputs["logits"][0, -1].float().numpy()
        return logits_V

    def _tensor(self, array: Array) -> Any:
        """Return a tensor; floats have the dtype of the module's weights."""
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self._module.dtype) if tensor.is_floating_point() else tensor
