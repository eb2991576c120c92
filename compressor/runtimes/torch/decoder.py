"""Generation from a checkpoint of transformers, with the key-value cache of transformers.

Shapes: T new tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.models.checkpoint.description import read_description
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.images import image_inputs
from compressor.models.families.transformers.layouts import decoder_of, text_of
from compressor.runtimes.decoding import Array, Decoder, DecoderOptions, GenerationLimits
from compressor.runtimes.memory import check_kv_cache_fits

_FLOAT_BYTES = 4


def limits_of(folder: Path) -> GenerationLimits | None:
    """Return the limits of a checkpoint of transformers; None for models of other families."""
    config = _checkpoint_config(folder)
    if config is None:
        return None
    context_length = int(text_of(config).get("max_position_embeddings", 2048))
    return GenerationLimits(context_length, takes_images=bool(image_inputs(config)))


class TorchDecoder(Decoder):
    """A checkpoint in torch with a ``DynamicCache``."""

    def __init__(self, folder: Path, options: DecoderOptions) -> None:
        """Open the checkpoint.

        Raises:
            UsageError: the keys and values do not fit into memory.
            ModelError: the checkpoint cannot be opened.
        """
        import torch
        from transformers import DynamicCache

        from compressor.models.checkpoint.loading import load_module

        shape = decoder_of(_checkpoint_config(folder) or {})
        token_bytes = 2 * _FLOAT_BYTES * shape.layers * shape.key_heads * shape.head_width
        check_kv_cache_fits(token_bytes * options.capacity, 1, options.capacity)
        torch.set_num_threads(options.threads)
        self._module, self._cache = load_module(folder), DynamicCache()

    def forward(self, token_ids_T: Array, images: Mapping[str, Array] | None = None) -> Array:
        """Run the new tokens through the model; see ``Decoder.forward``."""
        import torch

        arrays = {"input_ids": token_ids_T, **(images or {})}
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


def _checkpoint_config(folder: Path) -> dict[str, Any] | None:
    config = read_description(folder).config
    return config.tree if isinstance(config, CheckpointConfig) else None
