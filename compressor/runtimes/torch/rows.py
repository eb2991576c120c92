"""Rows of a model in torch: each has its own cache of transformers, and they step in turn.

Shapes: B rows, T new tokens, V vocabulary entries.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import ModelError, PassError
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import read_description
from compressor.runtimes.rows import RowDecoder, RowOptions
from compressor.runtimes.torch.decoder import FLOAT_BYTES, INPUT_IDS

Array = np.ndarray[Any, Any]
_SPREAD = 0x9E3779B97F4A7C15 >> 24
"""Factor that spreads the keys of token ids: 2^64 divided by the golden ratio (Knuth 1973)."""
_ROPE_DELTAS = "rope_deltas"
"""Attribute of modules with M-RoPE: the distance that positions gained in the last prompt."""


@dataclass(slots=True)
class _Row:
    """What a row holds between two calls."""

    cache: Any
    rope_deltas: dict[Any, Any]
    """Modules with M-RoPE, and their distance."""


class TorchRows(RowDecoder):
    """A class of transformers that generates, with one module for all rows."""

    def __init__(self, folder: Path, options: RowOptions) -> None:
        """Open the model.

        Raises:
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
        torch.set_num_threads(options.threads)
        module: Any = load_module(model)
        self.options, self._module = options, module
        self._new_cache: Callable[[], Any] = lambda: new_cache(module)
        self._argument = str(cache_argument(module))
        self._rope_modules = [part for part in module.modules() if hasattr(part, _ROPE_DELTAS)]
        self._rows = [self._empty() for _ in range(options.rows)]
        parameters = inspect.signature(type(module).forward).parameters
        self._keeps = "logits_to_keep" in parameters
        self.token_bytes = generation.cache_bytes(1, FLOAT_BYTES)
        self.truncates = all(_can_shorten(layer) for layer in self._rows[0].cache.layers)
        head = module.get_output_embeddings()
        if head is None:
            raise ModelError(f"{folder} has no language model head")
        self.vocabulary = int(head.weight.shape[0])

    def append(self, row: int, length: int, ids_T: Array, images: Any, keep: int) -> Array:
        """See ``RowDecoder.append``."""
        import torch

        self._shorten(row, length)
        state = self._rows[row]
        for part in self._rope_modules:
            setattr(part, _ROPE_DELTAS, state.rope_deltas.get(part))
        inputs = {INPUT_IDS: ids_T} | (images if images and not length else {})
        options: dict[str, Any] = {self._argument: state.cache, "use_cache": True}
        if self._keeps:
            options["logits_to_keep"] = keep
        try:
            with torch.inference_mode():
                tensors = {name: self._tensor(array[None]) for name, array in inputs.items()}
                outputs = self._module(**tensors, **options)
        except (RuntimeError, ValueError, IndexError) as error:
            raise PassError(f"torch failed: {str(error).splitlines()[0]}") from error
        state.rope_deltas = {part: getattr(part, _ROPE_DELTAS) for part in self._rope_modules}
        logits_KV: Array = outputs["logits"][0, -keep:].float().numpy()
        return logits_KV

    def step(self, lengths_B: Array, ids_B: Array, images_B: list[Any]) -> Array:
        """See ``RowDecoder.step``."""
        rows = zip(lengths_B.tolist(), ids_B[:, None], images_B, strict=True)
        return np.concatenate(
            [
                self.append(row, length, ids_1, images, 1)
                for row, (length, ids_1, images) in enumerate(rows)
            ]
        )

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``RowDecoder.copy``."""
        row = self._rows[source]
        self._rows[target] = _Row(copy.deepcopy(row.cache), dict(row.rope_deltas))
        self._shorten(target, length)

    def swap(self, first: int, second: int, length: int) -> None:
        """See ``RowDecoder.swap``."""
        del length
        self._rows[first], self._rows[second] = self._rows[second], self._rows[first]

    def release(self, row: int, length: int) -> None:
        """See ``RowDecoder.release``."""
        self._shorten(row, length)

    def encode_images(
        self, ids_T: Array, arrays: Mapping[str, Array], pictures: Sequence[bytes]
    ) -> tuple[Any, Array]:
        """See ``RowDecoder.encode_images``; the module embeds the images as it reads the prompt."""
        digest = hashlib.sha256(b"".join(pictures))
        # The prompt is read at once, into an empty row, so its keys need not equal those of a text.
        start = int.from_bytes(digest.digest()[:6], "big")
        prefix_keys_T: Array = -1 - ((start << 15) + ids_T * _SPREAD) % (1 << 62)
        return dict(arrays), prefix_keys_T

    def _empty(self) -> _Row:
        return _Row(self._new_cache(), {})

    def _shorten(self, row: int, length: int) -> None:
        """Drop all but the first tokens of a row."""
        held = int(self._rows[row].cache.get_seq_length())
        if not length:
            self._rows[row] = self._empty()
        elif held > length:
            self._rows[row].cache.crop(length - held)

    def _tensor(self, array: Array) -> Any:
        """Return a tensor; floats have the dtype of the module's weights."""
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self._module.dtype) if tensor.is_floating_point() else tensor


def _can_shorten(layer: Any) -> bool:
    from transformers.cache_utils import DynamicLayer

    return type(layer) is DynamicLayer
