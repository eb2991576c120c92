"""What a decoder computes, in numbers: read from config.json and from the buffers of transformers' own module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compressor.errors import RequirementError
from compressor.models.families.transformers.checkpoint import build_on_meta
from compressor.models.families.transformers.layouts import DecoderShape, decoder_shape, text_config

Activation = Literal["silu", "gelu_tanh"]
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_FIXED_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embedding whose frequencies do not change with the length of the text."""
_SOFTCAPS = ("final_logit_softcapping", "attn_logit_softcapping")


@dataclass(frozen=True, slots=True)
class Rotary:
    """cos and sin of each position: [positions, width / 2]."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Images:
    """What a vision-language model's decoder knows of images."""

    token: int
    """Stands for a part of an image; the vision tower's words take its places."""
    sections: tuple[int, ...]
    """Of a head's frequencies, how many in turn follow the position in time, in height and in width."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only language model, with or without a vision tower."""

    decoder: DecoderShape
    root: str
    """The module with ``embed_tokens``, ``layers`` and ``norm``."""
    epsilon: float
    """Of the norms."""
    activation: Activation
    attention_scale: float
    embedding_scale: float
    context: int
    """Tokens that it can attend to."""
    rotary: Mapping[str, Rotary]
    """By the kind of layer."""
    kinds: tuple[str, ...]
    """Of each layer: a key of ``rotary``."""
    windows: tuple[int | None, ...]
    """Of each layer: how many tokens it looks back on, its own among them; None for all."""
    images: Images | None

    @property
    def after_attention(self) -> str | None:
        """The norm over what attention says, where there is one."""
        return self._after(0)

    @property
    def after_ffn(self) -> str | None:
        """The norm over what the feed-forward part says, where there is one."""
        return self._after(1)

    def rotary_width(self, layer: int) -> int:
        """Values of a head that a layer turns by positions: the first ones."""
        if self.images is not None:
            return 2 * sum(self.images.sections)
        return 2 * self.rotary[self.kinds[layer]].cos.shape[1]

    def _after(self, place: int) -> str | None:
        layout = self.decoder.layout
        others = [name for name in layout.norms if name not in {"input_layernorm", layout.ffn_norm}]
        return others[place] if others else None


def architecture_of(tree: Mapping[str, Any], context: int | None) -> Architecture:
    """Read config.json; ``context`` instead of the model's own, which it may not exceed.

    Raises:
        RequirementError: it computes something that is not built here: all of it is named.
    """
    decoder, text = decoder_shape(tree), text_config(tree)
    module = build_on_meta(tree)
    config: Any = module.config
    config = config.get_text_config()
    name = str(getattr(config, "hidden_activation", None) or config.hidden_act)
    window = getattr(config, "sliding_window", None)
    always = (
        "sliding_attention"
        if window and getattr(config, "use_sliding_window", True)
        else "full_attention"
    )
    kinds = tuple(getattr(config, "layer_types", None) or [always] * decoder.layers)
    longest = int(config.max_position_embeddings)
    problems = [] if name in _ACTIVATIONS else [f"the activation {name}"]
    problems += [f"`{one}`" for one in _SOFTCAPS if text.get(one)]
    problems += [
        f"rotary embeddings of kind {kind}"
        for kind in sorted(_rotary_kinds(config) - _FIXED_ROTARY)
    ]
    problems += [
        f"layers of kind {one}"
        for one in sorted({*kinds} - {"full_attention", "sliding_attention"})
    ]
    if problems:
        raise RequirementError(
            f"decoders of {tree['model_type']} with {', '.join(problems)} are not built yet",
            remedy="measure and ship the torch or awq artifact instead",
        )
    if context is not None and context > longest:
        raise RequirementError(
            f"`context_length` is {context}, and the model has {longest} positions"
        )
    count = context or longest
    turning: Any = module.get_submodule(f"{decoder.layout.root}.rotary_emb")
    scalar = getattr(config, "query_pre_attn_scalar", None)
    return Architecture(
        decoder=decoder,
        root=decoder.layout.root,
        epsilon=float(config.rms_norm_eps),
        activation=_ACTIVATIONS[name],
        attention_scale=float(scalar or decoder.head_width) ** -0.5,
        embedding_scale=decoder.hidden**0.5 if decoder.layout.scaled_embedding else 1.0,
        context=count,
        rotary={
            kind: _rotary(turning, kind, count, in_pairs=decoder.layout.rotary_in_pairs)
            for kind in sorted({*kinds})
        },
        kinds=kinds,
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        images=None
        if decoder.layout.vision is None
        else Images(tree["image_token_id"], tuple(turning.mrope_section)),
    )


def _rotary_kinds(config: Any) -> set[str]:
    fields = config.rope_parameters or {}
    by_layer = [one for one in fields.values() if isinstance(one, dict)] or [fields]
    return {str(one.get("rope_type", "default")) for one in by_layer}


def _rotary(module: Any, kind: str, positions: int, *, in_pairs: bool) -> Rotary:
    prefix = f"{kind}_" if hasattr(module, f"{kind}_inv_freq") else ""
    frequencies = getattr(module, f"{prefix}inv_freq").float()
    if in_pairs:  # pairs that turn by nothing stay as they are: the operator wants a multiple of 8
        frequencies = torch.nn.functional.pad(frequencies, (0, -len(frequencies) % 8))
    angles = torch.outer(torch.arange(positions).float(), frequencies)
    scaling = float(getattr(module, f"{prefix}attention_scaling"))
    return Rotary(angles.cos() * scaling, angles.sin() * scaling)
