"""Decoders of transformers whose attention follows a selection of keys: the reference in torch.

All keys stay in memory, and runtimes that save time and memory are held against it. Local heads
read only the keys near their queries; other selections are explicit masks. The selection is an
attribute of each attention module, read by an attention function that transformers finds by the
name in the config of the modules.

Shapes: as in ``masks.py``; G key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from compressor.models.attention_patterns.masks import (
    KeySelection,
    LocalSelection,
    Scored,
    local_mask,
)
from compressor.models.attention_patterns.record import AttentionPattern
from compressor.models.capabilities.attention_heads import AttentionHeads

IMPLEMENTATION = "autoglm_compress_selected_keys"
"""Name under which transformers finds the attention function."""
_SELECTION = "key_selection"
_OBSERVER = "attention_observer"
_ROWS = 256
"""Queries whose scores are in memory at once, and at most that many more keys than needed."""


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
    """Inputs of one call of an attention module."""

    query_BHQD: Tensor
    """Rotated."""
    key_BGKD: Tensor
    """Rotated, with the cached ones before."""
    value_BGKD: Tensor
    mask: Tensor | None
    """bool [B, 1, Q, K]; None for causal attention without padding."""
    scaling: float
    """Factor of the scores."""


Observer = Callable[[AttentionCall, Tensor], None]
"""Takes the inputs of a call with all keys, and its result [B, Q, H, D], before ``o_proj``."""


def observe_attention(attention: nn.Module, observer: Observer | None) -> None:
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
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    call = AttentionCall(query, key, value, attention_mask, scaling)
    if isinstance(selection, LocalSelection):
        return _mixed_attention(module, call, selection, options), None
    if selection is not None:
        return _masked_attention(module, call, selection, options), None
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    observer: Observer | None = getattr(module, _OBSERVER, None)
    if observer is not None:
        observer(call, output)
    return output, None


def _masked_attention(
    module: nn.Module, call: AttentionCall, selection: KeySelection, options: Mapping[str, Any]
) -> Tensor:
    """Return the output [B, Q, H, D] with an explicit mask; later keys are not read."""
    options = {**options, "is_causal": False}
    queries, keys = call.query_BHQD.shape[2], call.key_BGKD.shape[2]
    queries_BQ, keys_BK = positions(queries, keys, call.mask, call.query_BHQD.device)
    shared = call.query_BHQD.shape[1] // call.key_BGKD.shape[1]
    chunks = []
    for start in range(0, queries, _ROWS):
        rows = slice(start, min(start + _ROWS, queries))
        earlier = slice(0, keys - queries + rows.stop)
        query, key = call.query_BHQD[:, :, rows], call.key_BGKD[:, :, earlier]
        scored = Scored(query, repeat_kv(key, shared))
        allowed = selection.allowed(queries_BQ[:, rows], keys_BK[:, earlier], scored)
        if call.mask is not None:
            allowed = allowed & call.mask[:, :, rows, earlier]
        value = call.value_BGKD[:, :, earlier]
        chunk, _ = sdpa_attention_forward(module, query, key, value, allowed, **options)
        chunks.append(chunk)
    return torch.cat(chunks, dim=1)


def _mixed_attention(
    module: nn.Module, call: AttentionCall, selection: LocalSelection, options: Mapping[str, Any]
) -> Tensor:
    """Return the output [B, Q, H, D] of full and local heads, each kind computed for itself."""
    shared = call.query_BHQD.shape[1] // call.key_BGKD.shape[1]
    is_local_G = torch.tensor(selection.local_H[::shared], device=call.query_BHQD.device)
    full, local = (_of_key_heads(call, chosen) for chosen in (~is_local_G, is_local_G))
    parts = []
    if full.key_BGKD.shape[1]:
        tensors = (full.query_BHQD, full.key_BGKD, full.value_BGKD)
        parts.append(sdpa_attention_forward(module, *tensors, call.mask, **options)[0])
    if local.key_BGKD.shape[1]:
        queries = call.query_BHQD.shape[2]
        chunks = [
            local_attention(
                local, slice(start, min(start + _ROWS, queries)), selection.sinks, selection.window
            )
            for start in range(0, queries, _ROWS)
        ]
        parts.append(torch.cat(chunks, dim=1))
    is_local_H = is_local_G.repeat_interleave(shared).int()
    order = is_local_H.argsort(stable=True)
    return torch.cat(parts, dim=2)[:, :, order.argsort()]


def _of_key_heads(call: AttentionCall, chosen_G: Tensor) -> AttentionCall:
    """Return the call of some key-value heads, bool [G], with their query heads."""
    shared = call.query_BHQD.shape[1] // call.key_BGKD.shape[1]
    return replace(
        call,
        query_BHQD=call.query_BHQD[:, chosen_G.repeat_interleave(shared)],
        key_BGKD=call.key_BGKD[:, chosen_G],
        value_BGKD=call.value_BGKD[:, chosen_G],
    )


def local_attention(call: AttentionCall, rows: slice, sinks: int, window: int) -> Tensor:
    """Return the output of some queries if all heads are local, [B, Q, H, D].

    Only the keys that one of the queries may see are read. An index is at most as many tokens from
    a position as there are tokens of padding.

    Args:
        call: inputs of the attention.
        rows: the queries; start and stop are set.
        sinks: first tokens that a query sees.
        window: tokens before a query that it sees, itself included.
    """
    query = call.query_BHQD[:, :, rows]
    queries, keys = call.query_BHQD.shape[2], call.key_BGKD.shape[2]
    queries_BQ, keys_BK = positions(queries, keys, call.mask, query.device)
    padded = 0
    if call.mask is not None:
        padded = keys - int(call.mask[:, 0, :, :keys].any(dim=1).sum(-1).min())
    cached = keys - queries
    nearest = max(0, cached + rows.start - window + 1 - padded)
    near = torch.arange(nearest, cached + rows.stop, device=query.device)
    first = torch.arange(min(sinks + padded, nearest), device=query.device)
    seen = torch.cat([first, near])
    mask = local_mask(queries_BQ[:, rows], keys_BK[:, seen], sinks, window)
    if call.mask is not None:
        mask = mask & call.mask[:, :, rows][..., seen]
    shared = query.shape[1] // call.key_BGKD.shape[1]
    key, value = (
        repeat_kv(tensor[:, :, seen], shared) for tensor in (call.key_BGKD, call.value_BGKD)
    )
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=call.scaling
    )
    return output.transpose(1, 2)


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
