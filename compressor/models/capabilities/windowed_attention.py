"""Attention in windows of Longformer and LED as attention with a mask, which can be traced.

Their code cuts texts into chunks, pads them to whole windows, and gathers the tokens with global
attention, whose number it reads from values. The same function is attention to all tokens, of which
a mask leaves those in the window and the global ones. It needs memory for T² scores.

Longformer: The Long-Document Transformer, Beltagy et al. 2020, section 3.

Shapes: B texts, T tokens, N heads of width H, C = N·H channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

_ATTENTIONS = frozenset({"LongformerSelfAttention", "LEDEncoderSelfAttention"})
_PAD = "_pad_to_window_size"
_PADDED_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
"""Arguments of the method that pads, in the order in which it returns them behind a number."""


@contextmanager
def whole_windows(module: nn.Module, run: Callable[[], object]) -> Iterator[None]:
    """Let the windowed attention of a module's classes be computed with masks, without padding.

    Args:
        module: the module; most have no such attention and stay as they are.
        run: runs the module once, which shows whether any of its tokens has global attention.
    """
    parts = list(module.modules())
    attentions = {type(part) for part in parts if type(part).__name__ in _ATTENTIONS}
    if not attentions:
        yield
        return
    forward = _masked if _has_global_tokens(attentions, run) else _masked_in_windows
    with ExitStack() as stack:
        for attention in attentions:
            stack.enter_context(patch.object(attention, "forward", forward))
        for owner in {type(part) for part in parts if hasattr(part, _PAD)}:
            stack.enter_context(patch.object(owner, _PAD, _without_padding))
        yield


def _has_global_tokens(attentions: set[type[nn.Module]], run: Callable[[], object]) -> bool:
    """Return True if a run has tokens with global attention."""
    flags: list[bool] = []

    def record(attention: Any) -> Callable[..., Any]:
        forward = attention.forward

        def recording(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            flags.append(bool(kwargs.get("is_global_attn", True)))
            return forward(self, *args, **kwargs)

        return recording

    with ExitStack() as stack, torch.no_grad():
        for attention in attentions:
            stack.enter_context(patch.object(attention, "forward", record(attention)))
        run()
    return any(flags)


def _without_padding(self: nn.Module, *, pad_token_id: int, **inputs: Any) -> tuple[Any, ...]:
    """Return the inputs as they are, behind the number of tokens that were added."""
    del self, pad_token_id
    return (0, *(inputs[name] for name in _PADDED_INPUTS if name in inputs))


def _masked(
    self: Any,
    hidden_states: Tensor,
    is_index_masked: Tensor,
    is_index_global_attn: Tensor,
    **options: Any,
) -> tuple[Tensor]:
    """Return the attention's output [B, T, C]; ``forward`` of the classes.

    Args:
        self: the class's module.
        hidden_states: [B, T, C].
        is_index_masked: bool [B, T], True at padding.
        is_index_global_attn: bool [B, T], True at tokens with global attention.
        options: the same masks in other forms.
    """
    del options
    layers = (self.query_global, self.key_global, self.value_global)
    everywhere_BTT = ~is_index_masked[:, None, :]
    near_BTT = _in_window(self, is_index_masked) | is_index_global_attn[:, None, :]
    local_BTC = _attend(self, hidden_states, (self.query, self.key, self.value), near_BTT)
    local_BTC = local_BTC.masked_fill(is_index_masked[..., None], 0.0)
    global_BTC = _attend(self, hidden_states, layers, everywhere_BTT)
    return (torch.where(is_index_global_attn[..., None], global_BTC, local_BTC),)


def _masked_in_windows(
    self: Any, hidden_states: Tensor, is_index_masked: Tensor, **options: Any
) -> tuple[Tensor]:
    """Return what ``_masked`` does for texts without tokens with global attention."""
    del options
    near_BTT = _in_window(self, is_index_masked)
    local_BTC = _attend(self, hidden_states, (self.query, self.key, self.value), near_BTT)
    return (local_BTC.masked_fill(is_index_masked[..., None], 0.0),)


def _in_window(self: Any, is_masked_BT: Tensor) -> Tensor:
    """Return the tokens in each token's window that are not padding, bool [B, T, T]."""
    places_T = torch.arange(is_masked_BT.shape[1], device=is_masked_BT.device)
    distances_TT = (places_T[:, None] - places_T[None, :]).abs()
    is_near_TT: Tensor = distances_TT <= self.one_sided_attn_window_size
    return is_near_TT & ~is_masked_BT[:, None, :]


def _attend(
    self: Any, hidden_BTC: Tensor, layers: tuple[nn.Module, ...], allowed_BTT: Tensor
) -> Tensor:
    """Return attention [B, T, C] to the allowed tokens, with linear layers of the class."""
    query_BNTH, key_BNTH, value_BNTH = (
        layer(hidden_BTC).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        for layer in layers
    )
    scores_BNTT = query_BNTH @ key_BNTH.transpose(-1, -2) / self.head_dim**0.5
    lowest = torch.finfo(scores_BNTT.dtype).min
    scores_BNTT = scores_BNTT.masked_fill(~allowed_BTT[:, None], lowest)
    values_BTNH: Tensor = (scores_BNTT.softmax(dim=-1) @ value_BNTH).transpose(1, 2)
    return values_BTNH.flatten(2)
