"""Decoder of a vision-language class that takes the embeddings of images beside its tokens.

Shapes: B sequences, T new tokens, P cached positions, W image embeddings of width H · (1 + D), with
the features that are added behind the first D layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compressor.graphs.decoder.interface import IMAGE_EMBEDS, POSITION_OFFSETS
from compressor.models.capabilities.cached_generation import CachedTensor
from compressor.models.families.transformers.images import SEGMENTS
from passes.export_onnx.cached.decoder import CachedDecoder

_TOKENS, _EMBEDDED, _POSITIONS = "input_ids", "inputs_embeds", "position_ids"


class ImageDecoder(CachedDecoder):
    """A language model in which image embeddings replace the embeddings of image tokens.

    Positions of M-RoPE are those of the tokens plus offsets in time, height and width. Classes that
    read masks from the types of tokens get 1 for image tokens, and 0 for others.
    """

    def __init__(self, module: Any, tensors: Sequence[CachedTensor], token_id: int) -> None:
        """Wrap a class that generates.

        Args:
            module: the class, in eval mode and float32.
            tensors: the tensors of its cache.
            token_id: the token that an image embedding replaces.
        """
        super().__init__(module, tensors)
        self.token_id = token_id
        self.rotates_in_3d = takes_positions_in_3d(module)
        offsets = (POSITION_OFFSETS,) if self.rotates_in_3d else ()
        self.extra_inputs = (IMAGE_EMBEDS, *offsets)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, kept_positions: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the logits and the cache; see ``CachedDecoder.forward``."""
        added = self._embedded(input_ids, rest[0])[1:]
        with _added_behind_layers(self.module, added):
            return super().forward(input_ids, attention_mask, kept_positions, *rest)

    def call_arguments(
        self, input_ids: Tensor, attention_mask: Tensor | None, extra: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Return embeddings in place of tokens; see ``CachedDecoder.call_arguments``."""
        arguments = super().call_arguments(input_ids, attention_mask, extra)
        del arguments[_TOKENS]
        arguments[_EMBEDDED] = self._embedded(input_ids, extra[IMAGE_EMBEDS])[0]
        if self.rotates_in_3d:
            arguments[_POSITIONS] = arguments[_POSITIONS][None] + extra[POSITION_OFFSETS]
        if SEGMENTS in self.parameters_of_forward and attention_mask is not None:
            types = self._replaced(input_ids, extra[IMAGE_EMBEDS])[0].to(input_ids.dtype)
            past = attention_mask.shape[1] - input_ids.shape[1]
            arguments[SEGMENTS] = torch.cat([attention_mask[:, :past] * 0, types], dim=1)
        return arguments

    def _replaced(self, ids_BT: Tensor, rows_WH: Tensor) -> tuple[Tensor, Tensor]:
        """Return True for the tokens that image embeddings replace, and their numbers, [B, T].

        An image token that the model itself generates has no embedding, and stays a token.
        """
        is_image_BT = ids_BT == self.token_id
        number_BT = (is_image_BT.flatten().cumsum(0) - 1).clamp(min=0).reshape(ids_BT.shape)
        return is_image_BT & (number_BT < rows_WH.shape[0]), number_BT

    def _embedded(self, ids_BT: Tensor, rows_WH: Tensor) -> list[Tensor]:
        """Return the embeddings of all tokens, [B, T, H], and what is added behind each layer."""
        is_image_BT, number_BT = self._replaced(ids_BT, rows_WH)
        table: Any = self.module.get_input_embeddings()
        known_BT = ids_BT.masked_fill(is_image_BT | (ids_BT >= table.weight.shape[0]), 0)
        text_BTH = table(known_BT)
        # One more row, which is looked up where there are no image embeddings at all.
        spare_1H = rows_WH.new_zeros(1, rows_WH.shape[1])
        images_BTH = torch.cat([rows_WH, spare_1H])[number_BT.clamp(max=rows_WH.shape[0])]
        first, *others = torch.split(images_BTH, text_BTH.shape[-1], dim=-1)
        where = is_image_BT.unsqueeze(-1)
        return [torch.where(where, first, text_BTH), *(where * other for other in others)]


def takes_positions_in_3d(module: Any) -> bool:
    """Return True for a class whose positions have the axes time, height and width (M-RoPE)."""
    return any(hasattr(part, "get_rope_index") for part in (module, getattr(module, "model", None)))


@contextmanager
def _added_behind_layers(module: Any, added: Sequence[Tensor]) -> Iterator[None]:
    """Add a tensor to the output of each of the first decoder layers (DeepStack)."""
    hooks = [
        layer.register_forward_hook(_addition(tensor))
        for layer, tensor in zip(decoder_layers(module), added, strict=False)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _addition(tensor: Tensor) -> Any:
    def add(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + tensor, *output[1:])
        return output + tensor

    return add


def decoder_layers(module: Any) -> nn.ModuleList:
    """Return the layers of the language model: the list beside its table of embeddings."""
    embedding = module.get_input_embeddings()
    for part in module.modules():
        children = dict(part.named_children())
        lists = [child for child in children.values() if isinstance(child, nn.ModuleList)]
        if embedding in children.values() and lists:
            return max(lists, key=len)
    raise AssertionError(f"{type(module).__name__} has no layers beside its embedding")


def has_image_inputs(module: Any) -> bool:
    """Return True if a class computes image features apart from its decoder."""
    features = getattr(module, "get_image_features", None)
    takes_embeddings = _EMBEDDED in inspect.signature(type(module).forward).parameters
    return callable(features) and takes_embeddings and image_token(module) is not None


def image_token(module: Any) -> int | None:
    """Return the token that an image embedding replaces; None if the config names none."""
    token_id = getattr(module.config, "image_token_id", None)
    return int(token_id) if isinstance(token_id, int) else None
