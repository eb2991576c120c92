"""Settings of a decoder's computation, from config.json and transformers' defaults; no torch.

A class of transformers reads some fields of config.json and ignores others, such as a
``sliding_window`` of a Llama model. These settings are those that the class computes with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.models.families.transformers.layouts import Layout, decoder_shape, text_config

FULL, SLIDING = "full_attention", "sliding_attention"
"""Types of layers: a token attends to all tokens before it, or to those within a window."""
_FORMER_TYPES = {"attention": FULL}
_DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
"""Llama's defaults, which hold where a layout has none of its own."""
_IMAGE_TOKEN_ID = 151343
"""Default of ``Glm4vConfig``."""
_ROTARY_FIELDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "proportional": (),
}
"""Kinds of rotary embeddings that transformers has, and the fields that each requires."""


@dataclass(frozen=True, slots=True)
class RotarySettings:
    """Rotary position embeddings of the layers of one type."""

    kind: str
    """``rope_type``."""
    fields: Mapping[str, Any]
    """Fields of ``rope_parameters`` or ``rope_scaling``."""
    pairs: int
    """Pairs of values of a head that are rotated."""
    original_positions: int
    """Positions that the model was first trained for, which some kinds extend."""


@dataclass(frozen=True, slots=True)
class DecoderSettings:
    """Settings of the computation, beside the sizes."""

    activation: str
    """Activation of the feed-forward network."""
    epsilon: float
    """Epsilon of the RMS norms."""
    positions: int
    """Longest sequence that the model is made for."""
    attention_scale: float
    """Factor of the attention scores."""
    layer_types: tuple[str, ...]
    """Type of each layer."""
    window: int | None
    """Tokens that a layer of type ``SLIDING`` attends to, the current one included."""
    is_causal: bool
    """False if a token attends to later tokens too."""
    softcaps: tuple[str, ...]
    """Fields that cap the attention scores or the logits, and are set."""
    rotary: Mapping[str, RotarySettings]
    """Layer type to its rotary embeddings."""
    image_token_id: int
    """Token that an image embedding replaces, in a model with images."""
    sections: tuple[int, ...]
    """Pairs of a head that follow the position in time, in height and in width; empty for a model
    of text alone."""


def decoder_settings(tree: Mapping[str, Any]) -> DecoderSettings:
    """Return the settings in a config.json whose sizes are valid."""
    decoder = decoder_shape(tree)
    layout, fields = decoder.layout, _fields(tree)
    scale = fields[layout.attention_scale] if layout.attention_scale else decoder.head_width
    layer_types = _layer_types(layout, fields, decoder.layers)
    return DecoderSettings(
        activation=str(fields[layout.activation]),
        epsilon=float(fields["rms_norm_eps"]),
        positions=int(fields["max_position_embeddings"]),
        attention_scale=float(scale) ** -0.5,
        layer_types=layer_types,
        window=_window(layout, fields),
        is_causal=not (layout.bidirectional and fields.get(layout.bidirectional)),
        softcaps=tuple(name for name in layout.softcaps if fields.get(name)),
        rotary={
            layer_type: _rotary(layout, fields, layer_type, decoder.head_width)
            for layer_type in sorted({*layer_types})
        },
        image_token_id=tree.get("image_token_id") or _IMAGE_TOKEN_ID,
        sections=() if layout.vision is None else tuple(_rotary_fields(fields)["mrope_section"]),
    )


def _fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the language model's fields; an absent or null one has its default."""
    layout, stored = decoder_shape(tree).layout, text_config(tree)
    # A window of null is no window.
    stated = {name: v for name, v in stored.items() if v is not None or name == "sliding_window"}
    return {**_DEFAULTS, **layout.defaults, **stated}


def _window(layout: Layout, fields: Mapping[str, Any]) -> int | None:
    if layout.attention == "full" or not fields.get("use_sliding_window", True):
        return None
    window: int | None = fields["sliding_window"]
    return window


