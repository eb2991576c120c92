"""Decoders of transformers whose attention follows a selection of keys: the slow reference.

The masks are explicit, so nothing is saved; runtimes that do save time and memory are held against
it. The selection is an attribute of each attention module, read by an attention function that
transformers finds by the name in the config of the modules.

Shapes: as in ``masks.py``; G key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from compressor.models.attention_patterns.masks import KeySelection, LocalSelection, Scored
from compressor.models.attention_patterns.record import AttentionPattern
from compressor.models.capabilities.attention_heads import AttentionHeads

IMPLEMENTATION = "autoglm_compress_selected_keys"
"""Name under which transformers finds the attention function."""
_SELECTION = "key_selection"
_OBSERVER = "attention_observer"
_SCORES_IN_MEMORY = 1 << 25
"""Pairs of a query and a key, of all heads, that are in memory at once."""


def apply_attention_pattern(
    module: nn.Module, pattern: AttentionPattern, heads: AttentionHeads
) -> nn.Module:
    """Let the local heads of a pattern attend to sinks and a window alone.

    Args:
        module: a decoder of transformers, which is changed.
        pattern: a pattern that fits it (``pattern_problems``).
        heads: its attention heads.
    """
    for name, layer in zip(heads.names, pattern.layers, strict=True):
        selection = None
        if layer is not None:
            selection = LocalSelection.of_key_heads(
                layer.heads, heads.key_heads, heads.heads_per_key, layer.sinks, layer.window
            )
        select_keys(module.get_submodule(name), selection)
    return module


def select_keys(attention: nn.Module, selection: KeySelection | None) -> None:
    """Let an attention module attend to a selection of keys; None for all keys.

    Args:
        attention: an attention module of transformers, with its ``config``.
        selection: the selection.
    """
    module: Any = attention
    setattr(module, _SELECTION, selection)
    module.config._attn_implementation = IMPLEMENTATION


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of an attention module with all keys."""

    query_BHQD: Tensor
    """Rotated."""
    key_BGKD: Tensor
    value_BGKD: Tensor
    output_BQHD: Tensor
    """Result of the attention, before ``o_proj``."""
    mask: Tensor | None
    """bool [B, 1, Q, K]; None for causal attention without padding."""
    scaling: float
    """Factor of the scores."""


def observe_attention(
    attention: nn.Module, observer: Callable[[AttentionCall], None] | None
) -> None:
    """Call an observer with every call of an attention module; None removes it.

    Args:
        attention: an attention module of transformers, with its ``config``.
        observer: it is called after the attention, and before ``o_proj``.
    """
    module: Any = attention
    setattr(module, _OBSERVER, observer)
    module.config._attn_implementation = IMPLEMENTATION


def selected_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output [B, Q, H, D], as transformers calls it.

    Args:
        module: the attention module.
        query: [B, H, Q, D], rotated.
        key: [B, G, K, D], rotated, with the cached ones before.
        value: [B, G, K, D].
        attention_mask: bool [B, 1, Q, K]; None for causal attention without padding.
        options: others of transformers, such as ``scaling``.
    """
    selection: KeySelection | None = getattr(module, _SELECTION, None)
    if selection is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        observer: Callable[[AttentionCall], None] | None = getattr(module, _OBSERVER, None)
        if observer is not None:
            scaling = options.get("scaling") or query.shape[-1] ** -0.5
            observer(AttentionCall(query, key, value, output, attention_mask, scaling))
        return output, None
    options.pop("is_causal", None)
    queries_BQ, keys_BK = positions(query.shape[2], key.shape[2], attention_mask, query.device)
    repeated = repeat_kv(key, query.shape[1] // key.shape[1])
    step = max(1, _SCORES_IN_MEMORY // (query.shape[0] * query.shape[1] * key.shape[2]))
    chunks = []
    for start in range(0, query.shape[2], step):
        rows = slice(start, start + step)
        queries = query[:, :, rows]
        allowed = selection.allowed(queries_BQ[:, rows], keys_BK, Scored(queries, repeated))
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, :, rows, : key.shape[2]]
        chunk, _ = sdpa_attention_forward(
            module, queries, key, value, allowed, is_causal=False, **options
        )
        chunks.append(chunk)
    return torch.cat(chunks, dim=1), None


def positions(
    queries: int, keys: int, attention_mask: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the positions of queries [B, Q] and keys [B, K] of a call; B is 1 without a mask.

    The queries are the last tokens. Padding, on either side, has no position of its own.
    """
    if attention_mask is None:
        keys_BK = torch.arange(keys, device=device)[None]
    else:
        is_token_BK = attention_mask[:, 0, :, :keys].any(dim=1)
        keys_BK = (is_token_BK.cumsum(dim=1) - 1).clamp(min=0)
    return keys_BK[:, keys - queries :], keys_BK


AttentionInterface.register(IMPLEMENTATION, selected_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
