"""Key-value caches of classes of transformers, found by running the class once.

The numbers of heads and their widths are read from the tensors that a call leaves in the cache, so
that no name of a config field has to be known.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from compressor.models.capabilities.cached_generation import PAST, CachedGeneration, CachedTensor
from compressor.models.capabilities.signature import InputSpec
from compressor.models.families.transformers.generic.description import describe
from compressor.models.families.transformers.generic.inputs import DECODER_TOKENS, TOKENS
from compressor.models.families.transformers.generic.sample import sample_batch
from compressor.models.families.transformers.modules import build_module, build_without_data

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
_BATCH, _TOKENS = 2, 3
_UNLIMITED = 1 << 20
"""Context of decoders without a number of positions, such as recurrent ones."""
_MOST_PARAMETERS_TO_RUN = 20_000_000
"""Classes that do not run on meta tensors are run with random weights up to this size."""
_KNOWN_LAYERS = frozenset(
    {
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionLayer,
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionAndSlidingWindowAttentionLayer,
    }
)
"""Kinds of cached layers that hold nothing beside the tensors of ``layer_tensors``."""


def cached_generation(tree: Mapping[str, Any]) -> CachedGeneration | None:
    """Return the cache of the class that config.json names; None if it does not generate with one.

    A decoder whose cache cannot be described has none: it is exported without.

    Raises:
        ModelError: transformers has no such class, or rejects the config.
    """
    return _cached_generation(json.dumps(dict(tree), sort_keys=True))


@lru_cache(maxsize=32)
def _cached_generation(content: str) -> CachedGeneration | None:
    tree = json.loads(content)
    module = build_without_data(tree)
    if not module.can_generate() or cache_argument(module) is None:
        return None
    signature = describe(tree).signature
    inputs = signature.required_inputs
    cache = _fill_cache(module, tree, inputs)
    if cache is None:
        return None
    own, cross = _parts(cache)
    tensors = tuple(cached_tensors(own))
    keys = [tensor.shape for tensor in tensors if not tensor.is_state]
    heads, width = (int(keys[0][1]), int(keys[0][3])) if keys else (0, 0)
    decoder_tokens = DECODER_TOKENS if cross else TOKENS
    longest = next((spec.longest for spec in inputs if spec.name == decoder_tokens), None)
    return CachedGeneration(
        context_length=longest or _UNLIMITED,
        layers=len(own.layers),
        key_heads=heads,
        head_width=width,
        tensors=tensors,
        image_inputs=tuple(spec for spec in signature.inputs if spec.optional),
        encoder_inputs=tuple(spec for spec in inputs if spec.name != DECODER_TOKENS and cross),
        cross_tensors=tuple(cached_tensors(cross)) if cross else (),
    )


def new_cache(module: PreTrainedModel) -> Cache:
    """Return an empty cache of the kind that a class generates with."""
    config: Any = module.config
    if config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    return DynamicCache(config=config)


def cached_tensors(cache: Cache) -> Iterator[CachedTensor]:
    """Yield the tensors that a call has left in a cache, described by their shapes."""
    for number, layer in enumerate(cache.layers):
        for part, tensor in layer_tensors(layer).items():
            sizes: list[int | str] = ["batch", *tensor.shape[1:]]
            if part in {"key", "value"}:
                sizes[2] = PAST
            yield CachedTensor(f"{number}.{part}", tuple(sizes))


def layer_tensors(layer: Any) -> dict[str, Tensor]:
    """Return the tensors of a cached layer by the names of their parts; none if it is empty."""
    tensors: dict[str, Tensor] = {}
    if isinstance(getattr(layer, "keys", None), Tensor) and layer.keys.ndim == 4:
        tensors |= {"key": layer.keys, "value": layer.values}
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        states = (("conv_state", layer.conv_states), ("recurrent_state", layer.recurrent_states))
        for part, values in states:
            tensors |= {
                f"{part}{index or ''}": value
                for index, value in values.items()
                if value is not None
            }
    return tensors


def cache_argument(module: PreTrainedModel) -> str | None:
    """Return the argument of ``forward`` for the cache; None for a class without one."""
    parameters = inspect.signature(type(module).forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def _fill_cache(
    module: PreTrainedModel, tree: Mapping[str, Any], inputs: tuple[InputSpec, ...]
) -> Cache | None:
    """Return the cache after one call; None if the class cannot be run, or has another cache."""
    batch = sample_batch(inputs, batch=_BATCH, tokens=_TOKENS)
    size = sum(parameter.numel() for parameter in module.parameters())
    try:
        cache = _call(module, {name: value.to("meta") for name, value in batch.items()})
    except Exception:  # noqa: BLE001  a class whose control flow reads values
        if size > _MOST_PARAMETERS_TO_RUN:
            return None
        try:
            with torch.random.fork_rng(devices=[]):
                loaded: Any = build_module(tree).eval()
                cache = _call(loaded, batch)
        except Exception:  # noqa: BLE001  it needs inputs of its own
            return None
    layers = [layer for part in _parts(cache) if part is not None for layer in part.layers]
    known = all(type(layer) in _KNOWN_LAYERS or not layer_tensors(layer) for layer in layers)
    return cache if known and any(map(layer_tensors, layers)) else None


def _call(module: PreTrainedModel, batch: Mapping[str, Tensor]) -> Cache:
    cache = new_cache(module)
    if module._can_set_experts_implementation():
        module.set_experts_implementation("batched_mm")  # the default one reads values
    with torch.no_grad():
        module(**batch, **{str(cache_argument(module)): cache}, use_cache=True)
    return cache


def _parts(cache: Cache) -> tuple[Cache, Cache | None]:
    """Return the caches of self-attention and of cross-attention, if there is one."""
    if isinstance(cache, EncoderDecoderCache):
        return cache.self_attention_cache, cache.cross_attention_cache
    return cache, None
