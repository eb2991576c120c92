"""Attention patterns and those of the config as selections of keys in a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from compressor.models.attention_patterns.attention import apply_attention_pattern, select_keys
from compressor.models.attention_patterns.masks import (
    BlockGlobalSelection,
    DynamicSelection,
    KeySelection,
)
from compressor.models.attention_patterns.record import AttentionPattern, LocalHeads
from compressor.models.capabilities.attention_heads import AttentionHeads
from passes.sparse_attention.config import ComparedPattern, SparseAttentionConfig


def use_full_attention(module: nn.Module, heads: AttentionHeads) -> None:
    """Let all heads attend to all keys again."""
    for name in heads.names:
        select_keys(module.get_submodule(name), None)


def use_pattern(module: nn.Module, heads: AttentionHeads, pattern: AttentionPattern) -> None:
    """Let the local heads of a pattern attend to sinks and a window alone."""
    apply_attention_pattern(module, pattern, heads)


def use_compared(
    module: nn.Module,
    heads: AttentionHeads,
    compared: ComparedPattern,
    config: SparseAttentionConfig,
) -> None:
    """Let the model attend as a compared pattern states; layers with windows keep theirs."""
    selection: KeySelection
    if (blocks := compared.block_global) is not None:
        selection = BlockGlobalSelection(
            blocks.block, blocks.stride, blocks.sinks, preceding=blocks.preceding
        )
    elif (dynamic := compared.dynamic) is not None:
        selection = DynamicSelection(dynamic.top_k, dynamic.window, dynamic.grow_from)
    else:
        use_pattern(module, heads, all_local(heads, config))
        return
    for number, name in enumerate(heads.names):
        is_full = number in heads.full_layers
        select_keys(module.get_submodule(name), selection if is_full else None)


def all_local(heads: AttentionHeads, config: SparseAttentionConfig) -> AttentionPattern:
    """Return the pattern in which every head has the smallest window."""
    everything = LocalHeads(
        heads=tuple(range(heads.key_heads)), sinks=config.sinks, window=config.windows[0]
    )
    return AttentionPattern(
        layers=tuple(
            everything if number in heads.full_layers else None for number in range(heads.layers)
        )
    )


def compared_name(compared: ComparedPattern) -> str:
    """Return the name of a compared pattern in the report."""
    fields: Mapping[str, Any]
    if (blocks := compared.block_global) is not None:
        stated = blocks.model_dump(exclude_defaults=True)
        name, fields = "block_global", {"block": blocks.block, "stride": blocks.stride, **stated}
    elif (dynamic := compared.dynamic) is not None:
        name, fields = "dynamic", dynamic.model_dump(exclude_none=True)
    else:
        return "sinks + window in all heads"
    return f"{name} {{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}"
