"""A test in torch of whether a class continues from its cache as it continues from its tokens.

Classes exist that keep a part of their state in the module, or that read the cache in another way
than they write it. Their cache as inputs and outputs of a graph would give wrong results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.models.families.transformers.generic.generation import cache_argument, new_cache

_TOKENS = 24
_MAX_ABS = 1e-2
"""Largest difference relative to the largest logit."""


def continues_from_cache(
    module: Any, window: Mapping[str, np.ndarray[Any, Any]], **options: Any
) -> bool:
    """Return True if logits behind a cached prefix equal those of the whole window.

    The prefix is copied into a fresh cache, as a graph that is given the cache's tensors has it.

    Args:
        module: a class that generates, in float32.
        window: a sample of tokens, `input_ids` [1, T].
        options: further arguments of every call.
    """
    ids_1T = torch.from_numpy(window[INPUT_IDS][:, :_TOKENS].astype(np.int64))
    half, argument = ids_1T.shape[1] // 2, str(cache_argument(module))
    cache = new_cache(module)
    with torch.inference_mode():
        expected = module(ids_1T, use_cache=False, **options).logits[:, half:]
        module(ids_1T[:, :half], **{argument: cache}, use_cache=True, **options)
        other_1T = ids_1T.flip(1)
        module(other_1T, **{argument: new_cache(module)}, use_cache=True, **options)
        actual = [
            module(ids_1T[:, [index]], **{argument: cache}, use_cache=True, **options).logits
            for index in range(half, ids_1T.shape[1])
        ]
    delta = (torch.cat(actual, dim=1) - expected).abs().max()
    return bool(delta <= _MAX_ABS * expected.abs().max())
