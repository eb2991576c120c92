"""Generation with torch and the key-value cache of transformers.

Shapes: T new tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import read_description
from compressor.runtimes.decoding import Array, Decoder, DecoderOptions, GenerationLimits
from compressor.runtimes.memory import check_kv_cache_fits

INPUT_IDS = "input_ids"
_FLOAT_BYTES = 4


def limits_of(folder: Path) -> GenerationLimits | None:
    """Return the limits of a model that generates with a cache; None for other models."""
    model = read_description(folder)
    generation = model.capability(CachedGeneration)
    if generation is None:
        return None
    bounds = (spec.below for spec in model.signature.inputs if spec.name == INPUT_IDS)
    return GenerationLimits(
        generation.context_length, bool(generation.image_inputs), next(bounds, None)
    )


class TorchDecoder(Decoder):
    """A language model in torch with a ``DynamicCache``."""

    def __init__(self, folder: Path, options: DecoderOptions) -> None:
        """Open the model.

        Raises:
            UsageError: the keys and values do not fit into memory.
            ModelError: the model cannot be opened.
            RequirementError: the model does not generate with a key-value cache.
        """
        import torch
        from transformers import DynamicCache

        from compressor.models.checkpoint.loading import load_module

        model = read_description(folder)
        generation = model.require(CachedGeneration)
        cache_bytes = generation.cache_bytes(options.capacity, _FLOAT_BYTES)
        check_kv_cache_fits(cache_bytes, batch_size=1, tokens=options.capacity)
        torch.set_num_threads(options.threads)
        self._module, self._cache = load_module(model), DynamicCache()

    def forward(self, token_ids_T: Array, images: Mapping[str, Array] | None = None) -> Array:
        """Run the new tokens through the model; see ``Decoder.forward``."""
        import torch

        arrays = {INPUT_IDS: token_ids_T, **(images or {})}
        inputs = {
            name: torch.from_numpy(np.ascontiguousarray(array))[None]
            for name, array in arrays.items()
        }
        with torch.inference_mode():
            outputs = self._module(
                **inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        logits_V: Array = outputs["logits"][0, -1].float().numpy()
        return logits_V
