"""A decoder of transformers with its cache as tensors in and out, for tracing.

Shapes: B sequences, T new tokens, P cached positions, K positions whose logits are kept, N key
heads of width H, V vocabulary entries.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from compressor.models.capabilities.cached_generation import CachedTensor
from compressor.models.families.transformers.generic.generation import (
    cache_argument,
    layer_tensors,
)

_POSITIONS, _KEPT = "position_ids", "logits_to_keep"


class CachedDecoder(nn.Module):
    """A causal language model whose graph appends T tokens to a cache of P positions.

    Every layer caches all positions: the windows of sliding attention are applied by the mask.
    Positions count the valid tokens of the attention mask, so that prompts may be padded before
    their tokens.

    A subclass may replace ``call_arguments``, to give the class embeddings in place of tokens or
    positions with several axes; it gets the tensors of ``extra_inputs`` by name.
    """

    extra_inputs: tuple[str, ...] = ()
    """Names of further inputs of the graph, behind the tokens, the mask and the kept positions."""

    def __init__(self, module: PreTrainedModel, tensors: Sequence[CachedTensor]) -> None:
        """Wrap a class that generates.

        Args:
            module: the class, in eval mode.
            tensors: the tensors of its cache.
        """
        super().__init__()
        self.module, self.tensors = module, tuple(tensors)
        self.argument = str(cache_argument(module))
        self.parameters_of_forward = frozenset(inspect.signature(type(module).forward).parameters)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, kept_positions: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the logits [B, K, V], and the tensors of the cache after the new tokens.

        Args:
            input_ids: tokens [B, T].
            attention_mask: 1 for valid positions, [B, P + T].
            kept_positions: indices [K] of the new tokens whose logits are returned.
            rest: ``extra_inputs``, and the tensors of the cache: keys and values [B, N, P, H].
        """
        count = len(self.extra_inputs)
        extra = dict(zip(self.extra_inputs, rest[:count], strict=True))
        cache = self.filled_cache(self.tensors, rest[count:])
        mask = _with_known_size(attention_mask, input_ids, _positions(self.tensors, rest[count:]))
        arguments = self.call_arguments(input_ids, mask, extra)
        keeps = _KEPT in self.parameters_of_forward
        if keeps:
            arguments[_KEPT] = kept_positions
        arguments[self.argument] = self.wrap_cache(cache, extra)
        results = self.module(**arguments, use_cache=True, return_dict=True)
        logits = results.logits if keeps else results.logits.index_select(1, kept_positions)
        present = [tensor for layer in cache.layers for tensor in layer_tensors(layer).values()]
        return (logits.float(), *present)

    def call_arguments(
        self, input_ids: Tensor, attention_mask: Tensor | None, extra: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Return the arguments of the class beside its cache.

        Args:
            input_ids: tokens [B, T].
            attention_mask: [B, P + T]; None for a decoder whose layers all have states.
            extra: the tensors of ``extra_inputs``.
        """
        del extra
        if attention_mask is None:
            return {"input_ids": input_ids}
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask}
        if _POSITIONS in self.parameters_of_forward:
            arguments[_POSITIONS] = token_positions(attention_mask, input_ids.shape[1])
        return arguments

    def wrap_cache(self, cache: DynamicCache, extra: Mapping[str, Tensor]) -> Cache:
        """Return the cache that the class is called with, which holds ``cache``."""
        del extra
        return cache

    @staticmethod
    def filled_cache(specs: Sequence[CachedTensor], tensors: Sequence[Tensor]) -> DynamicCache:
        """Return a cache that holds tensors."""
        by_layer: dict[int, dict[str, Tensor]] = {}
        for spec, tensor in zip(specs, tensors, strict=True):
            number, part = spec.name.split(".")
            by_layer.setdefault(int(number), {})[part] = tensor
        cache = DynamicCache()
        cache.layer_class_to_replicate = None
        cache.layers = [_layer(by_layer.get(index, {})) for index in range(max(by_layer) + 1)]
        return cache


class _ReplacedStates:
    """States that are replaced and not written in place, as tracing needs it.

    A call continues from the states that it is given; zeros are those of an empty sequence.
    """

    conv_states: dict[int, Tensor]
    recurrent_states: dict[int, Tensor]

    def update_conv_state(
        self,
        conv_states: Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> Tensor:
        past = self.conv_states[state_idx]
        full = torch.cat([past, conv_states], dim=-1)
        self.conv_states[state_idx] = full[..., -past.shape[-1] :]
        return full

    def update_recurrent_state(
        self,
        recurrent_states: Tensor,
        state_idx: int = 0,
        **kwargs: Any,  # noqa: ARG002
    ) -> Tensor:
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class _StateLayer(_ReplacedStates, LinearAttentionLayer):  # type: ignore[misc]
    """A recurrent layer."""


class _StateAndKeysLayer(  # type: ignore[misc, no-untyped-call, override]
    _ReplacedStates, LinearAttentionAndFullAttentionLayer
):
    """A layer with both a recurrent part and attention."""


def _positions(specs: Sequence[CachedTensor], tensors: Sequence[Tensor]) -> int | None:
    """Return the number of cached positions P; None if all layers have states."""
    keys = (tensor for spec, tensor in zip(specs, tensors, strict=True) if not spec.is_state)
    return next((tensor.shape[2] for tensor in keys), None)


def _with_known_size(mask: Tensor, input_ids: Tensor, past: int | None) -> Tensor | None:
    """Return the mask with a size that tracing knows to be P + T; None without positions."""
    if past is None:
        return None
    return mask.index_select(1, torch.arange(past + input_ids.shape[1]))


def token_positions(attention_mask: Tensor, tokens: int) -> Tensor:
    """Return the positions [B, T] of the last tokens: the number of valid ones before each."""
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return positions[:, attention_mask.shape[1] - tokens :]


def _layer(parts: Mapping[str, Tensor]) -> DynamicLayer:
    """Return a cached layer that holds tensors; an empty one that a class does not write to."""
    states = {name: tensor for name, tensor in parts.items() if "state" in name}
    layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]
    if states:
        layer = _state_layer(states, has_keys="key" in parts)
    if "key" in parts:
        layer.keys, layer.values = parts["key"], parts["value"]
        layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
        layer.is_initialized = True
    return layer  # type: ignore[no-any-return]


def _state_layer(states: Mapping[str, Tensor], *, has_keys: bool) -> Any:
    indices = {name: int(name.partition("state")[2] or 0) for name in states}
    kind: Any = _StateAndKeysLayer if has_keys else _StateLayer
    layer = kind(number_of_states=max(indices.values()) + 1)
    for name, tensor in states.items():
        index = indices[name]
        layer.dtype, layer.device = tensor.dtype, tensor.device
        layer.has_previous_state[index] = True
        if name.startswith("conv"):
            layer.conv_states[index], layer.conv_kernel_size[index] = tensor, tensor.shape[-1]
            layer.is_conv_states_initialized[index] = True
        else:
            layer.recurrent_states[index] = tensor
            layer.is_recurrent_states_initialized[index] = True
    return layer