def _layer_types(layout: Layout, fields: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    window = _window(layout, fields)
    if layout.attention != "by layer":
        return (FULL if window is None else SLIDING,) * layers
    if (stated := fields.get("layer_types")) is not None:
        return tuple(_FORMER_TYPES.get(name, name) for name in stated)
    if "sliding_window_pattern" in layout.defaults:
        period = fields["sliding_window_pattern"]
        return tuple(FULL if number % period == 0 else SLIDING for number in range(1, layers + 1))
    first = layers if window is None else fields["max_window_layers"]
    return tuple(SLIDING if number >= first else FULL for number in range(layers))


def _rotary(
    layout: Layout, fields: Mapping[str, Any], layer_type: str, head_width: int
) -> RotarySettings:
    parameters = (
        _fields_of_type(fields, layer_type) if layout.rotary_by_type else _rotary_fields(fields)
    )
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    # The default kind rotates a part where the class has one; `proportional` rotates by angle 0.
    is_partial = kind != "proportional" and (layout.partial_rotary or kind != "default")
    factor = parameters.get("partial_rotary_factor", 1.0) if is_partial else 1.0
    width = int(head_width * factor)
    original = "original_max_position_embeddings"
    # Of the former place, transformers reads the field beside the others first.
    places = (parameters, fields) if layout.rotary_by_type else (fields, parameters)
    positions = next(
        (place[original] for place in places if place.get(original)),
        fields["max_position_embeddings"],
    )
    return RotarySettings(kind, parameters, (width + 1) // 2, int(positions))


def _rotary_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary fields of all layers, in their former or present place."""
    stated = dict(fields.get("rope_scaling") or fields.get("rope_parameters") or {})
    for name in ("partial_rotary_factor", "mrope_section"):
        if name in fields:
            stated.setdefault(name, fields[name])
    return stated


def _fields_of_type(fields: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    """Return the rotary fields of a layer type; the former ``rope_scaling`` is of full layers."""
    by_type = fields.get("rope_parameters")
    stated = {"rope_type": "default"} if by_type is None else dict(by_type.get(layer_type) or {})
    scaling = fields.get("rope_scaling") if layer_type == FULL else None
    return {**stated, **(scaling or {})}


def settings_problems(tree: Mapping[str, Any]) -> list[str]:
    """Return what keeps transformers' class from computing with a config.json.

    Args:
        tree: config.json, its types (``type_problems``) and sizes valid.
    """
    settings, decoder = decoder_settings(tree), decoder_shape(tree)
    problems = []
    stated = text_config(tree).get("head_dim")
    if not decoder.layout.head_width_is_free and stated not in {None, decoder.head_width}:
        problems.append(f"`head_dim` is {stated}, and hidden_size / heads is {decoder.head_width}")
    return [
        *problems,
        *_layer_type_problems(settings, decoder.layout),
        *_rotary_problems(settings, decoder.layout, decoder.head_width),
    ]


def _layer_type_problems(settings: DecoderSettings, layout: Layout) -> Iterator[str]:
    types = {*settings.layer_types}
    if unknown := sorted(types - {FULL, SLIDING}):
        yield f"`layer_types` names {', '.join(unknown)}; the class has {FULL} and {SLIDING}"
    # A class with rotary embeddings by type computes the masks of both types in every model.
    if settings.window is None and (SLIDING in types or layout.rotary_by_type):
        yield f"`sliding_window` is null or not used, and layers of type {SLIDING} require it"
    if settings.window is not None and settings.window < 1 and SLIDING in types:
        yield f"`sliding_window` is {settings.window}, and a token attends at least to itself"


def _rotary_problems(settings: DecoderSettings, layout: Layout, head_width: int) -> Iterator[str]:
    by_kind = {rotary.kind: rotary for rotary in settings.rotary.values()}
    for kind, rotary in by_kind.items():
        if layout.attention == "by layer" and settings.rotary.keys() & rotary.fields.keys():
            yield "`rope_parameters` differ by layer type, which the class does not support"
        elif kind not in _ROTARY_FIELDS:
            kinds = ", ".join(_ROTARY_FIELDS)
            yield f"transformers has no rotary embeddings of type {kind!r}; it has {kinds}"
        else:
            yield from _width_problems(rotary, settings.sections, layout, head_width)


def _width_problems(
    rotary: RotarySettings, sections: tuple[int, ...], layout: Layout, head_width: int
) -> Iterator[str]:
    kind, width = rotary.kind, 2 * rotary.pairs
    if missing := [name for name in _ROTARY_FIELDS[kind] if rotary.fields.get(name) is None]:
        yield f"rotary embeddings of type {kind} require {', '.join(missing)}"
    if width > head_width or (width < head_width and not layout.partial_rotary):
        yield f"rotary embeddings rotate {width} values of a head that is {head_width} wide"
    for name in ("short_factor", "long_factor") if kind == "longrope" else ():
        if rotary.fields.get(name) is not None and len(rotary.fields[name]) != rotary.pairs:
            yield f"`{name}` has {len(rotary.fields[name])} values, not {rotary.pairs}, one a pair"
    if sections and sum(sections) != rotary.pairs:
        yield (
            f"`mrope_section` divides {sum(sections)} pairs of values, and {rotary.pairs} pairs of "
            "a head are rotated"
        )
