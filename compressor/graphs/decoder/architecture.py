"""DecoderArchitecture of a decoder: the numbers that its graph needs.

They are read from config.json and from the buffers of transformers' own module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compressor.errors import RequirementError
from compressor.models.families.transformers.layouts import DecoderShape, decoder_shape, text_config
from compressor.models.families.transformers.modules import build_on_meta

Activation = Literal["silu", "gelu_tanh"]
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_FIXED_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary embeddings whose frequencies do not change with the length of the sequence."""
_FULL, _SLIDING = "full_attention", "sliding_attention"
_SOFTCAPS = ("final_logit_softcapping", "attn_logit_softcapping")


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of rotary position embeddings, each [positions, width / 2]."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Placement of image embeddings in the sequence of a vision-language model."""

    token_id: int
    """The token that an image embedding replaces."""
    sections: tuple[int, ...]
    """Rotary frequencies of a head that follow the position in time, in height and in width."""


@dataclass(frozen=True, slots=True)
class DecoderArchitecture:
    """A decoder-only language model, with or without images."""

    decoder: DecoderShape
    root: str
    """The module with ``embed_tokens``, ``layers`` and ``norm``."""
    epsilon: float
    """Epsilon of the RMS norms."""
    activation: Activation
    attention_scale: float
    embedding_scale: float
    context: int
    """Positions that the graph attends to."""
    rotary: Mapping[str, Rotary]
    """Layer type to its tables."""
    layer_types: tuple[str, ...]
    """Type of each layer: a key of ``rotary``."""
    windows: tuple[int | None, ...]
    """Tokens that each layer attends to, the current one included; None for all."""
    images: ImageTokens | None

    @property
    def post_attention_norm(self) -> str | None:
        """Name of the norm over the attention's result; None if there is none."""
        return self._post_norm(0)

    @property
    def post_ffn_norm(self) -> str | None:
        """Name of the norm over the feed-forward network's result; None if there is none."""
        return self._post_norm(1)

    def rotary_width(self, layer: int) -> int:
        """Return how many values of a head, from the first one, a layer rotates by positions."""
        if self.images is not None:
            return 2 * sum(self.images.sections)
        return 2 * self.rotary[self.layer_types[layer]].cos.shape[1]

    def _post_norm(self, index: int) -> str | None:
        layout = self.decoder.layout
        pre_norms = {"input_layernorm", layout.ffn_norm}
        post_norms = [name for name in layout.norms if name not in pre_norms]
        return post_norms[index] if post_norms else None


def read_architecture(tree: Mapping[str, Any], context: int | None) -> DecoderArchitecture:
    """Read the architecture of a checkpoint.

    Args:
        tree: config.json.
        context: positions that the graph attends to; None for the model's own.

    Raises:
        RequirementError: the decoder computes something that the graph cannot (the message names
            all of it), or ``context`` exceeds the model's own.
    """
    decoder = decoder_shape(tree)
    module = build_on_meta(tree)
    config: Any = module.config
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layer_types = _layer_types(config, decoder.layers)
    activation = str(getattr(config, "hidden_activation", None) or config.hidden_act)
    if problems := _unsupported(tree, config, activation, layer_types):
        raise RequirementError(
            f"the graph of {tree['model_type']} decoders with {', '.join(problems)} cannot be "
            "built yet",
            remedy="measure and ship the torch or awq artifact instead",
        )
    positions = _positions(config, context)
    rotary_module: Any = module.get_submodule(f"{decoder.layout.root}.rotary_emb")
    scalar = getattr(config, "query_pre_attn_scalar", None)
    images = None
    if decoder.layout.vision is not None:
        images = ImageTokens(tree["image_token_id"], tuple(rotary_module.mrope_section))
    return DecoderArchitecture(
        decoder=decoder,
        root=decoder.layout.root,
        epsilon=float(config.rms_norm_eps),
        activation=_ACTIVATIONS[activation],
        attention_scale=float(scalar or decoder.head_width) ** -0.5,
        embedding_scale=decoder.hidden**0.5 if decoder.layout.scaled_embedding else 1.0,
        context=positions,
        rotary={
            layer_type: _rotary(
                rotary_module, layer_type, positions, in_pairs=decoder.layout.rotary_in_pairs
            )
            for layer_type in sorted({*layer_types})
        },
        layer_types=layer_types,
        windows=tuple(window if name == _SLIDING else None for name in layer_types),
        images=images,
    )


def _layer_types(config: Any, layers: int) -> tuple[str, ...]:
    """Return the attention of each layer, from ``layer_types`` or from the sliding window."""
    window = getattr(config, "sliding_window", None)
    uses_window = window and getattr(config, "use_sliding_window", True)
    default = _SLIDING if uses_window else _FULL
    return tuple(getattr(config, "layer_types", None) or [default] * layers)


def _positions(config: Any, context: int | None) -> int:
    """Return the positions that the graph attends to."""
    longest = int(config.max_position_embeddings)
    if context is not None and context > longest:
        raise RequirementError(
            f"`decoder.context_length` is {context}, and the model has {longest} positions"
        )
    return context or longest


def _unsupported(
    tree: Mapping[str, Any], config: Any, activation: str, layer_types: tuple[str, ...]
) -> list[str]:
    text = text_config(tree)
    problems = [] if activation in _ACTIVATIONS else [f"the activation {activation}"]
    problems += [f"`{name}`" for name in _SOFTCAPS if text.get(name)]
    problems += [
        f"rotary embeddings of type {name}"
        for name in sorted(_rotary_types(config) - _FIXED_ROTARY)
    ]
    return problems + [
        f"layers of type {name}" for name in sorted({*layer_types} - {_FULL, _SLIDING})
    ]


def _rotary_types(config: Any) -> set[str]:
    parameters = config.rope_parameters or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return {str(fields.get("rope_type", "default")) for fields in by_layer}


def _rotary(module: Any, layer_type: str, positions: int, *, in_pairs: bool) -> Rotary:
    prefix = f"{layer_type}_" if hasattr(module, f"{layer_type}_inv_freq") else ""
    frequencies = getattr(module, f"{prefix}inv_freq").float()
    if in_pairs:  # the operator requires a multiple of 8; a frequency of 0 leaves a pair unchanged
        frequencies = torch.nn.functional.pad(frequencies, (0, -len(frequencies) % 8))
    angles = torch.outer(torch.arange(positions).float(), frequencies)
    scaling = float(getattr(module, f"{prefix}attention_scaling"))
    return Rotary(angles.cos() * scaling, angles.sin() * scaling)
