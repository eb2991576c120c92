"""Encoder and decoder of a class of transformers, each with tensors in and out, for tracing.

The keys and values that the decoder's cross-attention reads follow from the encoder's output alone,
so the encoder's graph returns them, and the decoder's graph takes them. A mask of texts has a value
for each encoder position; of recordings, whose frames are fewer than their samples, the encoder's
graph returns it.

Shapes: B sequences, S encoder positions, T new tokens, P cached positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from compressor.graphs.decoder.interface import CROSS_PREFIX, ENCODER_MASK
from compressor.models.capabilities.cached_generation import CachedTensor
from compressor.models.families.transformers.generic.generation import layer_tensors
from passes.export_onnx.cached.decoder import CachedDecoder

_MASK, _ENCODER_OUTPUTS = "attention_mask", "encoder_outputs"


class CrossEncoder(nn.Module):
    """The encoder of a class, with the projections of the decoder's cross-attention."""

    def __init__(
        self, module: PreTrainedModel, inputs: Sequence[str], *, returns_mask: bool = False
    ) -> None:
        """Wrap a class.

        Args:
            module: the class, in eval mode.
            inputs: names of the encoder's inputs.
            returns_mask: True to return the mask of the encoder's positions too.
        """
        super().__init__()
        self.module, self.inputs, self.returns_mask = module, tuple(inputs), returns_mask

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values of each cross-attention, [B, N, S, H], and the mask [B, S].

        The decoder runs on one token; what it computes from that token is not used, and left out
        of the graph.
        """
        cache = EncoderDecoderCache(_empty_cache(), _empty_cache())
        tokens = torch.zeros((tensors[0].shape[0], 1), dtype=torch.int64)
        with _encoder_masks(self.module) as masks:
            self.module(
                **dict(zip(self.inputs, tensors, strict=True)),
                decoder_input_ids=tokens,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            )
        layers = cache.cross_attention_cache.layers
        outputs = [tensor for layer in layers for tensor in layer_tensors(layer).values()]
        if self.returns_mask:
            mask = masks[0]
            keys = outputs[0]  # a class that masks no cross-attention attends to all positions
            ones = torch.ones((keys.shape[0], keys.shape[2]), dtype=torch.int64)
            outputs.append(ones if mask is None else mask.to(torch.int64))
        return tuple(outputs)


class CrossDecoder(CachedDecoder):
    """The decoder of a class, which attends to keys and values of the encoder's output."""

    def __init__(
        self,
        module: PreTrainedModel,
        tensors: Sequence[CachedTensor],
        cross_tensors: Sequence[CachedTensor],
        *,
        is_masked: bool,
        is_recording: bool = False,
    ) -> None:
        """Wrap a class.

        Args:
            module: the class, in eval mode.
            tensors: the tensors of the cache of self-attention.
            cross_tensors: those of cross-attention.
            is_masked: True if the encoder has an attention mask.
            is_recording: True if its mask has other positions than its output.
        """
        super().__init__(module, tensors)
        self.is_recording = is_recording
        self.cross_tensors = tuple(cross_tensors)
        masks = (ENCODER_MASK,) if is_masked else ()
        self.extra_inputs = (*masks, *(CROSS_PREFIX + tensor.name for tensor in cross_tensors))
        config: Any = getattr(module.get_encoder(), "config", module.config)  # FSMT's has none
        self.hidden = int(config.hidden_size)

    def call_arguments(
        self, input_ids: Tensor, attention_mask: Tensor | None, extra: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """See ``CachedDecoder.call_arguments``; only the shape of the encoder's output counts."""
        keys = extra[CROSS_PREFIX + self.cross_tensors[0].name]
        hidden = keys.new_zeros((keys.shape[0], keys.shape[2], self.hidden))
        encoded = BaseModelOutput(last_hidden_state=hidden)
        encoded.attention_mask = extra.get(ENCODER_MASK)  # where Moonshine looks for it
        arguments: dict[str, Any] = {
            "decoder_input_ids": input_ids,
            "decoder_attention_mask": attention_mask,
            _ENCODER_OUTPUTS: encoded,
        }
        if ENCODER_MASK in extra and not self.is_recording:
            arguments[_MASK] = extra[ENCODER_MASK]
        return arguments

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, kept_positions: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """See ``CachedDecoder.forward``; a recording's mask is that of the encoder's graph."""
        inputs = (input_ids, attention_mask, kept_positions, *rest)
        if not self.is_recording or ENCODER_MASK not in self.extra_inputs:
            return super().forward(*inputs)
        with _encoder_masks(self.module, rest[self.extra_inputs.index(ENCODER_MASK)]):
            return super().forward(*inputs)

    def wrap_cache(self, cache: DynamicCache, extra: Mapping[str, Tensor]) -> EncoderDecoderCache:
        """Return a cache whose cross-attention has been computed."""
        cross = self.filled_cache(
            self.cross_tensors, [extra[CROSS_PREFIX + tensor.name] for tensor in self.cross_tensors]
        )
        both = EncoderDecoderCache(cache, cross)
        both.is_updated = dict.fromkeys(range(len(cross.layers)), True)
        return both


@contextmanager
def _encoder_masks(
    module: PreTrainedModel, replacement: Tensor | None = None
) -> Iterator[list[Tensor | None]]:
    """Collect the masks of the encoder's positions that a class gives its decoder.

    Args:
        module: the class.
        replacement: a mask that the decoder gets in their place.
    """
    masks: list[Tensor | None] = []

    def before(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        masks.append(named.get(ENCODER_MASK))
        return None if replacement is None else (positional, {**named, ENCODER_MASK: replacement})

    decoder: nn.Module = module.get_decoder()  # type: ignore[no-untyped-call]
    handle = decoder.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield masks
    finally:
        handle.remove()


class _FirstLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """An empty layer that takes its first keys and values as they are."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = key_states, value_states
        return key_states, value_states


def _empty_cache() -> DynamicCache:
    cache = DynamicCache()
    cache.layer_class_to_replicate = _FirstLayer
    return cache
